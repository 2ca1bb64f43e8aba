"""The truth about the hosts of a simulated world, and how unkind it is to whoever asks about them."""

from dataclasses import dataclass, field


@dataclass(eq=False)
class Process:
    """One raylet process: the truth, not what anybody believes."""

    number: int  # counts up; its id, pid and time of start in one
    hung: bool = False
    hung_until: float | None = None  # None: for ever
    harmed: bool = False  # something was ever done to it
    listed: bool | None = None  # its GCS row: None before it registers, False when marked dead
    silent_since: float | None = None  # dead or hung, so Ray's own check runs against it

    @property
    def node_id(self) -> str:
        """Ray's name for this life."""
        return f"{self.number:08d}"


@dataclass
class Host:
    """One machine: the raylets that live on it, and whether the head can reach it."""

    raylets: list[Process] = field(default_factory=list)
    cut_until: float = 0.0
    busy_until: float = 0.0  # it runs no tasks
    stale: dict[str, float] = field(default_factory=dict)  # raylet: until then its old links are
    away_until: float = 0.0  # for the head only: peers reach it
    slow_until: float = 0.0
    stalled_until: float = 0.0  # slow, and no login begins
    lossy_until: float = 0.0
    loss: float = 0.0  # share of the checks that get no answer meanwhile
    delayed_until: float = 0.0
    delay_s: tuple[float, float] = (0.0, 0.0)  # that each answer takes meanwhile
    checked_at: float = 0.0
    missed: bool = False

    def process(self, node_id: str | None) -> Process | None:
        """The living raylet of this id."""
        return next((p for p in self.raylets if p.node_id == node_id), None)


@dataclass(frozen=True)
class Chances:
    """How unkind the world is, as probabilities: of one heartbeat, one look, one start, one answer."""

    heartbeat_lost: float = 0.0
    look_late: float = 0.0  # by up to 40 s
    look_twice: float = 0.0
    look_lost: float = 0.0  # whoever looked died midway
    look_lies: float = 0.0  # "no such process", whatever is there
    start_fails: float = 0.0
    start_crashes: float = 0.0
    start_lies: float = 0.0  # "started", and nothing was
    answer_lost: float = 0.0  # fenced and started, and whoever did it died
    answer_twice: float = 0.0
