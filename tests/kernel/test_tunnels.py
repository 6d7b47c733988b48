"""WireGuard devices on the real kernel: made, adopted, mended, removed; judged by `wg` and by `ip`.

The same tests run on kernel WireGuard where the kernel has it (scripts/kernel-vm boots one that does), and on a
userspace engine where one is installed.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.daemon import public_keys
from cni.daemon.model import keys
from cni.host import wg_engine, wg_tuning
from cni.host.tunnel_routes import TunnelRoute
from cni.host.tunnels import Device, Tunnels
from cni.host.wg_types import NoEngine, PeerChange
from tests.mesh.fleet import kernel_has_wireguard

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("wg") is None, reason="wg (wireguard-tools) judges the devices, and is missing"),
]
NAME = f"zlt{os.getpid()}"
PORT = 51999
KEY, OTHER = keys.generate(), keys.generate()
PEER, SECOND = public_keys.public_of(keys.generate()), public_keys.public_of(keys.generate())
NODE = ipaddress.ip_interface("10.200.0.17/32")


HAVE = {"kernel": kernel_has_wireguard(), **{name: bool(wg_engine.find(name)) for name in wg_engine.PROGRAMS}}
ENGINES = [name for name, there in HAVE.items() if there]


@pytest.mark.parametrize("engine", HAVE)
def test_this_machine_has_the_engine(engine: str) -> None:
    """Nothing but the word about what the other tests run on."""
    if not HAVE[engine]:
        pytest.skip(f"no {engine} here: the tests below are run without it")
    assert engine in ENGINES


class Lab:
    """Tunnels inside a namespace of the test's own."""

    def __init__(self, space: Any, engine: str, logs: Path) -> None:
        self.space = space
        self.engine = engine
        self.logs = logs
        self.tunnels = space.inside(lambda: Tunnels(str(logs), engine))

    def __call__(self, work: Callable[[Tunnels], Any]) -> Any:
        return self.space.inside(lambda: work(self.tunnels))

    def ensure(self, key: str = KEY, port: int = PORT, mtu: int = 1420, addresses: Any = (NODE,)) -> Any:
        return self(lambda t: t.ensure(Device(NAME, key, port, mtu, tuple(addresses))))

    def wg(self, what: str) -> str:
        words = ["ip", "netns", "exec", self.space.name, "wg", "show", NAME, what]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()

    def again(self) -> None:
        """As after a restart of the daemon: nothing is remembered."""
        self(lambda t: t.close())
        self.tunnels = self.space.inside(lambda: Tunnels(str(self.logs), self.engine))


@pytest.fixture(params=ENGINES)
def lab(request: pytest.FixtureRequest, host: Any, tmp_path: Path) -> Iterator[Lab]:
    host.ip("link set lo up")
    made = Lab(host, request.param, tmp_path)
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made(lambda t: t.remove(NAME))
        made(lambda t: t.close())


def test_a_device_is_what_was_asked_for(lab: Lab) -> None:
    seen = lab.ensure()
    assert (seen.name, seen.engine, seen.port, seen.peers) == (NAME, lab.engine, PORT, {})
    assert lab.wg("public-key") == public_keys.public_of(KEY)
    assert lab.wg("listen-port") == str(PORT)
    link = lab.space.link(NAME)
    assert link is not None
    assert link["mtu"] == 1420
    assert link["state"] == "up"
    assert str(NODE) in lab.space.addresses(NAME)


def test_a_second_daemon_adopts_it_with_its_peers(lab: Lab) -> None:
    lab.ensure()
    lab(lambda t: t.change(NAME, [PeerChange(PEER, endpoint="192.0.2.7:5", allowed_ips=("10.200.5.0/26",))]))
    index, pid = lab.space.link(NAME)["index"], lab(lambda t: t.read(NAME)).pid
    lab.again()
    seen = lab.ensure()
    assert lab.space.link(NAME)["index"] == index
    assert seen.pid == pid
    assert seen.peers[PEER].allowed_ips == {"10.200.5.0/26"}


