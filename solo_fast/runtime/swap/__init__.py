"""Hot swap: the kernel's side, what it keeps for the way back, and what a service does with its state meanwhile."""
