"""The XIDs that matter to an operator: what each means, and what helps. Data, with its sources.

An XID is an error report of NVIDIA's driver (https://docs.nvidia.com/deploy/xid-errors/). Meanings and
actions are ours, after NVIDIA's catalogue; where the action depends on the GPU, the milder one comes first
and the other after repetition. Called by `gpus`; printed into docs/gpu.md, which a test compares.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

CATALOGUE = "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"
MEMORY = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/user-visible-statistics.html"
RECOVERY = "https://docs.nvidia.com/deploy/a100-gpu-mem-error-mgmt/error-recovery-and-response-flags.html"


class Help(StrEnum):
    """What cures it, mildest first."""

    NOTHING = "nothing to do"
    PROCESS = "restart the process that used it"
    PROGRAM = "look for the fault in the program"
    SOON = "restart the process that used it; reset the GPU when convenient"
    RESET = "reset the GPU (end its processes, then nvidia-smi --gpu-reset)"
    REBOOT = "reboot the host"
    HARDWARE = "have the hardware checked"


@dataclass(frozen=True, slots=True)
class Xid:
    """One row. A `minor` one is no finding until it has come `repeats` times within a day; None: never.

    After as many repetitions `then` is advised instead of `help`.
    """

    number: int
    meaning: str
    help: Help
    then: Help = Help.HARDWARE
    repeats: int | None = 2
    minor: bool = False
    source: str = CATALOGUE


def _minor(number: int, meaning: str, helps: Help, then: Help, repeats: int) -> Xid:
    return Xid(number, meaning, helps, then, repeats, minor=True)


def _detail(number: int, meaning: str, source: str = CATALOGUE) -> Xid:
    """One that only goes with others, which say what to do."""
    return Xid(number, meaning, Help.NOTHING, Help.NOTHING, None, minor=True, source=source)


TABLE = (
    _minor(13, "graphics engine exception, often a fault of the program", Help.PROCESS, Help.HARDWARE, 5),
    _minor(31, "GPU memory page fault, often a fault of the program", Help.PROCESS, Help.HARDWARE, 5),
    _minor(43, "a program's channel was reset; the GPU is healthy", Help.NOTHING, Help.HARDWARE, 10),
    _detail(45, "channels cleaned up after another error or a killed program"),
    Xid(46, "the GPU stopped processing", Help.RESET),
    Xid(48, "uncorrectable memory error (double bit)", Help.RESET, source=MEMORY),
    Xid(54, "auxiliary power is not connected: check its cable", Help.HARDWARE),
    Xid(62, "the GPU's internal micro-controller halted", Help.RESET),
    _detail(63, "a memory row or page is marked for repair, which a finding of its own tells", MEMORY),
    Xid(64, "a memory row or page could not be marked for repair", Help.RESET, source=MEMORY),
    _minor(69, "graphics engine class error, a fault of the program", Help.PROCESS, Help.PROGRAM, 5),
    Xid(74, "NVLink error", Help.RESET),
    Xid(79, "the GPU has fallen off the bus", Help.REBOOT),
    _minor(92, "high rate of corrected memory errors", Help.NOTHING, Help.HARDWARE, 3),
    Xid(94, "contained memory error: one program is lost", Help.SOON, Help.RESET, source=MEMORY),
    Xid(95, "uncontained memory error: every program on the GPU is lost", Help.RESET, source=MEMORY),
    Xid(109, "context switch timeout", Help.RESET),
    Xid(110, "security fault", Help.RESET),
    Xid(119, "the GPU's system processor (GSP) does not answer the driver", Help.RESET, Help.REBOOT),
    Xid(120, "the GPU's system processor (GSP) reported an error", Help.RESET, Help.REBOOT),
    Xid(136, "an NVLink could not be trained", Help.RESET),
    _detail(137, "another GPU's access over NVLink was refused"),
    Xid(140, "unrecovered memory error", Help.RESET),
    Xid(143, "the GPU could not be initialised", Help.RESET),
    Xid(144, "NVLink error (SAW), where it says Fatal", Help.RESET),
    Xid(145, "NVLink error (RLW), where it says Fatal", Help.RESET),
    Xid(146, "NVLink error (TLW), where it says Fatal", Help.RESET),
    Xid(147, "NVLink error (TREX), where it says Fatal", Help.RESET),
    Xid(148, "NVLink error (NVLPW_CTRL), where it says Fatal", Help.RESET),
    Xid(149, "NVLink error (NETIR), where it says Fatal", Help.RESET),
    Xid(150, "NVLink error (MSE), where it says Fatal", Help.RESET),
    Xid(155, "NVLink error that software defined", Help.RESET, Help.REBOOT),
    Xid(156, "a part of the GPU is retired at the next reset", Help.RESET),
    Xid(158, "fatal timeout in the GPU", Help.RESET),
    _detail(171, "which memory an XID 48 is about: DRAM"),
    _detail(172, "which memory an XID 48 is about: SRAM"),
)
KNOWN = {xid.number: xid for xid in TABLE}
NVLINK5 = range(144, 151)  # "149, NETIR_LINK_EVT Fatal XC0 i0 Link 00 (...)", or "Nonfatal"
RECOVERY_ACTION = 154  # "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)"


def of(number: int, text: str = "") -> Xid:
    """The row of this number; for one that is not in the table, a row that says so."""
    if number == RECOVERY_ACTION:
        return _recovery(text)
    row = KNOWN.get(number, _minor(number, "not in this catalogue", Help.NOTHING, Help.HARDWARE, 5))
    if number in NVLINK5 and "Fatal" not in text.split():
        return replace(row, help=Help.NOTHING, repeats=5, minor=True)
    return row


def _recovery(text: str) -> Xid:
    """XID 154 says itself what the driver wants done; with nothing to do it is never a finding."""
    wanted = text.rsplit(" to ", 1)[-1].lower()
    # "flr", a function level reset: what newer drivers say instead of "GPU Reset Required".
    words = (("reboot", Help.REBOOT), ("reset", Help.RESET), ("flr", Help.RESET), ("drain", Help.PROCESS))
    helps = next((h for word, h in words if word in wanted), Help.NOTHING)
    if helps is Help.NOTHING:
        return _detail(RECOVERY_ACTION, "the driver asks for nothing", RECOVERY)
    return Xid(RECOVERY_ACTION, "the driver asks for a recovery action", helps, helps, source=RECOVERY)


def markdown() -> str:
    """The catalogue as a table, for the docs."""
    rows = (
        f"| {x.number} | {x.meaning} | {'minor' if x.minor else 'grave'} | {_word(x.help)} "
        f"| {_then(x)} | [NVIDIA]({x.source}) |"
        for x in TABLE
    )
    head = (
        "| XID | what it says | weight | what helps | and when it repeats | source |",
        "|---|---|---|---|---|---|",
    )
    return "\n".join((*head, *rows)) + "\n"


def _then(xid: Xid) -> str:
    return "never a finding" if xid.repeats is None else f"{_word(xid.then)}, after {xid.repeats} in a day"


def _word(helps: Help) -> str:
    return str(helps).split(" (", maxsplit=1)[0]
