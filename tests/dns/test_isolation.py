"""Names resolve if and only if a flow opens, for each cell of docs/isolation.md that has a name; and no stale answer
leads to the next owner of an address."""

from __future__ import annotations

import itertools
import socket

import dns.message
import pytest

from tests.dns.conftest import CONTAINERS, SERVER4, Names, running
from tests.kernel import toolnode

PORT = 18_053
PLACES = [name for name, _, _ in CONTAINERS]


@pytest.mark.parametrize(("src", "dst"), list(itertools.product([*PLACES, "node"], PLACES)))
def test_a_name_resolves_if_and_only_if_a_flow_opens(node: Names, src: str, dst: str):
    service = next(service for name, service, _ in CONTAINERS if name == dst)
    for kind, version in (("A", 4), ("AAAA", 6)):
        target = node.address(dst, version)
        found = node.addresses(src, node.full(f"{dst}.{service}"), kind)
        opens = src == dst or opened(node, src, target)
        assert found == ({target} if opens else set()), f"{src} -> {dst} by IPv{version}"
        assert (target in node.addresses(src, node.full(service), kind)) == opens
        assert node.why(src, target)["allowed"] == opens


def opened(node: Names, src: str, address: str) -> bool:
    """Whether the first packet of a flow arrives: a closed port answers."""
    with toolnode.knock(node.space_of(src), address, PORT, socket.SOCK_STREAM, None) as sock:
        return toolnode.until(lambda: toolnode.reached(sock), 0.5)


def test_resolve_tells_the_rule_that_withholds(node: Names):
    code, out = node.tool("resolve", "vault", "--from", "web-1")
    assert (code, out.split()[0]) == (1, "NXDOMAIN")
    assert f"withheld: {node.address('vault-1')}" in out
    assert 'rule "between networks"' in out
    code, out = node.tool("resolve", "vault", "--from", "keys-1")
    assert (code, out.split()[0]) == (0, "NOERROR,")
    assert node.address("vault-1") in out
    assert node.tool("resolve", "web")[0] == 0  # the node itself
    assert node.tool("resolve", "a b")[0] == 2
    assert node.tool("resolve", "web", "--from", "nothing")[0] == 2


def test_names_are_listed(node: Names):
    names = {each["container_id"]: each["names"] for each in node.ask("attachments")}
    assert names["web-1"] == [f"web.{node.full('')[1:-1]}", f"web-1.web.{node.full('')[1:-1]}"]
    members = [member for network in node.ask("networks")["networks"] for member in network["members"]]
    assert {member["container_id"]: member["names"] for member in members} == names


def test_a_forged_source_gets_nothing(node: Names):
    """A member of another network asks with an address of the vault's network: the fence drops it at the port."""
    forged, own = node.address("keys-1"), node.space_of("web-1")
    own.ip(f"addr add {forged}/32 dev eth0")
    try:
        before = node.ask("status")["dns"]["counts"]["queries"]
        with own.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.bind((forged, 0))
            sock.settimeout(0.5)
            sock.sendto(dns.message.make_query("vault.", "A").to_wire(), (SERVER4, 53))
            with pytest.raises(TimeoutError):
                sock.recv(4096)
        assert node.ask("status")["dns"]["counts"]["queries"] == before
    finally:
        own.ip(f"addr del {forged}/32 dev eth0")


@pytest.fixture
def plain(tmp_path):
    with running(tmp_path) as (node, make):
        yield node, make


def test_an_address_that_was_asked_for_is_not_cached_and_moves_at_once(plain):
    node, make = plain
    node.attach("asker", make(), "asker")
    first, second = make(), make()
    node.attach("one", first, "web")
    address = node.address("one")
    asked = {"runtimeConfig": {"ips": [f"{address}/26"]}}
    node.detach("one", "web")
    node.attach("one", first, "web", **asked)
    answer = node.query("asker", node.full("one.web"))
    assert [rrset.ttl for rrset in answer.answer] == [0]
    node.detach("one", "web")
    assert node.code("asker", node.full("one.web")) == "NXDOMAIN"
    node.attach("two", second, "web", isolationNetwork="closed", **asked)
    assert node.address("two") == address
    assert node.code("asker", node.full("web")) == "NXDOMAIN"


@pytest.mark.parametrize(("cooldown", "ttl"), [("10", 5), ("3", 1), ("0", 0)])
def test_the_ttl_follows_the_cooldown(tmp_path, cooldown: str, ttl: int):
    with running(tmp_path, f"address_cooldown: {cooldown}\n") as (node, make):
        node.attach("one", make(), "web")
        assert [rrset.ttl for rrset in node.query("one", "web.").answer] == [ttl]
        assert node.query("one", node.full("no")).authority[0].ttl == ttl


def test_names_are_there_after_a_restart_and_a_kill(plain):
    node, make = plain
    node.attach("one", make(), "web")
    for number in (15, 9):
        node.restart(number)
        assert node.addresses("one", "web.") == {node.address("one")}