def test_what_is_wrong_is_put_right_in_place(lab: Lab) -> None:
    lab.ensure()
    index = lab.space.link(NAME)["index"]
    other = ipaddress.ip_interface("10.200.9.1/32")
    seen = lab.ensure(key=OTHER, port=PORT + 1, mtu=1380, addresses=[other])
    assert seen.port == PORT + 1
    assert lab.wg("public-key") == public_keys.public_of(OTHER)
    link = lab.space.link(NAME)
    assert (link["index"], link["mtu"]) == (index, 1380)
    assert lab.space.addresses(NAME) & {str(NODE), str(other)} == {str(other)}


def test_peers_come_change_and_go(lab: Lab) -> None:
    lab.ensure()
    change = lab.tunnels.change
    lab(lambda t: change(NAME, [PeerChange(PEER, "", "192.0.2.7:51420", ("10.200.5.0/26", "fd00::/120"), True, 25)]))
    seen = lab(lambda t: t.read(NAME)).peers[PEER]
    assert (seen.endpoint, seen.allowed_ips, seen.keepalive) == ("192.0.2.7:51420", {"10.200.5.0/26", "fd00::/120"}, 25)
    assert seen.last_handshake == 0
    assert lab.wg("endpoints").split() == [PEER, "192.0.2.7:51420"]
    lab(lambda t: change(NAME, [PeerChange(PEER, endpoint="[2001:db8::5]:9", allowed_ips=("10.200.6.0/26",))]))
    seen = lab(lambda t: t.read(NAME)).peers[PEER]
    assert (seen.endpoint, seen.keepalive) == ("[2001:db8::5]:9", 25)
    assert seen.allowed_ips == {"10.200.5.0/26", "10.200.6.0/26", "fd00::/120"}
    lab(lambda t: change(NAME, [PeerChange(PEER, allowed_ips=("10.200.6.0/26",), replace=True)]))
    assert lab(lambda t: t.read(NAME)).peers[PEER].allowed_ips == {"10.200.6.0/26"}
    for _ in range(2):
        lab(lambda t: change(NAME, [PeerChange(PEER, remove=True)]))
        assert lab(lambda t: t.read(NAME)).peers == {}


def test_a_thousand_peers(lab: Lab) -> None:
    lab.ensure()
    made = [keys.generate() for _ in range(1000)]  # a private key is as good a public one as any, here
    changes = [
        PeerChange(key, endpoint="192.0.2.1:5", allowed_ips=(f"10.{n // 250}.{n % 250}.0/26", f"fd00:{n + 1:x}::/64"))
        for n, key in enumerate(made)
    ]
    lab(lambda t: t.change(NAME, changes))
    seen = lab(lambda t: t.read(NAME)).peers
    assert {key: peer.allowed_ips for key, peer in seen.items()} == {c.public_key: set(c.allowed_ips) for c in changes}


def test_a_peer_with_many_networks(lab: Lab) -> None:
    lab.ensure()
    many = tuple(f"10.{n >> 8}.{n & 255}.0/26" for n in range(3000))
    lab(lambda t: t.change(NAME, [PeerChange(PEER, allowed_ips=many, replace=True)]))
    assert lab(lambda t: t.read(NAME)).peers[PEER].allowed_ips == set(many)


def test_a_link_of_another_kind_is_left_alone(lab: Lab) -> None:
    lab.space.ip(f"link add {NAME} type bridge")
    with pytest.raises(OSError, match="bridge"):
        lab.ensure()
    lab(lambda t: t.remove(NAME))
    assert lab.space.link(NAME)["kind"] == "bridge"
    lab.space.ip(f"link del {NAME}")


def test_removing_twice(lab: Lab) -> None:
    lab.ensure()
    for _ in range(2):
        lab(lambda t: t.remove(NAME))
        assert lab.space.link(NAME) is None
    assert lab(lambda t: t.read(NAME)) is None


