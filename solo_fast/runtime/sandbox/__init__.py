"""The sandbox of services: which layers there are, what each allows, and the order in which a child takes them on.

The zygote does once what can be shared (preparation.py): its namespaces, the private root, the first system-call
filter, the list of what may be read. Then it finds out which layers hold, by confining a throw-away child and having
that try (trial.py). A blank child prepares its Landlock ruleset while nobody waits; what differs from service to
service comes with the LOAD frame, and `confine` (confinement.py) is the last that happens before user code.

A layer that does not hold here is left out and reported (`solo doctor`, the kernel's log, a service's status). One that
held in the trial and fails in a service fails its deploy: a service never runs with less than was reported.
"""
