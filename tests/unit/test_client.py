"""One connection and the slot it lives in: dialling, round trips, what breaks it and what follows."""

import threading
import time

import pytest

from cni.overlay import wire
from cni.overlay.client import SUPERVISED, Deadline, Dialing, dial
from cni.overlay.errors import CodecError, DeadlinePassed, Refused, TransportError, Unexpected
from cni.overlay.framing import LARGEST, frame
from cni.overlay.session import Session
from tests.unit.fake_overlayd import FakeOverlayd, before, hang_up, raw, reply, silence

EVENT = wire.PeerHealthChanged("k", False)


@pytest.fixture
def daemon(tmp_path):
    fake = FakeOverlayd(tmp_path / "o.sock").start()
    yield fake
    fake.stop()


@pytest.fixture
def conn(daemon):
    client = dial(daemon.path, Deadline(5), Dialing())
    yield client
    client.close()


def ask(conn, request=None, seconds=5.0):
    return conn.round_trip(request or wire.StatusRequest(), Deadline(seconds))


def test_requests_are_numbered_from_one(daemon, conn):
    ids = []

    def note(sock, id_):
        ids.append(id_)
        reply(wire.Ok())(sock, id_)

    for _ in range(3):
        daemon.next(wire.NatTick, note)
        assert ask(conn, wire.NatTick()) == wire.Ok()
    conn._id = 2**64 - 2
    for _ in range(2):
        daemon.next(wire.NatTick, note)
        ask(conn, wire.NatTick())
    assert ids == [1, 2, 3, 2**64 - 1, 0]


def test_a_refusal_leaves_the_connection_good(daemon, conn):
    daemon.next(wire.NatTick, reply(wire.Err("overlay engine error: no")))
    with pytest.raises(Refused) as caught:
        ask(conn, wire.NatTick())
    assert caught.value.msg == "overlayd: overlay engine error: overlay engine error: no"
    assert caught.value.message == "overlay engine error: no"
    assert ask(conn, wire.NatTick()) == wire.Ok()


def test_events_and_other_answers_are_passed_over(daemon):
    heard = []
    conn = dial(daemon.path, Deadline(5), Dialing(), heard.append)
    daemon.next(wire.NatTick, before(wire.Ok(), EVENT, wire.ResponseFrame(77, wire.Err("late")), EVENT))
    assert ask(conn, wire.NatTick()) == wire.Ok()
    assert heard == [EVENT, EVENT]


def test_a_listener_that_fails_does_not_cost_the_answer(daemon, caplog):
    def fail(event):
        raise ValueError(event.pubkey)

    conn = dial(daemon.path, Deadline(5), Dialing(), fail)
    daemon.next(wire.NatTick, before(wire.Ok(), EVENT))
    assert ask(conn, wire.NatTick()) == wire.Ok()
    assert "the listener failed on PeerHealthChanged" in caplog.text
    conn.close()


def test_a_request_from_the_daemon_is_a_surprise(daemon, conn):
    daemon.next(wire.NatTick, before(wire.Ok(), wire.RequestFrame(1, wire.NatTick())))
    with pytest.raises(Unexpected, match="sent a request"):
        ask(conn, wire.NatTick())
    assert ask(conn).peer_count == 0  # the late Ok is skipped by its id


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (hang_up, "overlayd: connection closed by peer"),
        (raw(b"\x05\0"), "overlayd: connection closed by peer"),
        (raw(b"\x05\0\0\0{}"), "overlayd: io error: unexpected end of file"),
        (raw((LARGEST + 1).to_bytes(4, "little")), r"overlayd: frame too large: 8388609 bytes \(max 8388608\)"),
        (raw(frame(b"")), "overlayd: frame codec error: "),
        (raw(frame(b'{"frame":"response","id":1,"response":{"result":"queued"}}')), "overlayd: frame codec error: "),
    ],
    ids=["closed", "closed in a header", "cut", "too large", "empty", "unknown result"],
)
def test_what_breaks_a_connection(daemon, conn, answer, words):
    daemon.next(wire.NatTick, answer)
    with pytest.raises(TransportError, match=words):
        ask(conn, wire.NatTick())
    with pytest.raises(TransportError, match="connection closed by peer"):
        ask(conn)
    assert daemon.ops() == ["nat_tick"]


def test_a_silent_daemon_is_given_up_on_with_words_that_help(daemon, conn):
    daemon.next(wire.NatTick, silence)
    began = time.monotonic()
    with pytest.raises(DeadlinePassed) as caught:
        ask(conn, wire.NatTick(), 0.2)
    assert time.monotonic() - began < 20
    assert caught.value.code == 11
    assert caught.value.msg == f"overlayd: {daemon.path} did not answer NatTick within 0.2 s"
    assert "SIGKILL" in caught.value.details


def test_a_trickle_does_not_stretch_the_deadline(daemon, conn):
    def trickle(sock, _):
        sock.sendall(b"\xff\xff\0\0")
        for _ in range(2000):
            sock.sendall(b"x")
            time.sleep(0.02)

    daemon.next(wire.NatTick, trickle)
    began = time.monotonic()
    with pytest.raises(DeadlinePassed):
        ask(conn, wire.NatTick(), 0.2)
    assert 0.15 < time.monotonic() - began < 20