def test_an_engine_that_was_killed_is_started_again(lab: Lab) -> None:
    pid = lab.ensure().pid
    if not pid:
        pytest.skip("the kernel's cannot be killed")
    os.kill(pid, signal.SIGKILL)
    _wait(lambda: lab.space.link(NAME) is None)
    assert lab(lambda t: t.read(NAME)) is None
    seen = lab.ensure()
    assert seen.pid not in (0, pid)
    assert lab.wg("public-key") == public_keys.public_of(KEY)


def test_an_engine_is_in_a_session_of_its_own(lab: Lab) -> None:
    pid = lab.ensure().pid
    if not pid:
        pytest.skip("the kernel's is no process")
    assert os.getsid(pid) == pid


def test_an_engines_sockets_have_room(lab: Lab) -> None:
    """Judged by ss: `rb` and `tb` are what a socket may hold, in bytes. A new port is a new socket."""
    if lab.engine == "kernel":
        pytest.skip("the kernel's own WireGuard has no socket that fills up")
    for port in (PORT, PORT + 1):
        deadline, room = time.monotonic() + 20, [0]
        while min(room) < wg_tuning.ROOM and time.monotonic() < deadline:
            lab.ensure(port=port)  # an engine opens its sockets when it gets round to it; the daemon looks again too
            words = ["ip", "netns", "exec", lab.space.name, "ss", "-Huanm", "sport", "=", f":{port}"]
            said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
            room = [int(found) for found in re.findall(r"\b[rt]b(\d+)", said)] or [0]
        assert min(room) >= wg_tuning.ROOM


def test_the_port_is_taken(lab: Lab) -> None:
    holder = lab.space.inside(lambda: _udp(PORT))
    try:
        with pytest.raises(OSError, match="in use"):
            lab.ensure()
    finally:
        holder.close()
    assert lab.ensure().port == PORT


def _udp(port: int) -> Any:
    import socket

    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", port))
    return sock


def test_routes_are_these_and_no_others(lab: Lab) -> None:
    lab.ensure()
    net = ipaddress.ip_network
    first = by_dst(
        TunnelRoute(net("10.200.5.0/26"), 0, NODE.ip),
        TunnelRoute(net("fd00:5::/64")),
        TunnelRoute(net("10.200.6.0/26"), 1300),
    )
    for _ in range(2):
        assert lab(lambda t: t.ensure_routes(NAME, first)) == {}
        assert _routes(lab) == {"10.200.5.0/26", "10.200.6.0/26", "fd00:5::/64"}
    said = _ip(lab, "route", "get", "10.200.6.1")
    assert "mtu 1300" in said
    assert f"src {NODE.ip}" in _ip(lab, "route", "get", "10.200.5.1")
    lab(lambda t: t.ensure_routes(NAME, by_dst(TunnelRoute(net("10.200.6.0/26"), 1200))))
    assert _routes(lab) == {"10.200.6.0/26"}
    assert "mtu 1200" in _ip(lab, "route", "get", "10.200.6.1")
    lab(lambda t: t.ensure_routes(NAME, {}))
    assert _routes(lab) == set()


def by_dst(*routes: TunnelRoute) -> dict[ipaddress.IPv4Network | ipaddress.IPv6Network, TunnelRoute]:
    return {route.dst: route for route in routes}


@pytest.mark.parametrize(
    "change",
    [
        "route del 10.200.5.0/26",
        "route change 10.200.6.0/26 dev {} scope link proto static mtu 1200",
        "-6 route del fd00:5::/64",
        "route add 10.200.7.0/26 dev {} scope link proto static",
    ],
)
def test_what_somebody_changes_is_mended_for_the_very_same_wish(lab: Lab, change: str) -> None:
    """Nothing is read in detail while nothing has changed; so each kind of change must be noticed."""
    lab.ensure()
    net = ipaddress.ip_network
    wanted = by_dst(
        TunnelRoute(net("10.200.5.0/26")), TunnelRoute(net("fd00:5::/64")), TunnelRoute(net("10.200.6.0/26"))
    )
    for _ in range(3):
        assert lab(lambda t: t.ensure_routes(NAME, wanted)) == {}
    right = _ip(lab, "route", "show", "dev", NAME), _ip(lab, "-6", "route", "show", "dev", NAME)
    lab.space.ip(change.format(NAME))
    assert (_ip(lab, "route", "show", "dev", NAME), _ip(lab, "-6", "route", "show", "dev", NAME)) != right
    assert lab(lambda t: t.ensure_routes(NAME, wanted)) == {}
    assert (_ip(lab, "route", "show", "dev", NAME), _ip(lab, "-6", "route", "show", "dev", NAME)) == right


