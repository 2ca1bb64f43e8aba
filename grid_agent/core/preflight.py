"""What the hosts answered before a start -> checks: pass, warn or fail, and one line that says what to do.

Pure. A fail means that a node started there would not join, or would be lost at once; everything else warns.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from config.settings import Node, Settings
from grid_agent.core import rayports

Status = Literal["pass", "warn", "fail"]
Answer = Mapping[str, Any]

CLOCK_WARN_S = 2.0  # beyond it logs and times of two hosts no longer tell what came first
NOFILE_FAIL = 1024  # a raylet with its workers and their connections runs out of this on its first busy day
NOFILE_WARN = 8192
DISK_FAIL_MB = 512  # a session's logs and sockets, and a runtime environment
DISK_FAIL_SHARE = 0.05  # Ray's local_fs_capacity_threshold: above 95 % it spills and logs no more
DISK_WARN_SHARE = 0.10
MEMORY_WARN_SHARE = 0.10  # Ray's memory monitor kills workers above 95 %
STORE_SHARE = 0.3  # Ray's default object store, of the host's memory
STORE_LEAST_MB = 75
# How far Python must agree for Ray, "patch" by default (ray/_private/utils.py, check_version_info).
LEVEL = "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL"
HOST_KEY = ("host_key_changed", "host_key_unknown")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: which node, what was looked at, how it is, and what to do."""

    node: str
    check: str
    status: Status
    detail: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A host's answer to `facts`; when it was asked and answered by our clock, seconds since the epoch."""

    answer: Answer
    sent_at: float
    answered_at: float


def of_host(settings: Settings, node: Node, asked: Asked, versions: Mapping[str, str]) -> list[Finding]:
    """Everything but the ports.

    Args:
        settings: The cluster.
        node: Whose host answered.
        asked: What it answered.
        versions: Ray and Python of the head: {"ray": "2.60.0", "python": "3.11.7"}.
    """
    return [Finding(node.name, *row) for row in _of_host(settings, node, asked, versions)]


Row = tuple[str, Status, str]


def _of_host(settings: Settings, node: Node, asked: Asked, versions: Mapping[str, str]) -> Iterator[Row]:
    answer = asked.answer
    if not answer.get("ok"):
        error = str(answer.get("error"))
        check = "host key" if error in HOST_KEY else "ssh" if answer.get("unreached") else "look"
        yield check, "fail", f"{answer.get('detail', error)}"
        return
    if settings.ssh is not None and node.role == "worker":
        yield "ssh", "pass", "reached"
        yield "host key", "pass", "is the known one"
    yield _ray(answer["ray"], versions, node.env.get(LEVEL))
    yield _clock(asked)
    yield _nofile(*answer["nofile"])
    yield _disk(answer["disk"])
    yield _shm(node, answer)
    yield _memory(answer["memory"])
    yield _gpus(node, answer["gpus"])
    yield _others(answer["others"], alone=settings.ssh is not None)


def _ray(found: Answer, versions: Mapping[str, str], level: str | None) -> Row:
    """As Ray compares: its own version, and Python's to the last digit unless `level` says minor."""
    ray, python, where = versions["ray"], versions["python"], found["command"]
    want = f"Ray {ray} on Python {python}"
    if where is None:
        text = "there is no `ray` command: install Ray there, or set ssh.ray_bin (ray_bin of the node)"
        return "ray", "fail", text
    have = [(theirs, _whole(minor, found.get("python"))) for theirs, minor in found["versions"]]
    if not have:
        return "ray", "warn", f"{where}: its version could not be read; the head has {want}"
    if (ray, python) in have:
        return "ray", "pass", f"{where}: {want}"
    text = f"{where} is {' and '.join(f'Ray {r} on Python {p}' for r, p in have)}; the head has {want}"
    alike = [p for r, p in have if r == ray and _minor(p) == _minor(python)]
    if not alike:
        return "ray", "fail", f"{text}: install that, or set ray_bin"
    if level == "minor":
        return "ray", "pass", f"{text}, and {LEVEL} lets it join"
    if _minor(python) in alike:
        return "ray", "warn", f"{text}: the last digit could not be read, and Ray lets no other join"
    return "ray", "fail", f"{text}: Ray lets no other join; install that, or set {LEVEL}: minor in its env"


