"""`dns: {intercept: true}`: the node answers what containers ask any server, or asks the server that they asked."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from cni.daemon.model import dns_intercept
from tests.dns.conftest import SERVER4, SERVER6, Names, running
from tests.dns.servers import Server
from tests.kernel.toolnode import LAN4, OUTSIDE4, OUTSIDE6

OTHER4 = "192.0.2.10"
SETTINGS = "dns: {intercept: true, upstreams: []}\n"
BOTH = pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    with running(tmp_path_factory.mktemp("intercept"), SETTINGS) as (made, make):
        made.outside.ip(f"address add {OTHER4}/24 dev eth0")
        for name, service, network in (("web-1", "web", None), ("db-1", "db", None), ("vault-1", "vault", "closed")):
            made.add(name, make(), service, network)
        wait_for_table(made)
        yield made


@pytest.fixture
def servers(node: Names) -> Iterator[dict[str, Server]]:
    """Servers beyond the uplink; each answers with its own address."""
    with contextlib.ExitStack() as stack:

        def opened(address: str) -> Server:
            made: Server = node.outside.inside(lambda: Server(address=address, port=53))
            return stack.enter_context(made)

        yield {address: opened(address) for address in (OUTSIDE4, OTHER4, OUTSIDE6)}


def table(node: Names) -> str:
    return node.host.nft("list ruleset")


def wait_for_table(node: Names, there: bool = True) -> None:
    end = time.monotonic() + 15
    while (dns_intercept.TABLE in table(node)) != there:
        assert time.monotonic() < end, (node.dir / "log").read_text()
        time.sleep(0.05)


def wait_until_answered(node: Names) -> None:
    for _ in range(5):
        with contextlib.suppress(TimeoutError):
            assert node.addresses("db-1", node.full("web"), server=OUTSIDE4) == {node.address("web-1")}
            return
    raise AssertionError((node.dir / "log").read_text())


@BOTH
def test_a_name_of_the_overlay_is_answered_whoever_is_asked(node: Names, servers: dict[str, Server], tcp: bool) -> None:
    for server in (OUTSIDE4, "192.0.2.77", OUTSIDE6):  # nothing has the second address
        assert node.addresses("db-1", node.full("web"), server=server, tcp=tcp) == {node.address("web-1")}
        assert node.addresses("db-1", "web.", server=server, tcp=tcp) == {node.address("web-1")}
    assert node.code("vault-1", node.full("web"), server=OUTSIDE4, tcp=tcp) == "NXDOMAIN"
    assert node.addresses("vault-1", node.full("vault"), server=OUTSIDE4, tcp=tcp) == {node.address("vault-1")}
    assert [query for server in servers.values() for query in server.asked()] == []


@BOTH
@pytest.mark.parametrize("box", ["db-1", "vault-1"])
def test_every_other_name_is_asked_of_the_server_that_was_asked(
    node: Names, servers: dict[str, Server], tcp: bool, box: str
) -> None:
    for address in (OUTSIDE4, OTHER4):
        assert node.addresses(box, f"{box}-{int(tcp)}.example.", server=address, tcp=tcp) == {address}
        assert len(servers[address].asked()) == 1
    assert node.addresses(box, f"{box}-{int(tcp)}.six.", "AAAA", server=OUTSIDE6, tcp=tcp) == {OUTSIDE6}
    assert len(servers[OUTSIDE6].asked()) == 1


def test_the_node_asks_and_not_the_container(node: Names, servers: dict[str, Server]) -> None:
    assert node.addresses("db-1", "source.example.", server=OUTSIDE4) == {OUTSIDE4}
    assert servers[OUTSIDE4].peers == {LAN4}


def test_two_servers_may_be_asked_from_one_socket(node: Names, servers: dict[str, Server]) -> None:
    """As musl's resolver does: every server at once, from one port."""
    with node.space_of("db-1").inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        for number in range(20):
            for address in (OUTSIDE4, OTHER4):
                name = f"n{number}.{address.rpartition('.')[2]}.example."
                sock.sendto(dns.message.make_query(name, "A").to_wire(), (address, 53))
        found: dict[str, set[str]] = {OUTSIDE4: set(), OTHER4: set()}
        watch = select.poll()  # the descriptor may be above 1,023
        watch.register(sock, select.POLLIN)
        while sum(map(len, found.values())) < 40 and watch.poll(3000):
            wire, peer = sock.recvfrom(4096)
            answer = dns.message.from_wire(wire)
            assert answer.answer[0][0].address == peer[0], "the answer comes from the server that was asked"
            found[peer[0]].add(answer.question[0].name.to_text())
    assert {address: len(names) for address, names in found.items()} == {OUTSIDE4: 20, OTHER4: 20}


def test_questions_inside_the_overlay_go_their_way(node: Names) -> None:
    """The fence decides on them: no question reaches a container of another network by the node's hand."""
    address = node.address("vault-1")
    with node.space_of("vault-1").inside(lambda: Server(address=address, port=53)) as server:
        with pytest.raises(TimeoutError):
            node.query("db-1", "inside.example.", server=address, seconds=1)
        assert server.asked() == []


def test_the_nodes_own_server_is_asked_as_before(node: Names) -> None:
    for server in (SERVER4, SERVER6):
        assert node.addresses("db-1", node.full("web"), server=server) == {node.address("web-1")}
        assert node.code("db-1", "www.example.", server=server) == "REFUSED"  # upstreams: []


def test_the_c_library_resolves_without_a_change_of_resolv_conf(node: Names, servers: dict[str, Server]) -> None:
    space = node.space_of("db-1")
    own = Path("/etc/netns") / space.name
    own.mkdir(parents=True)
    try:
        (own / "resolv.conf").write_text(f"nameserver {OUTSIDE4}\noptions timeout:2 attempts:1\n")
        (own / "nsswitch.conf").write_text("hosts: dns\n")

        def getent(name: str) -> str:
            done = subprocess.run(
                ["ip", "netns", "exec", space.name, "getent", "ahostsv4", name],
                capture_output=True,
                text=True,
                check=False,
            )
            return done.stdout.split()[0] if done.stdout else ""

        assert getent("web") == node.address("web-1")
        assert getent("www.example.org") == OUTSIDE4
    finally:
        for path in own.iterdir():
            path.unlink()
        own.rmdir()


def test_it_outlives_a_kill_and_a_lost_table(node: Names, servers: dict[str, Server]) -> None:
    assert node.process is not None
    node.process.send_signal(signal.SIGKILL)
    node.process.wait()
    for server in (OUTSIDE4, OUTSIDE6):
        with pytest.raises(TimeoutError):  # and not an error that would end a resolver's attempts
            node.query("db-1", node.full("web"), server=server, seconds=0.5)
    node.start()
    wait_until_answered(node)
    node.host.nft(f"delete table inet {dns_intercept.TABLE}")
    wait_for_table(node)
    assert node.addresses("db-1", node.full("web"), server=OUTSIDE4) == {node.address("web-1")}
    assert not [text for text in node.ask("status")["problems"] if "DNS" in text]


def test_turned_off_it_leaves_nothing(node: Names, servers: dict[str, Server]) -> None:
    node.settings = node.settings.replace(SETTINGS, "")
    assert node.process is not None
    node.process.terminate()
    node.process.wait()
    node.start()
    wait_for_table(node, there=False)
    assert node.addresses("db-1", "after.example.", server=OUTSIDE4) == {OUTSIDE4}
    with pytest.raises(TimeoutError):
        node.query("db-1", node.full("web"), server="192.0.2.77", seconds=1)
