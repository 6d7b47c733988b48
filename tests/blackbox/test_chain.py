"""BB-L24, L26 and conformance 13: plugins after us, plugins before us, and what callers ask for."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from .conftest import find_reference
from .harness import netns, shapes
from .harness.template import Json
from .harness.world import HOST, Container, World, with_prev

Lab = Callable[[str], World]
At = Callable[..., str]
Need = Callable[[str], None]

CHAINED = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
MAC = "c2:11:22:33:44:55"


@dataclass
class Chain:
    """A list of plugins as libcni runs it: ADD forwards with the result passed on, DEL backwards."""

    world: World
    confs: list[Json]
    box: Container
    results: list[Json] = field(default_factory=list)

    def command(self, conf: Json) -> list[str] | None:
        if conf is self.confs[0]:
            return None
        return [str(find_reference(conf["type"]))]

    def warm(self) -> None:
        self.world.warm(self.confs[0])
        self.box.remove()

    def add(self) -> Json:
        for conf in self.confs:
            passed = {**conf, "prevResult": self.results[-1]} if self.results else conf
            self.results.append(self.box.add(passed, command=self.command(conf)).ok())
        return self.results[-1]

    def check(self) -> None:
        for conf in self.confs:
            self.box.check(conf, self.results[-1], command=self.command(conf)).ok()

    def delete(self) -> None:
        for conf in reversed(self.confs):
            prev = with_prev(conf, self.results[-1])
            self.box.delete(prev, command=self.command(conf)).ok()


@pytest.fixture
def chain(lab: Lab) -> Iterator[Callable[..., Chain]]:
    """`chain(version, {"type": "portmap", ...})` is the plugin with others after it."""
    world = lab("base")

    def make(version: str, *others: Json, **keys: object) -> Chain:
        for other in others:
            if find_reference(other["type"]) is None:
                pytest.skip(f"there is no {other['type']} here (reference.sh makes it)")
        conf = world.conf(version, **keys)
        shared = {"cniVersion": version, "name": conf["name"]}
        return Chain(world, [conf, *({**shared, **other} for other in others)], world.container())

    return make  # type: ignore[return-value]


FOLLOWERS: dict[str, tuple[str, Json]] = {
    "portmap": (
        "0.3.0",
        {
            "type": "portmap",
            "snat": True,
            "runtimeConfig": {"portMappings": [{"hostPort": 18080, "containerPort": 80, "protocol": "tcp"}]},
        },
    ),
    "bandwidth": (
        "0.3.0",
        {
            "type": "bandwidth",
            "ingressRate": 8000000,
            "ingressBurst": 8000000,
            "egressRate": 8000000,
            "egressBurst": 8000000,
        },
    ),
    "tuning": (
        "0.3.0",
        {"type": "tuning", "mtu": 1280, "mac": MAC, "sysctl": {"net.ipv4.conf.IFNAME.arp_filter": "1"}},
    ),
    "firewall": ("0.4.0", {"type": "firewall", "backend": "iptables"}),
}


@pytest.mark.parametrize("follower", FOLLOWERS)
@pytest.mark.parametrize("at_version", CHAINED)
def test_l26_a_plugin_after_us(
    chain: Callable[..., Chain], template_versions: list[str], at_version: str, follower: str
) -> None:
    """ADD, CHECK and DEL of the whole list; afterwards everything is as after the first time."""
    first, conf = FOLLOWERS[follower]
    if at_version < first or at_version not in template_versions:
        pytest.skip(f"{follower} begins at {first}")
    if follower == "tuning":
        conf = {**conf, "dataDir": str(chain(at_version).world.dir / "tuning")}
    before = None
    chain(at_version).warm()
    for _ in range(2):
        run = chain(at_version, conf)
        final = run.add()
        shapes.validate(run.results[0], at_version)
        assert shapes.addresses(final) == shapes.addresses(run.results[0])
        if at_version in {"0.4.0", "1.0.0", "1.1.0"}:
            run.check()
        run.delete()
        assert run.box.link() is None
        run.box.remove()
        before = before or run.world.snapshot()
    run.world.assert_baseline(before)


def test_l26_a_published_port(chain: Callable[..., Chain], at: At) -> None:
    """portmap after us: a connection from outside to the host's port reaches the container."""
    run = chain(at("1.0.0"), FOLLOWERS["portmap"][1])
    run.add()

    def listen() -> socket.socket:
        return socket.create_server(("0.0.0.0", 80))

    with closing(netns.inside(run.box.path, listen)) as server:
        server.settimeout(30)
        client = netns.inside(run.world.outside, lambda: socket.create_connection((HOST, 18080), timeout=30))
        with closing(client), closing(server.accept()[0]) as accepted:
            accepted.sendall(b"hello")
            assert client.recv(5) == b"hello"
    run.delete()


@pytest.fixture
def template_versions(world: World) -> list[str]:
    return world.template.versions


