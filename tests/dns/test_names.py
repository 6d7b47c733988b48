"""What containers are told about names: by dnspython and by the C library, over UDP and TCP, by IPv4 and IPv6."""

from __future__ import annotations

import subprocess

import dns.flags
import dns.message
import pytest

from tests.dns.conftest import SERVER4, SERVER6, Names, reverse

SERVERS = pytest.mark.parametrize("server", [SERVER4, SERVER6])
TRANSPORTS = pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])


@SERVERS
@TRANSPORTS
@pytest.mark.parametrize(("kind", "version"), [("A", 4), ("AAAA", 6)])
def test_a_service_is_all_its_containers(node: Names, kind: str, version: int, server: str, tcp: bool):
    own = {node.address(name, version) for name in ("web-1", "web-2")}
    assert node.addresses("db-1", node.full("web"), kind, server=server, tcp=tcp) == own
    assert node.addresses("web-1", node.full("web"), kind, server=server, tcp=tcp) == own


def test_a_bare_name_works_without_a_search_domain(node: Names):
    assert node.addresses("db-1", "web.") == node.addresses("db-1", node.full("web"))


def test_a_container_is_named_inside_its_service(node: Names):
    assert node.addresses("db-1", node.full("web-2.web")) == {node.address("web-2")}
    assert node.code("db-1", node.full("web-2.db")) == "NXDOMAIN"


def test_what_the_asker_may_not_reach_does_not_exist(node: Names):
    for name in ("vault", "vault-1.vault"):
        assert node.code("web-1", node.full(name)) == "NXDOMAIN"
        assert node.code("other-1", node.full(name)) == "NXDOMAIN"
        assert node.addresses("keys-1", node.full(name)) == {node.address("vault-1")}
    assert node.code("web-1", reverse(node.address("vault-1")), "PTR") == "NXDOMAIN"
    assert node.addresses("keys-1", reverse(node.address("vault-1")), "PTR") == {node.full("vault-1.vault")}


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_leads_back_to_its_container(node: Names, version: int):
    assert node.addresses("web-1", reverse(node.address("db-1", version)), "PTR") == {node.full("db-1.db")}


def test_the_node_has_a_name(node: Names):
    name = node.host.inside(lambda: subprocess.check_output(["hostname", "-s"], text=True)).strip().lower()
    assert node.addresses("web-1", node.full(f"{name}.node")) == {SERVER4}
    assert node.addresses("vault-1", node.full(f"{name}.node"), "AAAA") == {SERVER6}
    assert node.addresses("web-1", reverse(SERVER4), "PTR") == {node.full(f"{name}.node")}


def test_the_node_itself_sees_all(node: Names):
    assert node.addresses("node", node.full("vault")) == {node.address("vault-1")}


def test_a_source_outside_gets_no_answer(node: Names):
    before = node.ask("status")["dns"]["counts"]["strangers"]
    with pytest.raises(TimeoutError):
        node.query("outside", node.full("web"), seconds=0.5)
    assert node.ask("status")["dns"]["counts"]["strangers"] == before + 1


def test_another_type_of_a_name_that_exists_is_no_data(node: Names):
    answer = node.query("web-1", node.full("db"), "MX")
    assert (answer.rcode(), answer.answer) == (0, [])
    assert [rrset.rdtype for rrset in answer.authority] == [dns.rdatatype.SOA]


def test_a_name_that_is_not_there_comes_with_the_zones_soa(node: Names):
    answer = node.query("web-1", node.full("nothing"))
    assert answer.rcode() == dns.rcode.NXDOMAIN
    (soa,) = answer.authority
    assert soa.name.to_text() == node.full("")[1:]
    assert (soa.ttl, soa[0].minimum) == (5, 5)


def test_the_question_is_returned_as_it_was_written(node: Names):
    assert node.query("web-1", "wEb.ZLayer.zlAYer.LOCAL.").question[0].name.to_text() == "wEb.ZLayer.zlAYer.LOCAL."


def test_the_order_changes(node: Names):
    orders = {tuple(data.to_text() for data in node.query("db-1", node.full("web")).answer[0]) for _ in range(20)}
    assert len(orders) == 2
