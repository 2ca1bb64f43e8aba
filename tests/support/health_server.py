"""A process that speaks the raylet's health protocol and nothing else.

`python -m tests.support.health_server` prints its port. Tests kill, stop and
continue it as a raylet.
"""

import asyncio

import grpc
import grpc.aio

NOT_SERVING = b"\x08\x02"


async def serve(answer: bytes) -> None:
    """Serve until killed."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((handler(answer),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def handler(answer: bytes) -> grpc.GenericRpcHandler:
    """grpc.health.v1.Health with one method and one answer."""
    check = grpc.unary_unary_rpc_method_handler(
        _answering(answer), request_deserializer=bytes, response_serializer=bytes
    )
    return grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": check})


def _answering(answer: bytes):
    async def check(_request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        return answer

    return check


if __name__ == "__main__":
    import sys

    asyncio.run(serve(NOT_SERVING if "not-serving" in sys.argv else b"\x08\x01"))
