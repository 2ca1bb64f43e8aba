"""The documented exit codes of every command, and the refusals that become one of them."""

from enum import IntEnum


class Exit(IntEnum):
    """What a command's exit code means."""

    PASS = 0
    WARN = 1
    USAGE = 2  # usage or configuration
    FAIL = 3
    UNREACHABLE = 4
    REFUSED = 5  # by a guard
    INTERRUPTED = 130


OF_STATUS = {"pass": Exit.PASS, "warn": Exit.WARN, "fail": Exit.FAIL}


class RefusedError(Exception):
    """A guard, or the state of things, does not permit it now; the text says why in one sentence."""


class NotInChargeError(Exception):
    """Another agent holds the lock of this cluster."""
