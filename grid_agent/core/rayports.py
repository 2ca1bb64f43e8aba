"""The ports Ray uses on hosts of their own, fixed so that a firewall can be written: flags, flows, rules.

Pure. What each port is for is in Ray's page on ports
(https://docs.ray.io/en/latest/ray-core/configure.html#ports-configurations).
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from config.settings import Node, Settings

# Ray's own default range for the workers (and drivers) of a node, said so that it is certain.
WORKERS = (10_002, 19_999)
# The flags of `ray start`, in the order of the ports from `ray.first_node_port` on, and what each is for.
FLAGS = (
    ("--node-manager-port", "raylet: leases, health checks"),
    ("--object-manager-port", "objects between nodes"),
    ("--dashboard-agent-grpc-port", "dashboard to its agent"),
    ("--dashboard-agent-listen-port", "dashboard to its agent, HTTP"),
    ("--runtime-env-agent-port", "only inside the host"),
    ("--metrics-export-port", "Prometheus, if there is one"),
)
NODE_MANAGER, OBJECT_MANAGER, AGENT_GRPC, AGENT_HTTP = range(4)


@dataclass(frozen=True, slots=True)
class Flow:
    """Who opens a connection to whom; `first` to `last` are TCP ports of the destination."""

    source: str
    destination: str
    first: int
    last: int
    what: str

    @property
    def ports(self) -> str:
        """As a firewall writes them."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def flags(settings: Settings) -> list[str]:
    """For `ray start`: the fixed ports; on one machine, which holds many raylets, only free ones."""
    first = settings.first_node_port
    if first is None:
        # 0: any free one. On a clash of the fixed default the agent would live on without its HTTP service.
        return ["--dashboard-agent-listen-port=0"]
    fixed = [f"{flag}={first + offset}" for offset, (flag, _) in enumerate(FLAGS)]
    return [*fixed, f"--min-worker-port={WORKERS[0]}", f"--max-worker-port={WORKERS[1]}"]


def flows(settings: Settings) -> list[Flow]:
    """All that has to pass between the hosts; empty on one machine."""
    first = settings.first_node_port
    if first is None:
        return []
    ssh = sorted({_ssh_port(settings, node) for node in settings.workers})
    return [
        *(Flow("head", "worker", port, port, "SSH, to start and repair") for port in ssh),
        Flow("worker", "head", settings.ray.port, settings.ray.port, "GCS"),
        *(
            Flow(source, destination, first + offset, first + offset, FLAGS[offset][1])
            for offset in (NODE_MANAGER, OBJECT_MANAGER)
            for source, destination in (("head", "worker"), ("worker", "head"), ("worker", "worker"))
        ),
        *(
            Flow("head", "worker", first + offset, first + offset, FLAGS[offset][1])
            for offset in (AGENT_GRPC, AGENT_HTTP)
        ),
        *(
            Flow(source, destination, *WORKERS, "tasks and actors")
            for source, destination in (("head", "worker"), ("worker", "head"), ("worker", "worker"))
        ),
    ]


def sampled(settings: Settings, source: Node, destination: Node) -> list[int]:
    """The ports that one host tries on another: each of its flows, of a range both ends."""
    wanted = (source.role, destination.role)
    ports = [
        port
        for flow in flows(settings)
        if (flow.source, flow.destination) == wanted and not flow.what.startswith("SSH")
        for port in (flow.first, flow.last)
    ]
    return sorted(set(ports))


def nftables(settings: Settings, node: Node, sources: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """An nftables table that lets this node's flows in, and drops the rest of those ports.

    Args:
        settings: The cluster.
        node: Whose firewall it is.
        sources: "head" and "worker" -> the addresses of those hosts.
    """
    yield "table inet grid_agent {"
    yield "  chain input {"
    yield "    type filter hook input priority 0; policy accept;"
    yield '    iifname "lo" accept'
    yield "    ct state established,related accept"
    ports: list[str] = []
    for flow in flows(settings):
        if flow.destination != node.role or flow.what.startswith("SSH"):
            continue
        ports.append(flow.ports)
        for address in sources[flow.source]:
            family = "ip6" if ":" in address else "ip"
            yield f'    {family} saddr {address} tcp dport {flow.ports} accept comment "{flow.what}"'
    yield f"    tcp dport {{ {', '.join(dict.fromkeys(ports))} }} drop"
    yield "  }"
    yield "}"


def _ssh_port(settings: Settings, node: Node) -> int:
    assert settings.ssh is not None
    return node.ssh_port or settings.ssh.port
