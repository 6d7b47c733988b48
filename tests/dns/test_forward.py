"""Other servers' answers: who is asked, in which order, in which time, and what is believed (real sockets)."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from cni.daemon.dns.forward import cache, desk, flight, upstreams, waiting
from cni.daemon.dns.forward.conditions import Conditions
from cni.daemon.dns.forward.forwarder import Forwarder
from cni.daemon.dns.forward.upstreams import Upstreams
from cni.daemon.events import Events
from cni.daemon.model.dns_upstreams import NameServer
from cni.daemon.problem_board import ProblemBoard
from cni.daemon.settings import Dns
from cni.host.worker import Crew
from tests.dns.servers import PORT, Server, address_of_name, code, negative, records, silent

CLIENT = "10.200.0.9"
Forwarders = Callable[..., "Asking"]


class Asking:
    """A forwarder, and a client of it that dnspython writes and reads for."""

    def __init__(self, settings: Dns, own: frozenset[str], resolv_conf: Path) -> None:
        self.board = ProblemBoard(Events())
        followed = Upstreams(settings, lambda: own, resolv_conf)
        self.forwarder = Forwarder(followed, Conditions(followed, self.board), Crew())
        self.forwarder.start()

    def raw(
        self, wire: bytes, client: str = CLIENT, transport: str = "udp", asked: NameServer | None = None
    ) -> Callable[[float], bytes | None]:
        """Ask, and return what waits for the message."""
        replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        now = self.forwarder.answer(wire, transport, client, replies.put, asked)  # type: ignore[arg-type]
        if now is not None:
            return lambda seconds: now

        def wait(seconds: float) -> bytes | None:
            with contextlib.suppress(queue.Empty):
                return replies.get(timeout=seconds)
            return None

        return wait

    def ask(
        self,
        name: str,
        kind: str = "A",
        *,
        seconds: float = 4.5,
        transport: str = "udp",
        client: str = CLIENT,
        asked: NameServer | None = None,
        **options: object,
    ) -> dns.message.Message:
        """The answer; an answer that dnspython refuses, or that is another question's, fails the test."""
        query = dns.message.make_query(name, kind, **options)  # type: ignore[arg-type]
        wire = self.raw(query.to_wire(), client, transport, asked)(seconds)
        assert wire is not None, f"no answer to {name} in {seconds} s"
        reply = dns.message.from_wire(wire)
        assert query.is_response(reply)
        assert reply.flags & dns.flags.RA
        return reply

    def addresses(self, name: str, **options: object) -> list[str]:
        """The addresses of the A records."""
        return [item.address for each in self.ask(name, **options).answer for item in each]  # type: ignore[arg-type]

    def timed(self, name: str, **options: object) -> tuple[dns.message.Message, float]:
        """The answer, and the seconds until it came."""
        began = time.monotonic()
        return self.ask(name, **options), time.monotonic() - began  # type: ignore[arg-type]

    def problems(self) -> set[str]:
        return {problem.code for problem in self.board.problems()}

    @property
    def counts(self) -> dict[str, int]:
        return self.forwarder.counts()


@pytest.fixture
def forwarding(tmp_path: Path) -> Iterator[Forwarders]:
    """Makes forwarders to servers, in their order."""
    made: list[Asking] = []

    def make(*servers: Server | str, own: frozenset[str] = frozenset(), **settings: object) -> Asking:
        names = [f"{each if isinstance(each, str) else each.address}:{PORT}" for each in servers]
        dns = Dns(**{"upstreams": tuple(names), **settings})  # type: ignore[arg-type]
        made.append(Asking(dns, own, tmp_path / "resolv.conf"))
        return made[-1]

    yield make
    for each in made:
        each.forwarder.stop()


# --- what comes back ---


def test_an_answer_is_passed_on_and_kept(forwarding: Forwarders) -> None:
    with Server() as server:
        asking = forwarding(server)
        assert asking.addresses("www.example") == [server.address]
        assert asking.addresses("WWW.Example") == [server.address]
        assert len(server.seen) == 1
        assert asking.counts["hits"] == 1


