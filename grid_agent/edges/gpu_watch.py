"""When the child that reads GPUs is asked, and what is known meanwhile.

The part of the probe that stays well whatever the driver does.
Called by `node_probe`; shipped by value, standard library and `gpu_child` only.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from grid_agent.edges.gpu_child import Child

BURST_S = 60.0  # as in `core.gpu_events`, which this file cannot import
KEEP_TIMES = 32
FIRST_FACTOR = 3.0  # the first answer takes longer: a driver without persistence mode wakes every GPU


def merged(known: "dict[str, Any] | None", event: Mapping[str, Any]) -> dict[str, Any]:
    """The newest event of a kind, with `times`: when each burst of them began (see `core.gpu_events`)."""
    at, times = event["at"], known["times"] if known else []
    if all(abs(at - begun) >= BURST_S for begun in times):
        times = sorted([*times, at])[-KEEP_TIMES:]
    if known is None:
        return {**event, "times": times}
    older, newer = sorted((known, event), key=lambda e: e["at"])
    keep = not newer["text"] or "Fatal" in older["text"].split()
    return {**newer, "text": older["text"] if keep else newer["text"], "times": times}


class Usable:
    """Whether each GPU can be used: one GPU after the other, each in a process of its own, which then ends.

    Args:
        child: The process; it is made anew for each GPU.
        every_s: Seconds between two rounds; 0: never.
        timeout_s: The deadline for one GPU in seconds.
    """

    def __init__(self, child: Child, every_s: float, timeout_s: float) -> None:
        self._child = child
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._next_at = 0.0
        self._queue: list[str] = []
        self._asked: tuple[str, float] | None = None
        self.why_not: dict[str, str] = {}

    def look(self, now: float, uuids: Sequence[str], vendor: str) -> None:
        """Go on with the round; `why_not` has what is known, "" for a GPU that can be used."""
        if self._every_s <= 0 or not self._child.gone_or_asked:
            return
        if self._asked is None and not self._queue and now >= self._next_at and uuids:
            self._queue, self._next_at = list(uuids), now + self._every_s
            self.why_not = {uuid: why for uuid, why in self.why_not.items() if uuid in uuids}
        if self._asked is None and self._queue:
            uuid = self._queue.pop(0)
            self._child.ask({"op": "usable", "vendor": vendor, "uuid": uuid})
            self._asked = (uuid, now)
        if self._asked is not None:
            self._collect(now, *self._asked)

    def _collect(self, now: float, uuid: str, asked_at: float) -> None:
        answer = self._child.answer(0.0)
        if answer is not None:
            self.why_not[uuid] = str(answer["why_not"])
        elif self._child.died:
            self.why_not[uuid] = f"making a CUDA context: {self._child.died}"
        elif now - asked_at < self._timeout_s:
            return
        else:
            self.why_not[uuid] = f"making a CUDA context takes longer than {self._timeout_s:g} s"
        self._asked = None
        self._child.kill()


class Watch:
    """Sweeps at their interval, each with its deadline. `look` is called often and never waits for long.

    Args:
        child: The reader.
        every_s: Seconds between two sweeps; 0 switches the reading off.
        timeout_s: The deadline of one sweep in seconds; the first of a process may take three times that.
        usable: What tries the GPUs that were seen, if anything does.
    """

    def __init__(self, child: Child, every_s: float, timeout_s: float, usable: Usable | None = None) -> None:
        self._usable = usable
        self._child = child
        self._every_s = every_s
        self._timeout_s = timeout_s
        self._asked_at: float | None = None
        self._next_at = 0.0
        self._stuck = False
        self._count = 0
        self._last: dict[str, Any] = {"state": "waiting" if every_s else "off", "detail": ""}
        self._events: dict[tuple[str, int], dict[str, Any]] = {}

    def look(self, now: float, wait_s: float) -> dict[str, Any]:
        """What is known now: the last answer with `state` ok, waiting, off, failed, hangs or stuck."""
        if self._every_s <= 0:
            return self._last
        if self._stuck and not self._child.gone():
            return {**self._last, "events": list(self._events.values())}
        self._stuck = False
        if self._asked_at is None and now >= self._next_at:
            self._next_at = now + self._every_s
            left = self._child.left_behind()
            if left:
                self._fail("stuck", f"the reader of an earlier probe ({left}) does not even end when killed")
            else:
                self._child.ask({"op": "sweep"})
                self._asked_at = now
        if self._asked_at is not None:
            self._collect(now, wait_s)
        return {**self._last, "events": list(self._events.values()), **self._tried(now)}

    def _tried(self, now: float) -> dict[str, Any]:
        """The GPUs of the last sweep with what their trial has shown."""
        gpus = self._last.get("gpus", ())
        if self._usable is None or not gpus:
            return {}
        here = [gpu["uuid"] for gpu in gpus if not gpu["error"]]
        self._usable.look(now, here, self._last["vendor"])
        why = self._usable.why_not
        tried = [why[uuid] for uuid in here if uuid in why]
        return {
            "gpus": [{**g, "unusable": why.get(g["uuid"], "")} for g in gpus],
            "usable": tried.count("") if len(tried) == len(here) else None,
        }

    def _collect(self, now: float, wait_s: float) -> None:
        assert self._asked_at is not None
        answer = self._child.answer(wait_s)
        if answer is not None:
            self._asked_at = None
            self._count += 1
            # A report may get lost on its way: the events are told again in each of the next ones.
            for event in answer.pop("events"):
                kind = (event["bus_id"], event["number"])
                self._events[kind] = merged(self._events.get(kind), event)
            self._last = {**answer, "state": "ok", "number": self._count}
        elif self._child.died:
            self._asked_at = None
            self._fail("failed", self._child.died)
        elif now - self._asked_at >= self._timeout_s * (FIRST_FACTOR if self._child.fresh else 1.0):
            waited_s, self._asked_at = now - self._asked_at, None
            if self._child.kill():
                self._fail("hangs", f"no answer in {waited_s:.0f} s; the reader was ended")
            else:
                self._stuck = True
                how = f"state {self._child.stat()}"
                self._fail(
                    "stuck", f"the reader (pid {self._child.pid}) does not even end when killed, {how}"
                )

    def _fail(self, state: str, detail: str) -> None:
        self._count += 1
        self._last = {**self._last, "state": state, "detail": detail, "number": self._count}
