"""A slow cable: between a host's port and the switch, each frame waits its time. Root; no netem is needed.

Run as a program in the network namespace of the switch, with the port, the seconds each way and a jitter: it
puts a TAP device into the port's place and carries every frame by hand. Frames go with the header by which
the kernel says that a checksum is still to be made (struct virtio_net_hdr, linux/virtio_net.h).
"""

import contextlib
import fcntl
import heapq
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from tests.support.hosts import Lab
from tests.support.netns import tool

TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
SOL_PACKET, PACKET_IGNORE_OUTGOING, PACKET_VNET_HDR, ETH_P_ALL = 263, 23, 15, 3
MOST = 70_000  # bytes of a frame that the kernel has not cut yet


@contextlib.contextmanager
def delayed(lab: Lab, host: str, delay_s: float, jitter_s: float = 0.0) -> Iterator[None]:
    """A cable on which everything to and from this host takes so long, each way."""
    port = lab.hosts[host].port
    program = lab.on_switch([sys.executable, "-m", "tests.support.delay", port, str(delay_s), str(jitter_s)])
    relay = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    try:
        assert relay.stdout is not None
        assert relay.stdout.readline() == "carries\n"
        yield
        assert relay.poll() is None, "the relay ended before its time"
    finally:
        relay.terminate()
        relay.communicate(timeout=10)
        lab.ip("link", "set", port, "master", "switch")


def main() -> None:
    """Carry frames until we are ended."""
    port, delay_s, jitter_s = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"slow", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    cable.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    cable.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    cable.bind((port, ETH_P_ALL))
    for words in (
        ["set", port, "nomaster"],
        ["set", port, "promisc", "on"],
        ["set", "slow", "master", "switch", "up"],
    ):
        subprocess.run([tool("ip"), "link", *words], check=True)
    print("carries", flush=True)
    waiting: list[tuple[float, int, Callable[[bytes], object], bytes]] = []
    for number in range(sys.maxsize):
        wait_s = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1.0
        ready, _, _ = select.select([tap, cable], [], [], wait_s)
        now = time.monotonic()
        at = now + delay_s + random.uniform(0.0, jitter_s)
        if tap in ready:
            heapq.heappush(waiting, (at, 2 * number, cable.send, os.read(tap, MOST)))
        if cable in ready:
            heapq.heappush(
                waiting, (at, 2 * number + 1, lambda frame: os.write(tap, frame), cable.recv(MOST))
            )
        while waiting and waiting[0][0] <= now:
            _, _, send, frame = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # a cable loses a frame, too
                send(frame)


if __name__ == "__main__":
    main()