def test_the_case_of_the_client_stays(forwarding: Forwarders) -> None:
    with Server() as server:
        asking = forwarding(server)
        for name in ("WwW.eXaMpLe.", "wWw.ExAmPlE."):
            reply = asking.ask(name)
            assert reply.question[0].name.to_text() == name
            assert reply.answer[0].name.to_text() == name


@pytest.mark.parametrize("kind", ["A", "AAAA", "MX", "TXT", "SRV", "SOA", "CAA", "HTTPS", "TYPE65280", "ANY"])
def test_every_type_is_forwarded(forwarding: Forwarders, kind: str) -> None:
    with Server(lambda query, *_: [negative(query, dns.rcode.NOERROR).to_wire()]) as server:
        reply = forwarding(server).ask("a.example", kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
        assert reply.authority[0].rdtype == dns.rdatatype.SOA


@pytest.mark.parametrize(
    ("kind", "wanted"), [("AXFR", dns.rcode.NOTIMP), ("IXFR", dns.rcode.NOTIMP), ("OPT", dns.rcode.REFUSED)]
)
def test_what_is_no_question_of_a_client_is_refused(forwarding: Forwarders, kind: str, wanted: int) -> None:
    with Server() as server:
        asking = forwarding(server)
        assert (
            dns.message.from_wire(asking.raw(dns.message.make_query("a.example", kind).to_wire())(1)).rcode() == wanted
        )
        assert server.seen == []


def test_broken_messages_are_refused_or_ignored(forwarding: Forwarders) -> None:
    with Server() as server:
        asking = forwarding(server)
        good = dns.message.make_query("a.example", "A").to_wire()
        two = bytearray(good)
        two[5] = 2
        notify = bytearray(good)
        notify[2] |= 4 << 3
        pointer = good[:12] + b"\xc0\x0c\0\1\0\1" + b"\0" * 8
        cases = {
            good[:20]: dns.rcode.FORMERR,
            good[:12]: dns.rcode.FORMERR,
            bytes(two): dns.rcode.FORMERR,
            bytes(notify): dns.rcode.NOTIMP,
            pointer: dns.rcode.FORMERR,
        }
        for wire, wanted in cases.items():
            answer = asking.raw(wire)(1)
            assert answer is not None and answer[3] & 0x0F == wanted, wire
            assert answer[:2] == wire[:2]
        for wire in (b"", good[:11], good[:2] + b"\x80" + good[3:]):
            assert asking.raw(wire)(0.2) is None
        assert server.seen == []


def test_edns_of_another_version_is_refused(forwarding: Forwarders) -> None:
    with Server() as server:
        query = dns.message.make_query("a.example", "A", use_edns=1)
        reply = dns.message.from_wire(forwarding(server).raw(query.to_wire())(1))
        assert reply.rcode() == dns.rcode.BADVERS


def test_ttls_count_down(forwarding: Forwarders) -> None:
    with Server(lambda query, *_: [records(query, "a.example. 3 A 192.0.2.1").to_wire()]) as server:
        asking = forwarding(server)
        assert asking.ask("a.example").answer[0].ttl == 3
        time.sleep(1.2)
        assert asking.ask("a.example").answer[0].ttl == 2
        assert len(server.seen) == 1
        time.sleep(2.0)
        assert asking.ask("a.example").answer[0].ttl == 3
        assert len(server.seen) == 2


def test_a_ttl_of_zero_is_not_kept(forwarding: Forwarders) -> None:
    with Server(lambda query, *_: [records(query, "a.example. 0 A 192.0.2.1").to_wire()]) as server:
        asking = forwarding(server)
        for _ in range(2):
            assert asking.addresses("a.example") == ["192.0.2.1"]
        assert len(server.seen) == 2


@pytest.mark.parametrize("wanted", [dns.rcode.NXDOMAIN, dns.rcode.NOERROR])
def test_negative_answers_are_kept_for_the_time_of_their_soa(forwarding: Forwarders, wanted: int) -> None:
    with Server(lambda query, *_: [negative(query, wanted, ttl=20, minimum=1).to_wire()]) as server:
        asking = forwarding(server)
        for _ in range(2):
            reply = asking.ask("no.example")
            assert (reply.rcode(), reply.answer, len(reply.authority)) == (wanted, [], 1)
        assert len(server.seen) == 1
        time.sleep(1.1)
        asking.ask("no.example")
        assert len(server.seen) == 2


def test_a_negative_answer_without_an_soa_is_not_kept(forwarding: Forwarders) -> None:
    with Server(code(dns.rcode.NXDOMAIN)) as server:
        asking = forwarding(server)
        for _ in range(2):
            assert asking.ask("no.example").rcode() == dns.rcode.NXDOMAIN
        assert len(server.seen) == 2


def test_equal_questions_are_asked_once(forwarding: Forwarders) -> None:
    with Server(delay=0.3) as server:
        asking = forwarding(server)
        waits = [
            asking.raw(dns.message.make_query(name, "A").to_wire(), client)
            for name in ("a.example", "A.example")
            for client in ("10.200.0.7", "10.200.0.8")
        ]
        found = [dns.message.from_wire(wait(2.0)) for wait in waits]
        assert all(reply.answer for reply in found)
        assert len(server.seen) == 1
        assert asking.counts["joined"] == 3


def test_do_and_cd_are_passed_on_and_apart(forwarding: Forwarders) -> None:
    with Server() as server:
        asking = forwarding(server)
        asking.ask("a.example")
        assert asking.ask("a.example", want_dnssec=True).ednsflags & dns.flags.DO
        query = dns.message.make_query("a.example", "A")
        query.flags |= dns.flags.CD
        asking.raw(query.to_wire())(2.0)
        bits = [(bool(q.ednsflags & dns.flags.DO), bool(q.flags & dns.flags.CD)) for q in server.asked()]
        assert bits == [(False, False), (True, False), (False, True)]


def test_ad_reaches_the_clients_that_know_it(forwarding: Forwarders) -> None:
    def validated(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
        reply = records(query, "a.example. 60 A 192.0.2.1")
        reply.flags |= dns.flags.AD
        return [reply.to_wire()]

    with Server(validated) as server:
        asking = forwarding(server)
        assert not asking.ask("a.example").flags & dns.flags.AD
        query = dns.message.make_query("a.example", "A")
        query.flags |= dns.flags.AD
        assert dns.message.from_wire(asking.raw(query.to_wire())(1)).flags & dns.flags.AD


# --- sizes ---


def many(number: int) -> Callable[..., list[bytes]]:
    """A server with so many addresses, which truncates as the client's EDNS says."""

    def behaviour(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
        reply = records(query, *(f"many.example. 60 A 192.0.{n >> 8}.{n & 255}" for n in range(number)))
        size = 65535 if transport == "tcp" else max(512, query.payload)
        try:
            return [reply.to_wire(max_size=size)]
        except dns.exception.TooBig:
            short = records(query)
            short.flags |= dns.flags.TC
            return [short.to_wire()]

    return behaviour


@pytest.mark.parametrize(("size", "fits"), [(0, 30), (512, 29), (1232, 74), (4096, 74)])
def test_an_answer_that_does_not_fit_is_truncated(forwarding: Forwarders, size: int, fits: int) -> None:
    options = {"use_edns": 0, "payload": size} if size else {}
    for number in (fits, fits + 1):
        with Server(many(number)) as server:
            asking = forwarding(server)
            reply = asking.ask("many.example", **options)
            assert bool(reply.flags & dns.flags.TC) == (number > fits)
            assert sum(len(each) for each in reply.answer) == (number if number <= fits else 0)
            full = asking.ask("many.example", transport="tcp", **options)
            assert sum(len(each) for each in full.answer) == number
            assert not full.flags & dns.flags.TC


def test_a_truncated_answer_is_fetched_by_tcp(forwarding: Forwarders) -> None:
    with Server(many(400)) as server:
        asking = forwarding(server)
        reply = asking.ask("many.example", transport="tcp")
        assert sum(len(each) for each in reply.answer) == 400
        assert [how for how, _, _ in server.seen] == ["udp", "tcp"]
        assert asking.counts["truncated"] == 1


# --- which server ---


def test_the_first_server_is_asked(forwarding: Forwarders) -> None:
    with Server() as first, Server() as second:
        assert forwarding(first, second).addresses("a.example") == [first.address]
        assert second.seen == []


@pytest.mark.parametrize("how", ["silent", "closed"])
def test_a_dead_first_server_costs_one_question_its_patience(forwarding: Forwarders, how: str) -> None:
    with Server(silent, udp=how == "silent", tcp=how == "silent") as first, Server() as second:
        asking = forwarding(first, second)
        reply, seconds = asking.timed("a.example")
        assert reply.answer[0][0].address == second.address
        assert seconds < (1.5 if how == "silent" else 0.3)
        for n in range(5):
            reply, seconds = asking.timed(f"b{n}.example")
            assert reply.answer[0][0].address == second.address
            assert seconds < 0.3


def test_a_server_that_is_back_is_asked_first_again(forwarding: Forwarders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstreams, "PENALTY", 1.0)
    with Server(silent) as first, Server() as second:
        asking = forwarding(first, second)
        asking.ask("a.example")
        time.sleep(1.1)
        _, seconds = asking.timed("b.example")  # the first is tested, with the second beside it
        assert seconds < 0.3
        first.behaviour = address_of_name
        time.sleep(1.1)
        assert asking.ask("c.example").answer
        time.sleep(0.2)
        assert asking.addresses("d.example") == [first.address]


@pytest.mark.parametrize("wrong", [dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NOTIMP, dns.rcode.FORMERR])
def test_a_failing_server_is_passed_over(forwarding: Forwarders, wrong: int) -> None:
    with Server(code(wrong)) as first, Server() as second:
        reply, seconds = forwarding(first, second).timed("a.example")
        assert reply.answer[0][0].address == second.address
        assert seconds < 0.5


def test_a_referral_is_no_answer(forwarding: Forwarders) -> None:
    def lame(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
        reply = dns.message.make_response(query)
        reply.authority.append(dns.rrset.from_text("example.", 60, "IN", "NS", "ns.elsewhere."))
        return [reply.to_wire()]

    with Server(lame) as first, Server() as second:
        assert forwarding(first, second).addresses("a.example") == [second.address]


def test_servfail_of_all_is_told_at_once(forwarding: Forwarders) -> None:
    with Server(code(dns.rcode.SERVFAIL)) as first, Server(code(dns.rcode.REFUSED)) as second:
        asking = forwarding(first, second)
        reply, seconds = asking.timed("a.example")
        assert (reply.rcode(), seconds < 0.5) == (dns.rcode.SERVFAIL, True)
        assert asking.problems() == set()


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_all_dead_is_told_in_time_after_each_was_asked(forwarding: Forwarders, number: int) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(silent)) for _ in range(number)]
        asking = forwarding(*servers)
        reply, seconds = asking.timed("a.example")
        assert reply.rcode() == dns.rcode.SERVFAIL
        assert 3.0 < seconds < 4.3
        assert all(server.seen for server in servers)


def test_a_slow_server_is_waited_for(forwarding: Forwarders) -> None:
    with Server(delay=2.5) as first, Server(silent) as second:
        reply, seconds = forwarding(first, second).timed("a.example")
        assert reply.answer[0][0].address == first.address
        assert 2.4 < seconds < 3.0


def test_a_server_by_tcp_alone(forwarding: Forwarders) -> None:
    with Server(udp=False) as server:  # its UDP port refuses
        asking = forwarding(server)
        for name in ("a.example", "b.example"):
            reply, seconds = asking.timed(name)
            assert reply.answer and seconds < 0.3
    with Server(lambda q, s, how: address_of_name(q, s, how) if how == "tcp" else None) as server:
        asking = forwarding(server)
        reply, seconds = asking.timed("a.example")
        assert reply.answer and seconds < 1.5
        reply, seconds = asking.timed("b.example")
        assert reply.answer and seconds < 0.3


def test_a_server_without_edns(forwarding: Forwarders) -> None:
    def old(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
        if query.edns >= 0:
            reply = dns.message.Message(query.id)
            reply.flags = dns.flags.QR
            reply.set_rcode(dns.rcode.FORMERR)
            return [reply.to_wire()]
        return address_of_name(query, server, transport) or []

    with Server(old) as server:
        asking = forwarding(server)
        assert asking.addresses("a.example") == [server.address]
        assert asking.addresses("b.example") == [server.address]
        assert [query.edns for query in server.asked()] == [0, -1, -1]


def test_conditional_zones(forwarding: Forwarders) -> None:
    with Server() as usual, Server() as corp, Server() as lab:
        zones = {"corp.example": (f"{corp.address}:{PORT}",), "Lab.corp.example.": (f"{lab.address}:{PORT}",)}
        asking = forwarding(usual, zones=zones)
        asked = {
            "www.example": usual,
            "corp.example": corp,
            "WWW.CORP.example": corp,
            "a.lab.corp.example": lab,
            "xcorp.example": usual,
        }
        assert {name: asking.addresses(name) for name in asked} == {n: [each.address] for n, each in asked.items()}


def test_the_servers_of_resolv_conf_are_followed(forwarding: Forwarders, tmp_path: Path) -> None:
    with Server(port=53) as first, Server(port=53) as second:
        asking = forwarding(upstreams=None)
        assert asking.ask("a.example").rcode() == dns.rcode.REFUSED
        assert asking.problems() == {"dns-no-upstream"}
        file = tmp_path / "resolv.conf"
        file.write_text(f"nameserver {first.address}\n")
        time.sleep(1.1)
        assert asking.addresses("b.example") == [first.address]
        assert asking.problems() == set()
        new = tmp_path / "new"
        new.write_text(f"search x\nnameserver {second.address}\n")
        new.rename(file)
        time.sleep(1.1)
        assert asking.addresses("c.example") == [second.address]
        assert asking.addresses("b.example") == [second.address]  # what the other server said is gone


def test_no_server_is_asked_that_no_file_names(forwarding: Forwarders) -> None:
    asking = forwarding(upstreams=())
    assert asking.ask("a.example").rcode() == dns.rcode.REFUSED
    assert asking.problems() == set()


def test_the_server_that_the_client_asked(forwarding: Forwarders) -> None:
    with Server() as usual, Server() as other:
        asking = forwarding(usual)
        named = NameServer(other.address, PORT)
        assert asking.addresses("a.example") == [usual.address]
        assert asking.addresses("a.example", asked=named) == [other.address]
        assert asking.addresses("a.example") == [usual.address]


# --- what is believed ---


def test_each_question_has_its_own_port_identifier_and_letters(forwarding: Forwarders) -> None:
    with Server() as server:
        asking = forwarding(server)
        for n in range(64):
            asking.ask(f"name-with-letters-{n}.example")
        assert len({port for _, _, port in server.seen}) > 60
        assert len({query.id for query in server.asked()}) > 60
        letters = {query.question[0].name.to_text()[:17] for query in server.asked()}
        assert len(letters) > 60


@pytest.mark.parametrize("lie", ["identifier", "question", "query", "garbage", "letters"])
def test_lies_are_not_believed(forwarding: Forwarders, lie: str) -> None:
    def lying(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
        right = address_of_name(query, server, transport) or []
        if transport == "tcp":
            return right
        false = bytearray(records(query, f"{query.question[0].name} 60 A 192.0.2.66").to_wire())
        if lie == "identifier":
            false[0] ^= 1
        elif lie == "question":
            false[13] ^= 0x02
        elif lie == "query":
            false[2] &= 0x7F
        elif lie == "garbage":
            false = bytearray(b"\xff" * 40)
        else:
            name = query.question[0].name.to_text()
            other = dns.message.make_response(query)
            other.question[0] = dns.rrset.from_text(name.swapcase(), 0, "IN", "A")
            other.answer.append(dns.rrset.from_text(name, 60, "IN", "A", "192.0.2.66"))
            return [other.to_wire()]  # the right answer comes by TCP
        return [bytes(false), *right]

    with Server(lying) as server:
        asking = forwarding(server)
        for n in range(4):
            assert asking.addresses(f"abcdefgh{n}.example") == [server.address]
        assert asking.counts["other_case" if lie == "letters" else "strange"] >= 4


def test_guesses_of_the_identifier_lead_to_tcp(forwarding: Forwarders) -> None:
    def guesses(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
        if transport == "tcp":
            return address_of_name(query, server, transport) or []
        false = records(query, "a.example. 60 A 192.0.2.66")
        wires = []
        for n in range(1, 64):
            false.id = query.id ^ n
            wires.append(false.to_wire())
        return wires

    with Server(guesses) as server:
        reply, seconds = forwarding(server).timed("a.example")
        assert [item.address for item in reply.answer[0]] == [server.address]
        assert seconds < 0.5


@pytest.mark.parametrize("cut", [13, 30, 45])
def test_a_cut_answer_is_a_failure(forwarding: Forwarders, cut: int) -> None:
    with Server(lambda q, s, how: [(address_of_name(q, s, how) or [b""])[0][:cut]]) as first, Server() as second:
        assert forwarding(first, second).addresses("a.example") == [second.address]


# --- when all are dead ---


def test_stale_answers_while_all_servers_are_dead(forwarding: Forwarders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "RETRY", 2.0)
    with Server(lambda query, *_: [records(query, "a.example. 1 A 192.0.2.1").to_wire()]) as server:
        asking = forwarding(server)
        asking.ask("a.example")
        alive, server.behaviour = server.behaviour, silent
        time.sleep(1.1)
        reply, seconds = asking.timed("a.example")
        assert (reply.answer[0].ttl, 1.6 < seconds < 2.2) == (desk.STALE_TTL, True)
        time.sleep(2.5)  # the servers have had their time
        reply, seconds = asking.timed("a.example")
        assert (reply.answer[0].ttl, seconds < 0.1) == (desk.STALE_TTL, True)
        assert asking.counts["stale"] == 2
        server.behaviour = alive
        time.sleep(2.1)
        assert asking.ask("a.example").answer[0].ttl == 1


def test_stale_answers_end(forwarding: Forwarders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "STALE", 1.0)
    with Server(lambda query, *_: [records(query, "a.example. 1 A 192.0.2.1").to_wire()]) as server:
        asking = forwarding(server)
        asking.ask("a.example")
        server.close()
        time.sleep(2.1)
        assert asking.ask("a.example").rcode() == dns.rcode.SERVFAIL


def test_silent_servers_are_a_problem_until_one_answers(
    forwarding: Forwarders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "FAILED", 0.1)
    server = Server()
    asking = forwarding(server)
    server.close()
    for n in range(3):
        assert asking.problems() == set()
        assert asking.ask(f"a{n}.example").rcode() == dns.rcode.SERVFAIL
    _wait(lambda: asking.problems() == {"dns-upstreams-silent"})
    with Server(address=server.address):
        assert asking.ask("b.example").answer
        _wait(lambda: asking.problems() == set())


# --- loops and floods ---


def test_a_question_that_comes_back_is_not_sent_again(forwarding: Forwarders, monkeypatch: pytest.MonkeyPatch) -> None:
    asking: Asking

    def back(query: dns.message.Message, server: Server, transport: str) -> list[bytes] | None:
        answer = asking.raw(query.to_wire(), "127.0.0.1")(4.5)
        return [answer] if answer else None

    with Server(back) as server:
        asking = forwarding(server)
        reply, seconds = asking.timed("abcdefghijkl.mnopqrst.example")
        assert (reply.rcode(), seconds < 1.0) == (dns.rcode.SERVFAIL, True)
        assert len(server.seen) == 1
        assert asking.counts["loops"] == 1
        _wait(lambda: asking.problems() == {"dns-forward-loop"})


def test_the_node_itself_is_not_asked(forwarding: Forwarders) -> None:
    with Server() as server:
        asking = forwarding(server, own=frozenset({server.address}), port=PORT)
        assert asking.ask("a.example").rcode() == dns.rcode.REFUSED
        assert server.seen == []
        _wait(lambda: asking.problems() == {"dns-forward-loop", "dns-no-upstream"})


def test_a_flood_of_one_client_starves_no_other(forwarding: Forwarders) -> None:
    with Server(silent) as dead, Server() as alive:
        asking = forwarding(dead, zones={"alive.example": (f"{alive.address}:{PORT}",)})
        floods = [
            asking.raw(dns.message.make_query(f"f{n}.example", "A").to_wire(), "10.200.0.66") for n in range(2000)
        ]
        refused = [answer for wait in floods if (answer := wait(0.0))]
        assert len(refused) == 2000 - waiting.MOST_OF_ONE
        assert all(dns.message.from_wire(each).rcode() == dns.rcode.SERVFAIL for each in refused)
        for n in range(20):
            reply, seconds = asking.timed(f"n{n}.alive.example", client="10.200.0.5")
            assert reply.answer and seconds < 0.3
        assert asking.counts["over_limit"] == len(refused)


def test_many_flooding_clients_leave_a_place(forwarding: Forwarders) -> None:
    with Server(silent) as dead, Server() as alive:
        asking = forwarding(dead, zones={"alive.example": (f"{alive.address}:{PORT}",)})
        for client in range(20):
            for n in range(100):
                asking.raw(dns.message.make_query(f"f{n}-{client}.example", "A").to_wire(), f"10.200.1.{client}")
        assert asking.counts["waiting"] == waiting.MOST
        for n in range(20):
            reply, seconds = asking.timed(f"n{n}.alive.example", client="10.200.0.5")
            assert reply.answer and seconds < 1.0


def test_the_cache_is_bounded(forwarding: Forwarders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_ANSWERS", 16)
    with Server() as server:
        asking = forwarding(server)
        for n in range(40):
            asking.ask(f"n{n}.example")
        assert asking.counts["kept"] == 16
        before = len(server.seen)
        asking.ask("n39.example")
        assert len(server.seen) == before


def test_no_socket_stays_open(forwarding: Forwarders) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    with Server() as server:
        asking = forwarding(server)
        asking.ask("a.example")
        before = descriptors()
        for n in range(50):
            asking.ask(f"n{n}.example")
        assert descriptors() <= before + 1
        server.behaviour = silent
        for n in range(20):
            asking.raw(dns.message.make_query(f"d{n}.example", "A").to_wire())
        time.sleep(flight.DEADLINE + 0.3)
        _wait(lambda: descriptors() <= before + 22)  # the server's own streams


def test_threads_may_ask_at_once(forwarding: Forwarders) -> None:
    wrong: list[str] = []
    with Server() as server:
        asking = forwarding(server)

        def client(number: int) -> None:
            for n in range(100):
                name = f"n{n % 30}.example"
                if asking.addresses(name, client=f"10.200.0.{number}") != [server.address]:
                    wrong.append(name)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert wrong == []
        assert len(server.seen) == 30


def _wait(condition: Callable[[], bool], seconds: float = 12.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
