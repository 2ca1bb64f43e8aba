"""The probe actors: one for each node, which reads its GPUs and its load, and bears witness about others."""

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ray

from grid_agent.core import messages as m
from grid_agent.core.gpu_model import sweep_of
from grid_agent.core.model import NodeBelief
from grid_agent.core.seen import ProbeReport
from grid_agent.core.terms import Miss
from grid_agent.edges import gpu_child, gpu_nvml, gpu_reader, gpu_smi, gpu_watch, node_probe, placing

PROBE_S = 4.0
CHECK_S = 1.0  # for a peer's check of another node

for _module in (gpu_child, gpu_nvml, gpu_watch, node_probe):
    ray.cloudpickle.register_pickle_by_value(_module)


class Probes:
    """One probe actor per incarnation; its handle is dropped with the incarnation.

    `gpu` gives, for the name of a node, how its GPUs are read, as `node_probe` wants it, less the sources.
    """

    def __init__(self, temp_dir: str, gpu: Callable[[str], Mapping[str, Any]]) -> None:
        self._temp_dir = temp_dir
        self._gpu = gpu
        readers = (gpu_nvml, gpu_smi, gpu_reader)  # the vendors, and last what runs them
        self._sources = [
            (module.__name__.rsplit(".", 1)[-1], inspect.getsource(module)) for module in readers
        ]
        self._actors: dict[str, tuple[str, Any]] = {}
        # Two threads: a report that waits for a GPU driver keeps nobody from bearing witness.
        actor = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=2)
        self._class = actor(node_probe.GridAgentProbe)

    async def sweep(self, nodes: Iterable[NodeBelief]) -> Sequence[m.Event]:
        """Ask every given node's probe at once; who does not answer in time is left out."""
        asked = [self._ask(n.name, n.incarnation.node_id) for n in nodes if n.incarnation is not None]
        return [event for event in await asyncio.gather(*asked) if event is not None]

    def let_go(self, names: Iterable[str]) -> None:
        """Drop the actors of these nodes: a drain waits until a node is idle, without actors."""
        for name in names:
            self._actors.pop(name, None)

    async def check(self, order: m.AskPeer, by: NodeBelief) -> m.PeerChecked | m.PeerFailed:
        """Have the node `by` check the port of another one."""
        if by.incarnation is None:
            return m.PeerFailed(order.node, by.name, f"{by.name} has no raylet")
        try:
            actor = self._actor(by.name, by.incarnation.node_id)
            asked = actor.check_peer.remote(order.address, order.port, CHECK_S)
            seen = await placing.result(asked, CHECK_S + placing.PEER_S)
        except Exception as error:  # noqa: BLE001 - then nobody has checked
            self._actors.pop(by.name, None)
            return m.PeerFailed(order.node, by.name, placing.one_line(error))
        how = None if seen["how"] is None else Miss(seen["how"])
        return m.PeerChecked(order.node, order.node_id, by.name, how, str(seen["detail"]))

    def _actor(self, name: str, node_id: str) -> Any:
        known = self._actors.get(name)
        if known is None or known[0] != node_id:
            gpu = {**self._gpu(name), "sources": self._sources}
            known = (node_id, self._class.options(**placing.on(node_id)).remote(self._temp_dir, gpu))
            self._actors[name] = known
        return known[1]

    async def _ask(self, name: str, node_id: str) -> m.Event | None:
        try:
            seen = await placing.result(self._actor(name, node_id).report.remote(), PROBE_S)
            sweep = sweep_of(seen.pop("gpus"))
        except ray.exceptions.GetTimeoutError:
            return None
        except Exception:  # noqa: BLE001 - a dead actor is made anew at the next sweep
            self._actors.pop(name, None)
            return None
        return m.NodeProbed(name, node_id, ProbeReport(at=0.0, gpus_seen=sweep.seen, gpus=sweep, **seen))
