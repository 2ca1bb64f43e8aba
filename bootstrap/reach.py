"""Asks the hosts of a cluster: which of its raylets run there, start one, end one, end everything.

Every question goes through the transport of the node's host, so that a worker on another host is asked
the same way as one on this machine. Many hosts are asked at once; one that has not answered is not asked
again, so that a hanging host costs one timeout and delays nobody else.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from bootstrap.plan import Action
from config import paths
from config.paths import StatePaths
from config.settings import Node, Settings
from grid_agent.core import raystart, startrequest
from grid_agent.edges import hosts
from grid_agent.edges.transports import FAN_OUT, Transport, Transports, start_program, versions_here

LOOK_S = 10.0
END_S = 30.0
LOCK_WAIT_S = 60.0  # for a start of the node that is under way, by the agent for example
HEAD_WAIT_S = 30.0
GRACE_S = 15.0  # for the answer itself, and for cleaning up after a start that did not end in time

Ways = Callable[[str], Transport]
Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Raylet:
    """One raylet of this cluster as its host shows it."""

    name: str
    pid: int
    node_id: str
    gcs_address: str
    session_dir: str
    head: bool
    uid: int | None = None


class Reach:
    """The hosts of one cluster, those that have left its file (`former`) too.

    `gcs_address` tells its processes from those of other clusters; `unreachable` has the answer of each node
    whose host could not be asked.
    """

    def __init__(
        self,
        settings: Settings,
        gcs_address: str,
        uid: int,
        state: StatePaths,
        *,
        former: Settings | None = None,
        ways: Ways | None = None,
    ) -> None:
        self.settings = settings
        self.gcs_address = gcs_address
        self.unreachable: dict[str, Answer] = {}
        self._uid = uid
        self._state = state
        self._owner = {n.name: former for n in former.nodes} if former else {}
        self._owner |= {node.name: settings for node in settings.nodes}
        self._nodes = {name: _node(owner, name) for name, owner in self._owner.items()}
        known = {id(owner): Transports(owner, state) for owner in self._owner.values()}
        self._ways = ways or (lambda name: known[id(self._owner[name])](name))
        self._room = threading.BoundedSemaphore(FAN_OUT)

    def heads(self) -> list[Raylet]:
        """The heads' raylets on this machine at the cluster's port, whoever's and whatever their address."""
        head = self.settings.head.name
        answer = self._call(head, {"op": "look", "gcs_port": self.settings.ray.port}, LOOK_S)
        return [raylet for raylet in self._rows(head, answer) if raylet.head]

    def raylets(self) -> dict[str, Raylet]:
        """Every raylet of this user at the address, by name; a host that does not answer shows none."""
        return {raylet.name: raylet for raylet in self.everyone() if self._of_user(raylet)}

    def everyone(self) -> list[Raylet]:
        """Every raylet at the address that a host shows, on this machine also those of other users."""
        look = {"op": "look", "gcs_address": self.gcs_address}
        if self.settings.ssh is None:
            asked: dict[str, Answer] = {self.settings.head.name: look}
        else:
            asked = {name: {**look, "node_name": name} for name in self._nodes}
        answers = self._ask_all(asked, LOOK_S)
        return [row for name, answer in answers.items() for row in self._rows(name, answer)]

    def raylet(self, name: str) -> Raylet | None:
        """The raylet of one node, None also when its host does not answer."""
        request = {"op": "look", "gcs_address": self.gcs_address, "node_name": name}
        rows = self._rows(name, self._call(name, request, LOOK_S))
        return next((raylet for raylet in rows if self._of_user(raylet)), None)

    def start(self, action: Action) -> Answer:
        """Start one node and wait until its raylet is up."""
        owner, node = self._owner[action.node], self._nodes[action.node]
        request = startrequest.start_request(
            owner,
            node,
            argv=action.argv,
            env=action.env,
            gcs_address=self.gcs_address,
            state=self._state,
            timeout_s=action.timeout_s,
            lock_wait_s=action.timeout_s,  # the agent may be healing this very node
            versions=versions_here(),
            program=start_program(),
        )
        try:
            request = hosts.with_token(request, str(self._state.ray_token))
        except OSError as error:
            detail = f"Cannot read {self._state.ray_token}: {error.strerror}. stop.py, then start.py."
            return {"ok": False, "error": "auth", "detail": detail}
        return self._call(action.node, request, 2 * action.timeout_s + GRACE_S)

    def end(
        self, raylet: Raylet | None, node: Node, heads_session: str | None = None, *, by_name: bool = True
    ) -> Answer:
        """End the raylets of a node's name (else only this one) and whatever they left there."""
        owner = self._owner[node.name]
        request = {
            "op": "end",
            "gcs_address": self.gcs_address,
            "node_name": node.name,
            "all_of_name": by_name,
            "log_monitor": owner.ssh is not None,
            "session_dir": paths.session_dir(owner, node, heads_session, self._uid),
            "lock": paths.node_files(owner, node, self._state).lock,
            "lock_wait_s": LOCK_WAIT_S,
        }
        if raylet is not None:
            request |= {"raylet_pid": raylet.pid, "node_id": raylet.node_id}
            request |= {"session_dir": raylet.session_dir}
        return self._call(node.name, request, LOCK_WAIT_S + END_S)

    def end_cluster(
        self,
        timeout_s: float,
        *,
        session_dir: str | None = None,
        temp_dir: str | None = None,
        busy: Set[str] = frozenset(),
    ) -> dict[str, Answer]:
        """End everything of this cluster: on all other hosts at once, then on this machine.

        Args:
            timeout_s: Longest time for the ending itself on a host, in seconds; a start that is under way is
                waited for before that.
            session_dir: The head's session folder, where it is known.
            temp_dir: Where the head kept its sessions, by default where it would keep them now.
            busy: Nodes of this machine whose start has been waited for in vain.

        Returns:
            The answer of every host, under the name of its node.
        """
        head = self.settings.head
        names = [name for name in self._nodes if name != head.name]
        requests = {name: self._end_request([name], session_dir) for name in names}
        answers = self._ask_all(requests, LOCK_WAIT_S + timeout_s) if self.settings.ssh is not None else {}
        here = [name for name in names if name not in busy and self._is_local(name)]
        last = self._end_request([head.name, *here], session_dir)
        last |= {"temp_dir": temp_dir} if temp_dir else {}
        return {**answers, head.name: self._call(head.name, last, LOCK_WAIT_S + timeout_s)}

    def end_head(self, timeout_s: float, *, session_dir: str | None = None) -> Answer:
        """End what is left of the head on this machine; workers live on."""
        head = self.settings.head
        request = {
            **self._end_request([head.name], session_dir),
            "op": "end_head",
            "lock_wait_s": HEAD_WAIT_S,
        }
        return self._call(head.name, request, HEAD_WAIT_S + timeout_s)

    def _end_request(self, names: list[str], heads_session: str | None) -> Answer:
        """For the host of the first of these nodes, under the locks of all of them."""
        owner, node = self._owner[names[0]], self._nodes[names[0]]
        files = [paths.node_files(self._owner[name], self._nodes[name], self._state) for name in names]
        return {
            "op": "end_cluster",
            "gcs_address": self.gcs_address,
            "session_dir": paths.session_dir(owner, node, heads_session, self._uid),
            "temp_dir": paths.temp_dir(owner, node, self._uid),
            "secrets": [] if self._is_local(names[0]) else [files[0].ray_token],
            "lock": [file.lock for file in files],
            "lock_wait_s": LOCK_WAIT_S,
        }

    def _is_local(self, name: str) -> bool:
        return raystart.is_local(self._owner[name], self._nodes[name])

    def port_owner(self, port: int) -> Mapping[str, Any] | None:
        """Who listens on a port of this machine: pid, name, user; None where nobody is seen."""
        request = {"op": "port_owner", "ports": [port]}
        answer = self._call(self.settings.head.name, request, LOOK_S)
        owner = (answer.get("ports") or {}).get(str(port))
        return owner if owner and owner.get("pid") else None

    def close(self) -> None:
        """Let go of the kept connections to all hosts that were asked."""
        asyncio.run(self._close())

    async def _close(self) -> None:
        ways = [self._ways(name) for name in self._nodes if name not in self.unreachable]
        await asyncio.gather(*(way.close() for way in ways if isinstance(way, hosts.SshHost)))

    def _rows(self, name: str, answer: Answer) -> list[Raylet]:
        return [
            Raylet(
                name=row["node_name"] or "",
                pid=row["pid"],
                node_id=row["node_id"] or "",
                gcs_address=row["gcs_address"] or "",
                session_dir=row["session_dir"] or "",
                head=bool(row["head"]),
                uid=row["uid"] if raystart.is_local(self._owner[name], self._nodes[name]) else None,
            )
            for row in answer.get("raylets", ())
        ]

    def _of_user(self, raylet: Raylet) -> bool:
        return raylet.uid is None or raylet.uid == self._uid  # None: of the account on another host

    def _ask_all(self, requests: Mapping[str, Answer], timeout_s: float) -> dict[str, Answer]:
        async def all_at_once() -> dict[str, Answer]:
            room = asyncio.Semaphore(FAN_OUT)

            async def ask(name: str) -> Answer:
                async with room:
                    return await self._ask(name, requests[name], timeout_s)

            return dict(zip(requests, await asyncio.gather(*map(ask, requests)), strict=True))

        return asyncio.run(all_at_once())

    def _call(self, name: str, request: Answer, timeout_s: float) -> Answer:
        with self._room:
            return asyncio.run(self._ask(name, request, timeout_s))

    async def _ask(self, name: str, request: Answer, timeout_s: float) -> Answer:
        if name not in self.unreachable:
            answer = await self._ways(name).call(request, timeout_s)
            if not answer.get("unreached"):
                return answer
            self.unreachable[name] = answer
        return self.unreachable[name]


def _node(settings: Settings, name: str) -> Node:
    return next(node for node in settings.nodes if node.name == name)