def _whole(minor: str, version: str | None) -> str:
    """The whole version of the Python that a Ray is installed for, where it is the one that was asked."""
    return version if version is not None and _minor(version) == minor else minor


def _minor(python: str) -> str:
    return ".".join(python.split(".")[:2])


def _clock(asked: Asked) -> Row:
    """The offset that the answer proves: its time was taken between our question and its arrival."""
    now = float(asked.answer["now"])
    offset_s = min(max(0.0, now - asked.answered_at), 1e9) - min(max(0.0, asked.sent_at - now), 1e9)
    if abs(offset_s) < CLOCK_WARN_S:
        return (
            "clock",
            "pass",
            f"within {max(CLOCK_WARN_S, asked.answered_at - asked.sent_at):.1f} s",
        )
    way = "ahead of" if offset_s > 0 else "behind"
    return "clock", "warn", f"at least {abs(offset_s):.1f} s {way} the head's: run an NTP client on both"


def _nofile(soft: int, hard: int) -> Row:
    """Ray raises the soft limit of its workers to the hard one; the raylet keeps the soft one."""
    text = f"{_limit(soft)} open files (hard limit {_limit(hard)})"
    advice = "raise nofile in /etc/security/limits.conf, or LimitNOFILE= of sshd, to 65536"
    if 0 <= soft < NOFILE_FAIL or 0 <= hard < NOFILE_FAIL:
        return "ulimit", "fail", f"{text}: Ray runs out of them; {advice}"
    if 0 <= hard < NOFILE_WARN:
        return "ulimit", "warn", f"{text}: few for a busy node; {advice}"
    return "ulimit", "pass", text


def _limit(value: int) -> str:
    return "unlimited" if value < 0 else str(value)


def _disk(found: Answer) -> Row:
    if "error" in found:
        return (
            "disk",
            "fail",
            f"the temp dir cannot be looked at ({found['error']}): set another temp_dir",
        )
    free, total, where = found["free_mb"], max(1, found["total_mb"]), found["path"]
    text = f"{free} MiB free of {total} ({100 * free / total:.0f} %) at {where}"
    if not found["writable"]:
        return "disk", "fail", f"{where} may not be written by this user: change its owner, or set temp_dir"
    if free < DISK_FAIL_MB or free / total < DISK_FAIL_SHARE:
        return "disk", "fail", f"{text}: Ray stops spilling at 95 % full; free some, or set temp_dir"
    if free / total < DISK_WARN_SHARE:
        return "disk", "warn", f"{text}: nearly full; free some, or set temp_dir"
    return "disk", "pass", text


def _shm(node: Node, answer: Answer) -> Row:
    found = answer["shm"]
    if "error" in found:
        return (
            "shm",
            "warn",
            f"none: {found['error']}; Ray then keeps objects on disk, which is slow",
        )
    store = node.object_store_memory_mb or int(STORE_SHARE * answer["memory"]["total_mb"])
    text = f"{found['free_mb']} MiB free in /dev/shm, object store {store}"
    if found["free_mb"] < max(store, STORE_LEAST_MB):
        advice = "mount it larger, or set object_store_memory_mb"
        return "shm", "warn", f"{text}: Ray then keeps objects on disk, which is slow; {advice}"
    return "shm", "pass", text


def _memory(found: Answer) -> Row:
    share = found["available_mb"] / max(1, found["total_mb"])
    text = f"{found['available_mb']} MiB available of {found['total_mb']}"
    if share < MEMORY_WARN_SHARE:
        return "memory", "warn", f"{text}: Ray kills workers at 95 % used; see what else runs there"
    return "memory", "pass", text


def _gpus(node: Node, found: Answer) -> Row:
    seen, wanted, why = found["seen"], node.num_gpus, f" ({found['why']})" if found["why"] else ""
    if seen is None:
        return "gpus", "warn", f"not known{why}: see whether nvidia-smi answers there"
    if wanted is None or seen >= wanted:
        return "gpus", "pass", f"{seen} seen by NVML{why if wanted else ''}"
    text = f"{seen} seen by NVML{why}, num_gpus is {wanted}: tasks would land on GPUs that are not there"
    return "gpus", "warn", text


