"""The server's sockets and messages: sizes, transports, odd and broken questions, a port that another program has."""

from __future__ import annotations

import itertools
import os
import random
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from tests.dns.conftest import SERVER4, SERVER6, ZONE, Names, running
from tests.mesh.fleet import wait_for

MANY = 200


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    """A service with many registered addresses, of one container, which a name can have without as many containers."""
    with running(tmp_path_factory.mktemp("crowd")) as (made, make):
        made.attach("one", make(), "asker")
        made.attach("two", make(), "web")
        made.register("crowd", *(f"198.51.100.{number + 1}" for number in range(MANY)))
        yield made


@pytest.mark.parametrize(("size", "least"), [(None, 28), (512, 27), (1232, 72), (4096, 72)])
def test_what_does_not_fit_is_cut_and_comes_by_tcp(crowd: Names, size: int | None, least: int):
    how = {"use_edns": 0, "payload": size} if size else {}
    cut = crowd.query("one", "crowd.", **how)
    assert cut.flags & dns.flags.TC
    assert len(cut.answer[0]) >= least
    assert len(cut.to_wire()) <= (min(size, 1232) if size else 512)
    whole = crowd.query("one", "crowd.", tcp=True, **how)
    assert not whole.flags & dns.flags.TC
    assert len(whole.answer[0]) == MANY


def test_dig_follows_to_tcp(crowd: Names):
    command = ["nsenter", f"--net={crowd.space_of('one').path}", "dig", f"@{SERVER4}", "+short", "crowd."]
    assert len(subprocess.check_output(command, text=True).split()) == MANY


def test_edns_of_another_version_is_refused_with_ours(crowd: Names):
    question = dns.message.make_query("web.", "A", use_edns=0)
    question.use_edns(edns=1)
    answer = dns.message.from_wire(crowd.exchange("one", question.to_wire()))
    assert (answer.rcode(), answer.edns) == (dns.rcode.BADVERS, 0)


def test_options_of_edns_are_ignored_and_the_do_bit_is_returned(crowd: Names):
    option = dns.edns.GenericOption(10, b"12345678")  # a cookie, as dig sends it
    question = dns.message.make_query("web.", "A", use_edns=0, options=[option], want_dnssec=True)
    answer = dns.message.from_wire(crowd.exchange("one", question.to_wire()))
    assert answer.rcode() == dns.rcode.NOERROR
    assert answer.answer
    assert answer.ednsflags & dns.flags.DO


@pytest.mark.parametrize("tcp", [False, True], ids=["udp", "tcp"])
def test_messages_that_are_no_question_get_a_code_or_nothing(crowd: Names, tcp: bool):
    plain = dns.message.make_query("web.", "A").to_wire()
    two = plain[:4] + b"\0\2" + plain[6:] + plain[12:]
    notify = plain[:2] + b"\x20\0" + plain[4:]
    pointer = plain[:12] + b"\xc0\x0c" + plain[-4:]
    for message, code in ((two, 1), (notify, 4), (pointer, 1), (plain[:-1], 1), (plain[:12] + b"\x40" + plain[13:], 1)):
        answer = crowd.exchange("one", message, tcp=tcp)
        assert answer[:2] == message[:2]
        assert answer[3] & 15 == code, message
    for silent in (plain[:2] + b"\x80\0" + plain[4:], plain[:11], b"x"):
        with pytest.raises(TimeoutError):
            crowd.exchange("one", silent, tcp=tcp, seconds=0.3)


def test_another_class_is_refused(crowd: Names):
    question = dns.message.make_query("version.bind.", "TXT", "CH")
    assert dns.message.from_wire(crowd.exchange("one", question.to_wire())).rcode() == dns.rcode.REFUSED


@pytest.mark.parametrize("kind", ["A", "AAAA", "ANY", "MX", "SRV", "TXT", "NS", "SOA", "HTTPS", "TYPE65280"])
def test_every_type_is_answered(crowd: Names, kind: str):
    answer = crowd.query("one", crowd.full("web"), kind)
    assert answer.rcode() == dns.rcode.NOERROR
    assert bool(answer.answer) == (kind in ("A", "AAAA", "ANY"))