@pytest.mark.parametrize("at_version", CHAINED)
def test_pr5_a_plugin_before_us(world: World, template_versions: list[str], at_version: str) -> None:
    """Second in a list: merge, with indexes that fit, or refuse with 7; never drop what was there."""
    if at_version not in template_versions:
        pytest.skip("not claimed")
    earlier = {
        "cniVersion": at_version,
        "interfaces": [{"name": "first0"}, {"name": "net9", "sandbox": "/run/netns/x", "mac": MAC}],
        "ips": [{"address": "192.0.2.5/24", "interface": 1, **({"version": "4"} if at_version < "1" else {})}],
    }
    box = world.container()
    answer = box.add({**world.conf(at_version), "prevResult": earlier})
    if answer.rc != 0:
        answer.failed(7)
        assert box.link() is None
        return
    result = answer.ok()
    shapes.validate(result, at_version)
    names = [item["name"] for item in result["interfaces"]]
    assert {"first0", "net9", "eth0"} <= set(names)
    owners = {item["address"]: names[item["interface"]] for item in result["ips"]}
    assert owners.pop("192.0.2.5/24") == "net9"
    assert set(owners) == box.addresses() and set(owners.values()) == {"eth0"}


def test_pr4_a_previous_result_that_cannot_be_read(world: World, at: At) -> None:
    conf = world.conf(at("1.0.0"))
    for prev in (7, "x", {"cniVersion": "1.0.0", "ips": "x"}, {"cniVersion": "1.0.0", "interfaces": [7]}):
        box = world.container()
        box.add({**conf, "prevResult": prev}).failed()
        assert box.link() is None


WAYS = {
    "CNI_ARGS": ({}, f"MAC={MAC}"),
    "args": ({"args": {"cni": {"mac": MAC}}}, "MAC=c2:00:00:00:00:01"),
    "runtimeConfig": (
        {"args": {"cni": {"mac": "c2:00:00:00:00:02"}}, "runtimeConfig": {"mac": MAC}},
        "MAC=c2:00:00:00:00:01",
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_l24_a_mac_that_was_asked_for(world: World, at: At, need: Need, way: str) -> None:
    """runtimeConfig before args.cni before CNI_ARGS (K4)."""
    need("mac")
    keys, args = WAYS[way]
    box = world.container()
    result = box.attach({**world.conf(at("1.0.0")), **keys}, args=f"IgnoreUnknown=1;{args}")
    link = box.link()
    assert link is not None and link["address"] == MAC == shapes.inside(result)[0]["mac"]


@pytest.mark.parametrize("mac", ["banana", "c2:11", "c2:11:22:33:44:zz"])
def test_l24_a_mac_that_is_none(world: World, at: At, need: Need, mac: str) -> None:
    need("mac")
    box = world.container()
    box.add({**world.conf(at("1.0.0")), "runtimeConfig": {"mac": mac}}).failed()
    assert box.link() is None


@pytest.mark.parametrize("args", ["NOPAIR", "A=B=C", "=", "ZLT_UNHEARD=a", "IgnoreUnknown=0;X=Y", "IP=banana"], ids=str)
def test_k3_cni_args_that_are_wrong(world: World, at: At, need: Need, args: str) -> None:
    need("mac")
    box = world.container()
    box.add(world.conf(at("1.0.0")), args=args).failed()
    assert box.link() is None


@pytest.mark.parametrize(
    "args",
    [
        "",
        "IgnoreUnknown=1;X=Y",
        "IgnoreUnknown=true",
        "X=Y;IgnoreUnknown=TRUE",
        "K8S_POD_UID=73c855f1;IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=first;K8S_POD_INFRA_CONTAINER_ID=de09",
    ],
    ids=["empty", "ignored", "true", "upper", "kubernetes"],
)
def test_k3_cni_args_that_are_fine(world: World, at: At, args: str) -> None:
    conf = world.conf(at("1.0.0"))
    box = world.container()
    result = box.attach(conf, args=args)
    box.delete(conf, prev=result, args=args).ok()


def test_keys_are_read_without_regard_to_case(world: World, at: At, need: Need) -> None:
    """Go does, and containerd capitalises (conformance 14)."""
    need("mac")
    conf = world.conf(at("1.0.0"))
    version, name = conf.pop("cniVersion"), conf.pop("name")
    odd = {"CNIVersion": version, "NAME": name, **conf, "RuntimeConfig": {"Mac": MAC}, "Capabilities": {"mac": True}}
    box = world.container()
    result = box.attach(odd)
    shapes.validate(result, version)
    assert shapes.inside(result)[0]["mac"] == MAC
    box.delete(odd, prev=result).ok()
    assert box.link() is None


@pytest.mark.parametrize("case", [str.lower, str.capitalize], ids=["spec", "containerd"])
def test_dns_of_the_runtime(world: World, at: At, need: Need, case: Callable[[str], str]) -> None:
    """runtimeConfig.dns has other names for its members than a result's dns (13)."""
    need("capability-dns")
    dns = {case("servers"): ["10.96.0.10"], case("searches"): ["a.test"], case("options"): ["ndots:5"]}
    result = world.container().attach({**world.conf(at("1.0.0")), "runtimeConfig": {"dns": dns}})
    assert result["dns"] == {"nameservers": ["10.96.0.10"], "search": ["a.test"], "options": ["ndots:5"]}
