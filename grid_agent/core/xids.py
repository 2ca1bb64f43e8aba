"""The XIDs that matter to an operator: what each means, and what helps. Data, with its sources.

An XID is an error report of NVIDIA's driver (https://docs.nvidia.com/deploy/xid-errors/). Meanings and
actions are ours, after NVIDIA's catalogue; where the action depends on the GPU, the milder one comes first
and the other after repetition. Called by `gpus`; printed into docs/gpu.md, which a test compares.
"""

from dataclasses import dataclass
from enum import StrEnum

CATALOGUE = "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"
MEMORY = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/index.html"
RETIREMENT = "https://docs.nvidia.com/deploy/dynamic-page-retirement/visibility.html"
RECOVERY = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/error-recovery-and-response-flags.html"


class Help(StrEnum):
    """What cures it, mildest first."""

    NOTHING = "nothing to do"
    PROCESS = "restart the process that used it"
    RESET = "reset the GPU (end its processes, then nvidia-smi --gpu-reset)"
    REBOOT = "reboot the host"
    HARDWARE = "have the hardware checked"


@dataclass(frozen=True, slots=True)
class Xid:
    """One row. A `minor` one is no finding until it has come `repeats` times within a day.

    After as many repetitions `then` is advised instead of `help`.
    """

    number: int
    meaning: str
    minor: bool
    help: Help
    repeats: int
    then: Help
    source: str = CATALOGUE


TABLE = (
    Xid(
        13, "graphics engine exception, most often a fault of the program", True, Help.PROCESS, 5, Help.RESET
    ),
    Xid(31, "GPU memory page fault, most often a fault of the program", True, Help.PROCESS, 5, Help.RESET),
    Xid(43, "a program's channel was reset; the GPU itself is healthy", True, Help.PROCESS, 10, Help.RESET),
    Xid(
        45,
        "channels cleaned up after an earlier error or a killed program",
        True,
        Help.PROCESS,
        20,
        Help.RESET,
    ),
    Xid(48, "uncorrectable memory error (double bit)", False, Help.RESET, 2, Help.HARDWARE, RETIREMENT),
    Xid(62, "the GPU's internal micro-controller halted", False, Help.RESET, 2, Help.HARDWARE),
    Xid(63, "a memory row or page is marked for repair", True, Help.RESET, 3, Help.HARDWARE, MEMORY),
    Xid(
        64, "a memory row or page could not be marked for repair", False, Help.RESET, 2, Help.HARDWARE, MEMORY
    ),
    Xid(
        69,
        "graphics engine class error, most often a fault of the program",
        True,
        Help.PROCESS,
        5,
        Help.RESET,
    ),
    Xid(74, "NVLink error", False, Help.RESET, 2, Help.HARDWARE),
    Xid(79, "the GPU has fallen off the bus", False, Help.REBOOT, 2, Help.HARDWARE),
    Xid(92, "high rate of corrected memory errors", False, Help.RESET, 2, Help.HARDWARE),
    Xid(
        94,
        "contained memory error: only the program that met it is lost",
        True,
        Help.PROCESS,
        3,
        Help.RESET,
        MEMORY,
    ),
    Xid(
        95,
        "uncontained memory error: every program on the GPU is lost",
        False,
        Help.RESET,
        2,
        Help.HARDWARE,
        MEMORY,
    ),
    Xid(109, "context switch timeout", False, Help.RESET, 2, Help.REBOOT),
    Xid(
        119, "the GPU's system processor (GSP) does not answer the driver", False, Help.RESET, 2, Help.REBOOT
    ),
    Xid(120, "the GPU's system processor (GSP) reported an error", False, Help.RESET, 2, Help.REBOOT),
    Xid(140, "unrecovered memory error", False, Help.RESET, 2, Help.HARDWARE),
    Xid(143, "the GPU could not be initialised", False, Help.REBOOT, 2, Help.HARDWARE),
)
KNOWN = {xid.number: xid for xid in TABLE}
RECOVERY_ACTION = 154  # "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"


def of(number: int, text: str = "") -> Xid:
    """The row of this number; for one that is not in the table, a row that says so."""
    if number == RECOVERY_ACTION:
        return _recovery(text)
    unknown = Xid(number, "not in this catalogue", True, Help.NOTHING, 5, Help.HARDWARE)
    return KNOWN.get(number, unknown)


def _recovery(text: str) -> Xid:
    """XID 154 says itself what the driver wants done."""
    wanted = text.rsplit(" to ", 1)[-1].lower()
    words = (("reboot", Help.REBOOT), ("reset", Help.RESET), ("drain", Help.PROCESS))
    helps = next((h for word, h in words if word in wanted), Help.NOTHING)
    meaning = "the driver asks for a recovery action"
    return Xid(RECOVERY_ACTION, meaning, helps is Help.NOTHING, helps, 2, helps, RECOVERY)


def markdown() -> str:
    """The catalogue as a table, for the docs."""
    rows = (
        f"| {x.number} | {x.meaning} | {'minor' if x.minor else 'grave'} | {_word(x.help)} "
        f"| {_word(x.then)}, after {x.repeats} in a day | [NVIDIA]({x.source}) |"
        for x in TABLE
    )
    head = (
        "| XID | what it says | weight | what helps | and when it repeats | source |",
        "|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *rows)) + "\n"


def _word(helps: Help) -> str:
    return str(helps).split(" (", maxsplit=1)[0]