def test_the_apex_has_soa_and_ns(crowd: Names):
    zone = crowd.full("web").partition(".")[2]
    assert crowd.query("one", zone, "SOA").answer
    (server,) = crowd.addresses("one", zone, "NS")
    assert crowd.addresses("one", server) == {SERVER4}
    assert crowd.code("one", crowd.full("node")) == "NOERROR"  # there are names below it


def test_many_questions_on_one_connection(crowd: Names):
    with crowd.space_of("one").inside(lambda: socket.create_connection((SERVER4, 53), 5)) as sock:
        messages = [dns.message.make_query("web.", kind).to_wire() for kind in ("A", "AAAA") * 50]
        stream = b"".join(len(message).to_bytes(2, "big") + message for message in messages)
        for at in range(0, len(stream), 7):  # a length may be cut in the middle
            sock.sendall(stream[at : at + 7])
        answers = sock.makefile("rb")
        for message in messages:
            assert answers.read(int.from_bytes(answers.read(2), "big"))[:2] == message[:2]


def test_a_and_aaaa_from_one_socket_are_both_answered(crowd: Names):
    with crowd.space_of("one").inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(2)
        sock.connect((SERVER4, 53))
        pair = [dns.message.make_query("web.", kind).to_wire() for kind in ("A", "AAAA")]
        for _ in range(5000):
            for message in pair:
                sock.send(message)
            assert {sock.recv(4096)[:2], sock.recv(4096)[:2]} == {message[:2] for message in pair}


def test_mutated_messages_leave_it_serving_and_its_memory_flat(crowd: Names):
    chance = random.Random(18)
    names = itertools.product(("web", "crowd", "a.zlayer.local"), ("A", "PTR"))
    seeds = [dns.message.make_query(f"{name}.", kind, use_edns=0).to_wire() for name, kind in names]
    with crowd.space_of("one").inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.connect((SERVER4, 53))
        sock.setblocking(False)
        before = 0
        for number in range(100_000):
            message = bytearray(chance.choice(seeds))
            for _ in range(chance.randint(1, 4)):
                message[chance.randrange(len(message))] = chance.randrange(256)
            try:
                sock.send(message[: chance.randint(0, len(message))] if chance.random() < 0.2 else message)
                check(sock.recv(65535), message)
            except BlockingIOError:
                pass
            if number == 20_000:
                before = resident(crowd)
    # Some 10,000 of the messages may still wait before this one.
    assert crowd.addresses("one", "web.", seconds=20) == {crowd.address("two")}
    assert resident(crowd) - before < 4 << 20
    assert "Traceback" not in (crowd.dir / "log").read_text()


def check(answer: bytes, message: bytes) -> None:
    """dnspython reads what the server has written."""
    try:
        dns.message.from_wire(answer)
    except dns.exception.DNSException as error:
        raise AssertionError(f"{answer!r}, after {bytes(message)!r}") from error


def resident(node: Names) -> int:
    """Bytes of the daemon's memory."""
    assert node.process is not None
    return int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * 4096


def test_a_port_that_another_program_has_is_told_and_taken_when_it_is_free(tmp_path: Path):
    held: list[socket.socket] = []
    with running(tmp_path, before=lambda host: held.append(host.inside(occupy))) as (node, make):
        text = node.problem("dns-not-served")
        assert SERVER4 in text
        assert f"pid {os.getpid()}" in text
        node.attach("one", make(), "web")
        assert SERVER4 not in node.results["one"]["dns"]["nameservers"]
        held[0].close()
        wait_for(lambda: not node.problem("dns-not-served"), "the port")
        node.attach("two", make(), "web")
        assert node.results["two"]["dns"] == {"nameservers": [SERVER4, SERVER6], "search": [ZONE]}


def occupy() -> socket.socket:
    """The port, on every IPv4 address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", 53))
    return sock


def test_without_dns_results_are_what_they_were(tmp_path: Path):
    with running(tmp_path, "dns: {serve: false}\n") as (node, make):
        node.attach("one", make(), "web")
        assert "dns" not in node.results["one"]
        assert node.ask("status")["dns"] is None
        assert node.ask("attachments")[0]["names"] == []
        with pytest.raises(ConnectionRefusedError):
            node.query("one", "web.")