def test_a_value_that_does_not_fit_is_refused_before_anything_is_sent(daemon, conn):
    with pytest.raises(CodecError):
        ask(conn, wire.DetachContainer(wire.LinuxPid(-1)))
    assert ask(conn).peer_count == 0
    assert daemon.ops() == ["status"]


def test_threads_wait_for_each_other_and_get_their_own_answers(daemon, conn):
    got = {}

    def allocate(n):
        got[n] = ask(conn, wire.AllocateIp(f"s{n}", False)).ip

    threads = [threading.Thread(target=allocate, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got.values())) == 8


def pauses(attempts, tmp_path, seconds=60.0):
    slept = []
    with pytest.raises(TransportError, match="io error") as caught:
        dial(str(tmp_path / "none"), Deadline(seconds), Dialing(attempts=attempts, sleep=slept.append))
    return slept, caught.value


def test_six_attempts_with_doubling_pauses(tmp_path):
    slept, error = pauses(Dialing().attempts, tmp_path)
    assert slept == [0.1, 0.2, 0.4, 0.8, 1.0]
    assert "attempt 6" in error.details
    assert error.code == 11


def test_no_attempts_is_one_and_a_supervisor_has_twenty(tmp_path):
    assert pauses(0, tmp_path)[0] == []
    assert pauses(SUPERVISED.attempts, tmp_path)[0] == [0.1, 0.2, 0.4, 0.8] + [1.0] * 15


def test_dialling_ends_with_the_deadline(tmp_path):
    assert pauses(20, tmp_path, 0.3)[0] == [0.1, 0.2]


def test_a_dial_waits_for_a_daemon_that_comes_up(tmp_path):
    fake = FakeOverlayd(tmp_path / "late.sock")
    how = Dialing(sleep=lambda _: fake.start() if not fake._threads else None)
    conn = dial(fake.path, Deadline(5), how)
    assert ask(conn).peer_count == 0
    fake.stop()


class Plain:
    """Dials one path, as often as by default."""

    def __init__(self, path):
        self.address = path

    def dial(self, deadline):
        return dial(self.address, deadline, Dialing())


@pytest.fixture
def session(daemon):
    session = Session(Plain(daemon.path), lambda conn, deadline: conn.round_trip(wire.NatTick(), deadline))
    yield session
    session.close()


def run(session, request, seconds=5.0):
    deadline = Deadline(seconds)
    return session.run(lambda conn: conn.round_trip(request, deadline), deadline)


def test_one_connection_is_kept(daemon, session):
    for _ in range(3):
        run(session, wire.StatusRequest())
    assert (daemon.accepted, daemon.ops()) == (1, ["status"] * 3)


def test_a_broken_connection_is_replaced_once_and_the_request_sent_again(daemon, session):
    daemon.next(wire.Shutdown, hang_up)
    assert run(session, wire.Shutdown()) == wire.Ok()
    assert (daemon.accepted, daemon.ops()) == (2, ["shutdown", "nat_tick", "shutdown"])


def test_the_second_result_is_final_and_the_next_call_replaces_again(daemon, session):
    for _ in range(2):
        daemon.next(wire.Shutdown, hang_up)
    with pytest.raises(TransportError):
        run(session, wire.Shutdown())
    daemon.ops()
    assert run(session, wire.Shutdown()) == wire.Ok()
    assert (daemon.accepted, daemon.ops()) == (3, ["nat_tick", "shutdown"])


def test_a_refusal_is_not_repeated(daemon, session):
    daemon.next(wire.Shutdown, reply(wire.Err("no")))
    with pytest.raises(Refused):
        run(session, wire.Shutdown())
    assert daemon.ops() == ["shutdown"]


def test_a_passed_deadline_is_not_repeated_but_the_connection_is_replaced_afterwards(daemon, session):
    daemon.next(wire.Shutdown, silence)
    with pytest.raises(DeadlinePassed):
        run(session, wire.Shutdown(), 0.2)
    assert daemon.ops() == ["shutdown"]
    assert run(session, wire.Shutdown()) == wire.Ok()
    assert daemon.ops() == ["nat_tick", "shutdown"]


def test_a_dead_daemon_is_an_error_of_the_dial(daemon, session):
    run(session, wire.StatusRequest())
    daemon.stop()
    with pytest.raises(TransportError, match="io error") as caught:
        run(session, wire.StatusRequest(), 0.5)
    assert "connecting to" in caught.value.details
    daemon.start()
    run(session, wire.StatusRequest())


def test_callers_queue_behind_one_dial(daemon):
    dialled = threading.Event()
    session = Session(Plain(daemon.path), lambda conn, deadline: None)
    connections = []

    def use():
        dialled.wait()
        connections.append(session.connection(Deadline(5)))

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    dialled.set()
    for thread in threads:
        thread.join()
    assert len(set(map(id, connections))) == 1
    session.close()


def test_waiting_for_anothers_dial_ends_with_the_deadline(tmp_path):
    session = Session(Plain(str(tmp_path / "none")), lambda conn, deadline: None)
    with session._lock, pytest.raises(DeadlinePassed, match="could not be reached"):
        run(session, wire.StatusRequest(), 0.1)
