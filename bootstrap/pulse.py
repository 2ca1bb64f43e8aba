"""One question to a gRPC server: `/grpc.health.v1.Health/Check`, answered by a GCS and a raylet alike.

Spoken by hand, over a plain socket: HTTP/2 (RFC 9113) with header fields as plain literals (HPACK, RFC 7541,
6.2.2), because a gRPC library would take more memory than all of the keeper. Proves that a process that has
its port open also answers.
"""

import socket
import struct
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY = 0, 1, 4, 6, 7
ACK, END_STREAM, END_HEADERS = 0x1, 0x1, 0x4
SERVING = b"\x08\x01"  # HealthCheckResponse{status: SERVING}, grpc/health/v1/health.proto
MAX_FRAME = 16384


def answers_here(host: str, port: int, timeout_s: float) -> bool | None:
    """The same of a server here; None where this machine has lost the address, which proves nothing."""
    return True if answers(host, port, timeout_s) else no_answer(host)


def no_answer(host: str) -> bool | None:
    """What silence at an address proves: False, but None where this machine has lost the address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return None
    return False


def answers(host: str, port: int, timeout_s: float) -> bool:
    """Whether the server says SERVING within so many seconds; False for anything else."""
    until = time.monotonic() + timeout_s
    try:
        with socket.create_connection((host, port), timeout_s) as link:
            link.sendall(PREFACE + _frame(SETTINGS, 0, 0, b"") + _question(f"{host}:{port}"))
            return SERVING in _answer(link, until)
    except (OSError, ValueError):
        return False


def _question(authority: str) -> bytes:
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    )
    block = b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields)
    empty = b"\x00" + struct.pack(">I", 0)  # a message of no bytes, not compressed
    return _frame(HEADERS, END_HEADERS, 1, block) + _frame(DATA, END_STREAM, 1, empty)


def _text(value: str) -> bytes:
    raw = value.encode("ascii")
    if len(raw) > 126:
        raise ValueError("the address is too long for one byte of length")
    return bytes([len(raw)]) + raw


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def _answer(link: socket.socket, until: float) -> bytes:
    """The message that the server sends on our stream; empty when the stream ends without one."""
    message = b""
    while True:
        head = _read(link, 9, until)
        size, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        if size > MAX_FRAME:
            raise ValueError("no HTTP/2")
        payload = _read(link, size, until)
        if kind == SETTINGS and not flags & ACK:
            link.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            link.sendall(_frame(PING, ACK, 0, payload))
        elif kind == DATA:
            message += payload
        if kind == GOAWAY or (kind in (DATA, HEADERS) and flags & END_STREAM) or len(message) >= 7:
            return message[5:]


def _read(link: socket.socket, size: int, until: float) -> bytes:
    got = b""
    while len(got) < size:
        link.settimeout(max(0.001, until - time.monotonic()))
        more = link.recv(size - len(got))
        if not more:
            raise ConnectionResetError("closed")
        got += more
    return got
