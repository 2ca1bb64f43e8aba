"""A stand-in for the GCS: the two RPCs that the agent uses, spoken with Ray's own generated messages.

`python -m tests.support.gcs_server` reads the rows (JSON: name, node_id, port) from its input, prints its
port, and serves until killed. Rows are as large as those of a real node.
"""

import asyncio
import json
import sys
import time
from typing import Any

import grpc
import grpc.aio
from ray.core.generated import gcs_service_pb2 as pb
from ray.core.generated import gcs_service_pb2_grpc

ALIVE, DEAD = 0, 1


class NodeInfo(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """The node table in memory."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self._reply = pb.GetAllNodeInfoReply()
        self._by_id = {}
        for number, row in enumerate(rows):
            info = self._reply.node_info_list.add()
            info.node_id = bytes.fromhex(row["node_id"])
            info.node_name, info.node_manager_address = row["name"], "127.0.0.1"
            info.node_manager_port, info.object_manager_port = row["port"], 8076
            info.node_manager_hostname = f"host-of-{row['name']}"
            info.state, info.is_head_node = ALIVE, number == 0
            info.start_time_ms = int(time.time() * 1000)
            info.object_store_socket_name = (
                "/tmp/ray/session_2026-01-01_00-00-00_000000_1/sockets/plasma_store"
            )
            info.raylet_socket_name = "/tmp/ray/session_2026-01-01_00-00-00_000000_1/sockets/raylet"
            for name, amount in {"CPU": 64, "GPU": 8, "memory": 4e11, "object_store_memory": 1e11}.items():
                info.resources_total[name] = amount
            info.resources_total[f"node:10.0.{number >> 8}.{number & 255}"] = 1
            info.labels["ray.io/node-id"] = row["node_id"]
            self._by_id[row["node_id"]] = info

    async def GetAllNodeInfo(self, request: Any, context: Any) -> Any:  # noqa: N802 - Ray's name
        return self._reply

    async def UnregisterNode(self, request: Any, context: Any) -> Any:  # noqa: N802 - Ray's name
        info = self._by_id[request.node_id.hex()]
        info.state = DEAD
        info.death_info.CopyFrom(request.node_death_info)
        return pb.UnregisterNodeReply()


async def serve(rows: list[dict[str, Any]]) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(NodeInfo(rows), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(json.loads(sys.stdin.readline())))
