"""The parts of DNS forwarding that are values: messages as bytes, what is kept, the order of attempts, who may wait."""

from hypothesis import example, given
from hypothesis import strategies as st

from cni.daemon.dns.forward import cache as kept_answers
from cni.daemon.dns.forward import message as wire
from cni.daemon.dns.forward.cache import Cache
from cni.daemon.dns.forward.exchange import Fit, fit_of
from cni.daemon.dns.forward.message import Answer, Question
from cni.daemon.dns.forward.upstreams import Health, steps_of
from cni.daemon.dns.forward.waiting import MOST, MOST_OF_ONE, Waiter, Waiting
from cni.daemon.model.dns_upstreams import NameServer

NAME = b"\3wWw\7example\0"
A = b"\0\1\0\1"
QUERY = b"\x12\x34\1\0\0\1\0\0\0\0\0\0" + NAME + A
ONE, TWO, THREE = (NameServer(f"192.0.2.{n}") for n in (1, 2, 3))


def answer_to(query: bytes, *records: bytes, code: int = 0, authority: int = 0) -> bytes:
    """A server's message with these records, the last `authority` of them in the authority section."""
    counts = b"".join(n.to_bytes(2, "big") for n in (1, len(records) - authority, authority, 0))
    return query[:2] + bytes((0x81, 0x80 | code)) + counts + query[12:] + b"".join(records)


def record(kind: int, ttl: int, data: bytes) -> bytes:
    return (
        b"\xc0\x0c" + kind.to_bytes(2, "big") + b"\0\1" + ttl.to_bytes(4, "big") + len(data).to_bytes(2, "big") + data
    )


def question() -> Question:
    found = wire.read_question(QUERY)
    assert isinstance(found, Question)
    return found


def waiter(client: str, place: bytes = b"") -> Waiter:
    return Waiter(place, question(), 512, client, lambda _: None)


def test_letters_make_no_other_question_and_types_do() -> None:
    def key(name: bytes, kind: int) -> bytes:
        found = wire.read_question(QUERY[:12] + name + kind.to_bytes(2, "big") + b"\0\1")
        assert isinstance(found, Question)
        return found.key

    assert key(b"\3WWW\0", 1) == key(b"\3www\0", 1)
    assert key(b"\3www\0", 65) != key(b"\3www\0", 97)  # as letters, A and a


@given(st.binary(max_size=80))
@example(QUERY)
@example(QUERY[:-1])
@example(QUERY[:12] + b"\xc0\x0c\0\1\0\1\0")
@example(QUERY[:12] + b"\7\0\0\0\0\0\0\0\0\0\1\0\1")
def test_any_message_of_a_client_is_read(raw: bytes) -> None:
    found = wire.read_question(raw)
    if isinstance(found, Question):
        code = wire.well_formed(found)
        whole = wire.write_answer(found, Answer(code, (0, 0, 0), b""), b"", 512)
        assert whole[:2] == raw[:2]
    elif found is not None:
        assert wire.refusal(raw, found)[:2] == raw[:2]


@given(st.binary(max_size=200), st.lists(st.integers(0, 9), min_size=3, max_size=3))
def test_any_message_of_a_server_is_read_or_refused(raw: bytes, counts: list[int]) -> None:
    head = QUERY[:2] + b"\x81\x80\0\1" + b"".join(n.to_bytes(2, "big") for n in counts)
    try:
        answer = wire.read_answer(head + QUERY[12:] + raw, len(QUERY))
    except ValueError:
        return
    assert len(answer.aged(7)) == len(answer.body) <= len(raw)


def test_lifetimes() -> None:
    soa = b"\0\0" + b"\0" * 16 + (9).to_bytes(4, "big")
    cases = {
        answer_to(QUERY, record(1, 60, b"\1\2\3\4"), record(1, 40, b"\1\2\3\5")): 40,
        answer_to(QUERY, record(1, 86400, b"\1\2\3\4")): wire.MOST_TTL,
        answer_to(QUERY, record(1, 1 << 31, b"\1\2\3\4")): 0,  # RFC 2181, 8
        answer_to(QUERY, record(6, 60, soa), code=3, authority=1): 9,
        answer_to(QUERY, record(6, 5, soa), authority=1): 5,
        answer_to(QUERY, record(5, 4, b"\xc0\x0c"), record(6, 60, soa), code=3, authority=1): 4,
        answer_to(QUERY, code=3): 0,
        answer_to(QUERY, record(1, 60, b"\1\2\3\4"), code=2): 0,
    }
    assert [wire.read_answer(each, len(QUERY)).lifetime for each in cases] == list(cases.values())


