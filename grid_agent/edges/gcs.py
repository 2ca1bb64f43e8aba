"""The GCS: its node table, and telling it that a node is dead. The one file that knows Ray's private parts.

It speaks five RPCs of the GCS (GetAllNodeInfo, UnregisterNode, GetInternalConfig, DrainNode, InternalKVGet)
over one channel, with Ray's own generated stubs, proved on the Ray minor version below. On another version
the table comes from the public `ray.nodes()`, and Ray is not told: its own health check then finds the death.
"""

import asyncio
import json
import logging
import time
from typing import Any, Protocol

import ray

from grid_agent.core import messages as m

PROVED = "2.60."
ALIVE = 0  # GcsNodeInfo.GcsNodeState.ALIVE
UNEXPECTED_TERMINATION = 2  # NodeDeathInfo.Reason
PREEMPTION = 2  # DrainNodeReason: may not be rejected by a busy node
FOR_EVER_S = 365 * 86_400.0
MAX_DEATH_TEXT = 500
log = logging.getLogger("grid_agent.gcs")


class Gcs:
    """One connection to the GCS at `address` ("host:port").

    In token mode Ray's own helper adds the authorization from RAY_AUTH_TOKEN_PATH.
    """

    def __init__(self, address: str, timeout_s: float = 2.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._api: _Api | None = None

    async def list_nodes(self) -> m.NodesListed | m.GcsWentSilent:
        """The node table, dead rows included, or that the GCS did not answer in time."""
        try:
            rows = await asyncio.wait_for(self._open().rows(self._timeout_s), self._timeout_s + 1.0)
        except Exception as error:  # noqa: BLE001 - whatever it was, the answer is unknown
            return m.GcsWentSilent(_one_line(error))
        return m.NodesListed(tuple(rows))

    async def tell_dead(self, order: m.TellRay) -> m.RayTold:
        """Report exactly this incarnation as dead, with our cause as the text people see in Ray."""
        try:
            await self._open().unregister(order.node_id, order.text[:MAX_DEATH_TEXT], self._timeout_s)
        except Exception as error:  # noqa: BLE001 - Ray's own health check remains
            return m.RayTold(order.node, order.node_id, accepted=False, detail=_one_line(error))
        return m.RayTold(order.node, order.node_id, accepted=True)

    async def drain(self, order: m.DrainNode) -> m.DrainAnswered:
        """Have Ray give this incarnation no new work; its raylet leaves by itself when it is idle."""
        until_at = time.time() + FOR_EVER_S if order.until_at is None else order.until_at
        text = order.text[:MAX_DEATH_TEXT]
        try:
            no = await self._open().drain(order.node_id, text, until_at, self._timeout_s)
        except Exception as error:  # noqa: BLE001 - it is asked again later
            no = _one_line(error)
        return m.DrainAnswered(order.node, order.node_id, accepted=no is None, detail=no or "")

    async def system_config(self) -> dict[str, Any] | None:
        """What the head was given by `--system-config`; None when that cannot be read."""
        try:
            found = await asyncio.wait_for(self._open().config(self._timeout_s), self._timeout_s + 1.0)
        except Exception as error:  # noqa: BLE001 - whatever it was, the answer is unknown
            log.debug("the GCS did not tell its settings: %s", _one_line(error))
            return None
        return found

    async def dashboard(self) -> str | None:
        """Where Ray's dashboard listens, "host:port", as it wrote down itself; None when that is not told."""
        try:
            return await asyncio.wait_for(self._open().dashboard(self._timeout_s), self._timeout_s + 1.0)
        except Exception as error:  # noqa: BLE001 - whatever it was, the answer is unknown
            log.debug("the GCS did not tell of its dashboard: %s", _one_line(error))
            return None

    async def close(self) -> None:
        """Close the channel."""
        if self._api is not None:
            await self._api.close()

    def _open(self) -> "_Api":
        if self._api is None:
            proved = ray.__version__.startswith(PROVED)
            if not proved:
                log.warning("Ray %s was not proved with this agent (%sx was)", ray.__version__, PROVED)
            self._api = _Private(self._address) if proved else _Public()
        return self._api


class _Api(Protocol):
    async def rows(self, timeout_s: float) -> list[m.NodeRow]: ...

    async def unregister(self, node_id: str, text: str, timeout_s: float) -> None: ...

    async def drain(self, node_id: str, text: str, until_at: float, timeout_s: float) -> str | None: ...

    async def config(self, timeout_s: float) -> dict[str, Any]: ...

    async def dashboard(self, timeout_s: float) -> str | None: ...

    async def close(self) -> None: ...


class _Private:
    """Ray's generated stubs over one asyncio channel."""

    def __init__(self, address: str) -> None:
        from ray._private.grpc_utils import init_grpc_channel  # noqa: PLC0415 - only where proved
        from ray.core.generated import (  # noqa: PLC0415
            autoscaler_pb2,
            autoscaler_pb2_grpc,
            gcs_service_pb2,
            gcs_service_pb2_grpc,
        )

        options = (
            ("grpc.enable_http_proxy", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        )
        self._pb = gcs_service_pb2
        self._known: dict[tuple[bytes, int], m.NodeRow] = {}
        self._channel = init_grpc_channel(address, options, asynchronous=True)
        self._stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(self._channel)
        self._drains = autoscaler_pb2_grpc.AutoscalerStateServiceStub(self._channel)
        self._drain_pb = autoscaler_pb2
        self._kv = gcs_service_pb2_grpc.InternalKVGcsServiceStub(self._channel)

    async def rows(self, timeout_s: float) -> list[m.NodeRow]:
        reply = await self._stub.GetAllNodeInfo(self._pb.GetAllNodeInfoRequest(), timeout=timeout_s)
        _check(reply.status)
        return self._rows(reply.node_info_list)

    def _rows(self, listed: Any) -> list[m.NodeRow]:
        """Of one incarnation nothing changes but whether it lives: its row is made once for each."""
        known, self._known = self._known, {}
        for info in listed:
            key = (info.node_id, info.state)
            self._known[key] = known.get(key) or _row(info)
        return list(self._known.values())

    async def unregister(self, node_id: str, text: str, timeout_s: float) -> None:
        request = self._pb.UnregisterNodeRequest(node_id=bytes.fromhex(node_id))
        request.node_death_info.reason = UNEXPECTED_TERMINATION
        request.node_death_info.reason_message = text
        reply = await self._stub.UnregisterNode(request, timeout=timeout_s)
        _check(reply.status)

    async def drain(self, node_id: str, text: str, until_at: float, timeout_s: float) -> str | None:
        """None when it was accepted, else why not."""
        request = self._drain_pb.DrainNodeRequest(
            node_id=bytes.fromhex(node_id),
            reason=PREEMPTION,
            reason_message=text,
            deadline_timestamp_ms=int(until_at * 1000),
        )
        reply = await self._drains.DrainNode(request, timeout=timeout_s)
        return None if reply.is_accepted else str(reply.rejection_reason_message or "rejected")

    async def config(self, timeout_s: float) -> dict[str, Any]:
        reply = await self._kv.GetInternalConfig(self._pb.GetInternalConfigRequest(), timeout=timeout_s)
        _check(reply.status)
        return dict(json.loads(reply.config or "{}"))

    async def dashboard(self, timeout_s: float) -> str | None:
        # Written by ray/dashboard/head.py; the names are in ray/_private/ray_constants.py.
        request = self._pb.InternalKVGetRequest(key=b"dashboard", namespace=b"dashboard")
        reply = await self._kv.InternalKVGet(request, timeout=timeout_s)
        _check(reply.status)
        return bytes(reply.value).decode() or None

    async def close(self) -> None:
        await self._channel.close()


class _Public:
    """The public table only."""

    async def rows(self, timeout_s: float) -> list[m.NodeRow]:
        listed = await asyncio.wait_for(asyncio.to_thread(ray.nodes), timeout_s)
        return [
            m.NodeRow(
                name=n["NodeName"],
                node_id=n["NodeID"],
                address=n["NodeManagerAddress"],
                port=n["NodeManagerPort"],
                alive=bool(n["Alive"]),
                started_at_ms=index,  # the public table has no start time; Ray lists oldest first
                is_head="node:__internal_head__" in n["Resources"],
                gpus=int(n["Resources"].get("GPU", 0)),
                death=n.get("DeathReasonMessage", ""),
            )
            for index, n in enumerate(listed)
        ]

    async def unregister(self, node_id: str, text: str, timeout_s: float) -> None:
        message = f"Ray {ray.__version__} was not proved with UnregisterNode; its own check will find it"
        raise NotImplementedError(message)

    async def drain(self, node_id: str, text: str, until_at: float, timeout_s: float) -> str | None:
        message = f"Ray {ray.__version__} was not proved with DrainNode"
        raise NotImplementedError(message)

    async def config(self, timeout_s: float) -> dict[str, Any]:
        message = f"Ray {ray.__version__} was not proved with GetInternalConfig"
        raise NotImplementedError(message)

    async def dashboard(self, timeout_s: float) -> str | None:
        message = f"Ray {ray.__version__} was not proved with InternalKVGet"
        raise NotImplementedError(message)

    async def close(self) -> None:
        """Nothing is held."""


def _row(info: Any) -> m.NodeRow:
    return m.NodeRow(
        name=info.node_name,
        node_id=info.node_id.hex(),
        address=info.node_manager_address,
        port=info.node_manager_port,
        alive=info.state == ALIVE,
        started_at_ms=info.start_time_ms,
        is_head=info.is_head_node,
        gpus=int(info.resources_total.get("GPU", 0)),
        death=info.death_info.reason_message,
    )


def _check(status: Any) -> None:
    if status.code:
        message = f"GCS answered with code {status.code}: {status.message}"
        raise RuntimeError(message)


def _one_line(error: Exception) -> str:
    """The error without the pages that gRPC adds to it."""
    code = getattr(error, "code", None)
    if callable(code) and hasattr(error, "details"):
        return f"{code().name}: {str(error.details())[:200]}"
    return f"{type(error).__name__}: {str(error)[:200]}".rstrip(": ")
