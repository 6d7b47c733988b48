"""What the overlay door of a real daemon says to agents that ask for what cannot be: the contract's own words (6)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator

import pytest

from cni.overlay import wire
from tests.kernel.overlayd import A_KEY, B_KEY, Agent, Node, node

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture(scope="module")
def here() -> Iterator[Node]:
    with node("w") as made:
        (made.directory / "data").mkdir(mode=0o755)
        (made.directory / "data/overlayd.yaml").write_text("address_cooldown: 600\n")
        made.start()
        yield made


@pytest.fixture
def agent(here: Node) -> Iterator[Agent]:
    made = here.agent()
    yield made
    made.ok(wire.TeardownGlobalOverlay())
    made.close()


@pytest.mark.parametrize("pid", [0, 4194300, os.getpid(), 2**32 - 1])
def test_a_service_that_is_not_there_is_named_before_the_process_is_looked_at(agent: Agent, pid: int) -> None:
    assert agent.error(wire.AttachContainer(wire.LinuxPid(pid), "absent", False)) == (
        "no service bridge for service absent; call setup_service_overlay() first"
    )


def test_peers_that_are_not_there(agent: Agent) -> None:
    for key in (B_KEY, "no key at all", ""):
        agent.ok(wire.RemovePeer(key))
        agent.ok(wire.RemoveAllowedIp(key, "10.200.9.0/26"))
        assert agent.error(wire.AddAllowedIp(key, "10.200.9.0/26")) == (
            f"overlay engine error: add_allowed_ip failed: cannot add allowed_ip 10.200.9.0/26 to unknown peer {key}"
        )
    for ask in (wire.AddAllowedIp(B_KEY, "nonsense"), wire.RemoveAllowedIp("no key", "nonsense")):
        assert agent.error(ask).startswith("invalid CIDR nonsense: ")
    scope = wire.ServiceScope("absent")
    for scoped in (
        wire.AddPeer(A_KEY, "203.0.113.7:51420", "10.200.9.0/26", 25, scope=scope),
        wire.RemovePeer("no key at all", scope),
        wire.AddAllowedIp(A_KEY, "10.200.9.0/26", scope),
        wire.RemoveAllowedIp(A_KEY, "10.200.9.0/26", scope),
    ):
        assert agent.error(scoped) == "no dedicated overlay for service absent"
    assert agent.error(wire.AddPeer(A_KEY, "nonsense", "10.200.9.0/26", 25)) == (
        "invalid peer endpoint nonsense: invalid socket address syntax"
    )


def test_a_slice_has_thirteen_addresses_and_then_says_so(agent: Agent) -> None:
    agent.setup_global()
    leased = [agent.ask(wire.AllocateIp("absent", False)) for _ in range(13)]
    assert leased == [wire.IpReply(f"10.200.0.{n}") for n in range(18, 31)]
    exhausted = "overlay engine error: IP allocator exhausted: next address 10.200.0.31 is outside slice 10.200.0.16/28"
    assert agent.error(wire.AllocateIp("absent", False)) == exhausted
    assert agent.error(wire.MintEdgePeer(name="ci", ttl_secs=60, node_endpoint="192.0.2.1:51420")) == exhausted
    assert agent.error(wire.AttachContainer(wire.HostShared("p"), "absent", True)) == exhausted
    for reply in leased:
        assert isinstance(reply, wire.IpReply)
        agent.ok(wire.ReleaseIp(reply.ip))
    # They are free, but in their cooldown: it ends, and the error says so.
    assert agent.error(wire.AllocateIp("absent", False)) == f"{exhausted}; 13 of it rest for 600 s after use"


def test_a_cluster_has_so_many_services_and_then_says_so(agent: Agent) -> None:
    agent.setup_global(cluster_cidr="10.77.0.0/24", slice_cidr=None)
    for service in ("a", "b", "c"):  # of four slots one holds the node's own address
        agent.setup(service)
    assert agent.error(wire.SetupServiceOverlay("d", "auto")) == (
        "overlay engine error: ServiceSubnetRegistry::assign(d, 0) failed: No available IP addresses in CIDR range"
    )
    for service in ("a", "b", "c"):
        agent.ok(wire.TeardownServiceOverlay(service))


@pytest.mark.parametrize(
    ("cluster", "sizes", "last"),
    [
        ("10.78.0.0/26", "slice prefix /26 must be more specific than cluster prefix /26", 62),
        ("10.79.0.0/28", "slice prefix /26 must be more specific than cluster prefix /28", 14),
        ("fd00:78::/124", "slice prefix /120 must be more specific than cluster prefix /124", 15),
    ],
)
def test_a_cluster_too_small_for_services_says_so_when_one_is_set_up(
    agent: Agent, here: Node, cluster: str, sizes: str, last: int
) -> None:
    assert agent.setup_global(cluster_cidr=cluster, slice_cidr=None) == wire.BridgeName("zl-prod-42-g")
    assert agent.status().overlay_cidr == cluster
    first = ipaddress.ip_network(cluster)[0]
    assert agent.status().node_ip == str(first + 1)
    for mode in ("auto", "shared", "dedicated", "isolated"):
        assert agent.error(wire.SetupServiceOverlay("web", mode)) == (
            f"failed to build ServiceSubnetRegistry: Invalid CIDR notation: {sizes}"
        )
    assert agent.status().service_count == 0
    assert not [name for name in here.links() if name.endswith("-b")]

    pid = here.process()
    asked = here.plugin("ADD", "web", pid)
    assert (asked["code"], asked["msg"]) == (
        7,
        f"failed to build ServiceSubnetRegistry: Invalid CIDR notation: {sizes}",
    )
    assert cluster in asked["details"]
    assert here.plugin("DEL", "web", pid) == {}
    assert here.plugin("STATUS", "web")["code"] == 50

    leased = [agent.ask(wire.AllocateIp("absent", False)) for _ in range(last - 1)]
    assert leased[-1] == wire.IpReply(str(first + last)), "all of the range but the node's own address, and no more"
    assert "IP allocator exhausted" in agent.error(wire.AllocateIp("absent", False))
    for reply in leased:
        assert isinstance(reply, wire.IpReply)
        agent.ok(wire.ReleaseIp(reply.ip))