def test_ttls_grow_old_and_end_at_zero() -> None:
    answer = wire.read_answer(answer_to(QUERY, record(1, 60, b"\1\2\3\4"), record(1, 5, b"\1\2\3\5")), len(QUERY))
    assert answer.aged(10) == record(1, 50, b"\1\2\3\4") + record(1, 0, b"\1\2\3\5")
    assert answer.aged(0) == answer.body
    assert answer.stale(30) == record(1, 30, b"\1\2\3\4") + record(1, 30, b"\1\2\3\5")


@given(st.integers(0, (1 << 256) - 1))
def test_mixed_case_is_the_same_question(random: int) -> None:
    sent = wire.mixed_case(question().wire, random)
    assert sent.lower() == question().wire.lower()
    reply = answer_to(QUERY[:12] + sent)
    assert fit_of(reply, QUERY[:2], sent) is Fit.ANSWER
    assert fit_of(reply, b"\0\0", sent) is Fit.STRANGE
    other = wire.mixed_case(question().wire, ~random)
    assert fit_of(reply, QUERY[:2], other) is Fit.OTHER_CASE


def test_what_is_kept_is_bounded_in_number_and_size(monkeypatch) -> None:
    monkeypatch.setattr(kept_answers, "MOST_ANSWERS", 3)
    cache = Cache()
    for n in range(5):
        cache.put(b"%d" % n, Answer(0, (1, 0, 0), b"", lifetime=10), 0.0)
    assert [n for n in range(5) if cache.get(b"%d" % n, 1.0)] == [2, 3, 4]
    cache.get(b"2", 1.0)
    cache.put(b"9", Answer(0, (1, 0, 0), b"", lifetime=10), 0.0)
    assert cache.get(b"2", 1.0) and not cache.get(b"3", 1.0)
    monkeypatch.setattr(kept_answers, "MOST_OCTETS", 4500)
    cache.put(b"9", Answer(0, (1, 0, 0), b"x" * 2000, lifetime=10), 0.0)
    assert len(cache) == 1
    cache.put(b"9", Answer(0, (1, 0, 0), b"x" * 20000, lifetime=10), 0.0)
    assert len(cache) == 0


def test_steps_ask_each_server_before_one_twice() -> None:
    steps = steps_of([ONE, TWO, THREE], {each: Health() for each in (ONE, TWO, THREE)}, 100.0)
    assert [(step.server, step.transport) for step in steps[:6]] == [
        *((each, "udp") for each in (ONE, TWO, THREE)),
        *((each, "tcp") for each in (ONE, TWO, THREE)),
    ]
    assert sum(step.patience for step in steps[:3]) <= 3.0


def test_a_server_that_failed_is_last_and_then_tested() -> None:
    health = {ONE: Health(failed=110.0, tested=True), TWO: Health()}
    assert [step.server for step in steps_of([ONE, TWO], health, 100.0)[:2]] == [TWO, ONE]
    first, second = steps_of([ONE, TWO], health, 110.0)[:2]
    assert (first.server, first.patience, second.server) == (ONE, 0.0, TWO)
    assert steps_of([ONE], {ONE: health[ONE]}, 110.0)[0].patience == 1.0


def test_a_server_by_tcp_alone_is_asked_so() -> None:
    steps = steps_of([ONE], {ONE: Health(by_tcp=110.0)}, 100.0)
    assert [step.transport for step in steps[:2]] == ["tcp", "udp"]


def test_a_client_has_a_share_and_the_greediest_yields() -> None:
    waiting = Waiting()
    for client in range(MOST // MOST_OF_ONE):
        for _ in range(MOST_OF_ONE):
            assert waiting.admit(waiter(f"greedy{client}")) is None
        one_more = waiter(f"greedy{client}")
        assert waiting.admit(one_more) is one_more
    modest = waiter("modest")
    out = waiting.admit(modest)
    assert out is not None and out.client.startswith("greedy")
    assert len(waiting) == MOST
    waiting.remove(modest)
    waiting.remove(modest)
    assert len(waiting) == MOST - 1