def _others(found: Iterable[Answer], *, alone: bool) -> Row:
    """Other clusters' processes; a cluster on one machine may have them beside it."""
    rows = list(found)
    if not rows:
        return "other ray", "pass", "none runs there"
    if not alone:
        return "other ray", "pass", f"{len(rows)} processes of other clusters run on this machine"
    who = ", ".join(
        f"{o['name']} pid {o['pid']} of {o['gcs_address']} (user {o['user'] or '?'})" for o in rows[:4]
    )
    text = f"another cluster's {who}: both count all CPUs, GPUs and memory as theirs; stop one"
    return "other ray", "warn", text


@dataclass(frozen=True, slots=True)
class Blocked:
    """Ports of one host that another could not open, and how that looked."""

    source: str
    destination: str
    ports: tuple[int, ...]
    how: str


def blocked(answers: Mapping[str, Answer]) -> list[Blocked]:
    """Every pair of hosts between which a port is closed, from what each of them reported.

    A refused connection counts where the other host says that it listened: something in between refuses.
    Where it does not say so nothing is known.
    """
    found = []
    for source, answer in sorted(answers.items()):
        for destination, ports in sorted((answer.get("reached") or {}).items()):
            heard = (answers.get(destination) or {}).get("listening")
            if destination not in answers or heard is None:
                continue
            closed = {
                int(port): said
                for port, said in ports.items()
                if said not in ("ok", "somebody else answers")
                and not (said == "refused" and heard.get(port) != "ok")
                and heard.get(port, "ok") == "ok"
            }
            if closed:
                how = ", ".join(dict.fromkeys(closed.values()))
                found.append(Blocked(source, destination, tuple(sorted(closed)), how))
    return found


def of_ports(settings: Settings, answers: Mapping[str, Answer]) -> list[Finding]:
    """The ports between all hosts that answered: one finding a host, and whom it is blamed on.

    Between a worker and the head the worker is blamed. Between workers it is the smallest set of them without
    which all others reach each other, greedily: the one in most of the pairs first.
    """
    pairs = blocked(answers)
    blame: dict[str, list[str]] = {}
    left = []
    head = settings.head.name
    for pair in pairs:
        if head in (pair.source, pair.destination):
            other = pair.destination if pair.source == head else pair.source
            blame.setdefault(other, []).append(_closed(pair))
        else:
            left.append(pair)
    left = [pair for pair in left if not {pair.source, pair.destination} & blame.keys()]
    order = [node.name for node in settings.nodes]
    while left:
        counts = {
            name: sum(name in (p.source, p.destination) for p in left)
            for name in {n for p in left for n in (p.source, p.destination)}
        }
        worst = max(counts, key=lambda name: (counts[name], order.index(name)))
        mine = [p for p in left if worst in (p.source, p.destination)]
        blame[worst] = [_closed(pair) for pair in mine]
        left = [pair for pair in left if pair not in mine]
    findings = []
    for node in settings.nodes:
        answer = answers.get(node.name)
        if answer is None:
            continue
        heard = answer.get("listening") or {}
        taken = [p for p, said in heard.items() if said != "ok" and int(p) not in rayports.WORKERS]
        if not answer.get("ok"):
            text = f"could not be tried: {answer.get('detail', answer.get('error'))}"
            findings.append(Finding(node.name, "ports", "warn", text))
        elif taken:
            reasons = ", ".join(f"{p} ({answer['listening'][p]})" for p in taken)
            text = f"cannot be used there: {reasons}; end what holds them, or set ray.first_node_port"
            findings.append(Finding(node.name, "ports", "fail", text))
        elif node.name in blame:
            text = "; ".join(blame[node.name][:3])
            advice = "open them in the firewalls: grid-agent ports prints the rules"
            findings.append(Finding(node.name, "ports", "fail", f"{text}: {advice}"))
        else:
            findings.append(Finding(node.name, "ports", "pass", "open to and from the others"))
    return findings


def _closed(pair: Blocked) -> str:
    ports = ", ".join(map(str, pair.ports))
    return f"{pair.source} cannot open {ports} of {pair.destination} ({pair.how})"