def test_a_route_of_somebody_else_is_not_replaced(lab: Lab) -> None:
    lab.ensure()
    lab.space.ip("link add zltbr type bridge", "address add 10.200.5.1/26 dev zltbr", "link set zltbr up")
    net = ipaddress.ip_network
    wanted = by_dst(TunnelRoute(net("10.200.5.0/26")), TunnelRoute(net("10.200.6.0/26")))
    for _ in range(3):
        assert lab(lambda t: t.ensure_routes(NAME, wanted)) == {net("10.200.5.0/26"): errno.EEXIST}
    assert "dev zltbr" in _ip(lab, "route", "get", "10.200.5.9")
    assert _routes(lab) == {"10.200.6.0/26"}


def test_the_way_to_an_address(lab: Lab) -> None:
    lab.space.ip("link add zltbr mtu 1400 type bridge", "address add 192.0.2.1/24 dev zltbr", "link set zltbr up")
    address = ipaddress.ip_address
    way = lab(lambda t: t.way_to(address("192.0.2.9")))
    assert (way.link, way.mtu) == (lab.space.link("zltbr")["index"], 1400)
    assert lab(lambda t: t.way_to(address("198.51.100.1"))) is None
    lab.space.ip("route add 198.51.100.0/24 via 192.0.2.254 mtu 1350")
    assert lab(lambda t: t.way_to(address("198.51.100.1"))).mtu == 1350
    asked = [address(each) for each in ("198.51.100.1", "203.0.113.1", "192.0.2.9", "2001:db8::1")]
    ways = lab(lambda t: t.ways_to(asked))
    assert [ways[each].mtu if ways[each] is not None else None for each in asked] == [1350, None, 1400, None]


def test_the_node_answers_for_who_lives_behind_a_tunnel(lab: Lab) -> None:
    lab.space.ip("link add zltbr type bridge", "link set zltbr up")
    for _ in range(2):
        lab(lambda t: t.proxy("zltbr", NODE.ip))
        assert f"{NODE.ip} dev zltbr proxy" in _ip(lab, "neigh", "show", "proxy")
    for _ in range(2):
        lab(lambda t: t.proxy("zltbr", NODE.ip, on=False))
        assert _ip(lab, "neigh", "show", "proxy") == ""


def test_no_engine_says_what_to_do(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wg_engine, "PLACES", "")
    monkeypatch.setenv("PATH", "")
    if HAVE["kernel"]:
        pytest.skip("this kernel is engine enough")
    tunnels = host.inside(lambda: Tunnels(str(tmp_path)))
    with pytest.raises(NoEngine, match="apt-get install wireguard-go"):
        host.inside(lambda: tunnels.ensure(Device(NAME, KEY, PORT, 1420)))


def test_an_engine_of_another_namespace_is_not_ours(lab: Lab, container: Any, tmp_path: Path) -> None:
    if not lab.ensure().pid:
        pytest.skip("kernel devices have no name beyond their namespace")
    other = container.inside(lambda: Tunnels(str(tmp_path), lab.engine))
    with pytest.raises(OSError, match="another network namespace"):
        container.inside(lambda: other.ensure(Device(NAME, KEY, PORT, 1420)))
    assert lab.wg("public-key") == public_keys.public_of(KEY)


def _ip(lab: Lab, *words: str) -> str:
    done = subprocess.run(["ip", "-n", lab.space.name, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _routes(lab: Lab) -> set[str]:
    lines = _ip(lab, "route", "show", "dev", NAME) + "\n" + _ip(lab, "-6", "route", "show", "dev", NAME)
    return {line.split()[0] for line in lines.splitlines() if line and not line.startswith(("fe80", "ff00"))}


def _wait(what: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)
