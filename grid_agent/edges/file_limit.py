"""How many files a process may have open (RLIMIT_NOFILE), beside what an agent of so many nodes needs.

Called before a cluster is started, and by the agent, which uses what the system allows it.
"""

import logging
import resource

PER_NODE = 3  # its held channel, a new one beside it, and an SSH session or a task's pipe
OWN = 512  # Ray's worker, the HTTP server, logs
log = logging.getLogger("grid_agent")


def needed(nodes: int) -> int:
    """About how many files the agent of so many nodes has open on a bad day."""
    return OWN + PER_NODE * nodes


def too_low(nodes: int) -> str | None:
    """Why this process may not open enough files, and what to do; None when it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= needed(nodes):
        return None
    return (
        f"a process may open {hard} files here, and the agent of {nodes} nodes needs about {needed(nodes)}: "
        "raise the hard limit (nofile in /etc/security/limits.conf, LimitNOFILE= in a systemd unit), "
        "then log in again"
    )


def provide(nodes: int) -> None:
    """Take what the system allows, the soft limit is often below it; log it where that is too little."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if (why := too_low(nodes)) is not None:
        log.warning("%s", why)
