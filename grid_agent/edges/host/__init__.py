"""The program that does on a host what has to be done there; begin with `program`.

It runs in a thread here, by value inside a Ray task, or piped to `python3` over SSH as one text. Therefore
the standard library of Python 3.9 only, and nothing kept between two calls.
"""

PACKAGE = "grid_agent.edges.host"
# In the order in which they are loaded on a host: each needs only those before it.
NAMES = (
    "common",
    "procs",
    "ports",
    "parts",
    "last_words",
    "remains",
    "locks",
    "ending",
    "starter",
    "starting",
    "clearing",
    "looking",
    "program",
)
