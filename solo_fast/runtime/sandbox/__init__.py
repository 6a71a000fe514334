"""The sandbox of services: which layers there are, what each allows, and the order in which a child takes them on."""
