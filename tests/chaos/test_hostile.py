"""Callers that mean no good, or are broken: containers come and go all the same, and what they cost is given back.

Both doors, one daemon throughout: it is the same process at the end, with the descriptors and about the memory it had.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni import plugin_protocol
from cni.plugin import client

from .machine import Machine, Space
from .scenes import a_plugin_is_killed_before_it_can_print, a_plugin_is_killed_in_an_add, in_order
from .test_storm import QUICK

MANY = 2500
GROWTH = 32 << 20  # bytes a daemon may have more than before: the allocator's own, some 5 KiB for each client at once
AGAIN = 6 << 20  # bytes that a second crowd may cost beyond the first: nothing of the first may stay
SLACK = 6  # descriptors: a thread that had nothing to do before may have opened its netlink socket
CALL = client.request({b"CNI_COMMAND": b"STATUS"}, {}, b'{"cniVersion":"1.1.0","name":"net","type":"zlayer-cni"}')


@pytest.fixture
def on(one_form: str, boot: Callable[..., Machine]) -> Iterator[Machine]:
    """A machine with a daemon that has done everything once; afterwards it must be as it was."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20000), hard))
    machine = boot(one_form, "address_cooldown: 0")
    machine.program.tune(**QUICK)
    pid = machine.start_daemon()
    for _ in range(3):
        come_and_go(machine)
    employ_everybody(machine)
    descriptors, memory = open_descriptors(pid), resident(pid)
    yield machine
    assert machine.daemon() == pid, "it is not the same process any more"
    in_order(machine)
    end = time.monotonic() + 15
    while (open_descriptors(pid) > descriptors + SLACK or resident(pid) - memory > GROWTH) and time.monotonic() < end:
        time.sleep(0.1)
    assert open_descriptors(pid) <= descriptors + SLACK, links(pid)
    assert resident(pid) - memory <= GROWTH, f"{memory} bytes before, {resident(pid)} after"
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def employ_everybody(on: Machine) -> None:
    """Have each of the daemon's threads work once: each opens a netlink socket of its own, and keeps it."""
    pairs = {b"CNI_COMMAND": b"DEL", b"CNI_IFNAME": b"eth0"}
    for _ in range(3):
        on.signal_daemon(signal.SIGSTOP, wait=False)
        with knocking(doors(on)[0], 100) as clients:
            for n, sock in enumerate(clients):
                body = client.request({**pairs, b"CNI_CONTAINERID": b"none%d" % n}, {}, b'{"name":"net"}')
                sock.sendall(len(body).to_bytes(4, "big") + body)
            on.signal_daemon(signal.SIGCONT, wait=False)
            for sock in clients:
                while sock.recv(1 << 16):
                    pass


def doors(on: Machine) -> list[Path]:
    """The sockets: the plugins' and the agents'."""
    return [on.run_dir / "cni.sock", on.data_dir / "run/zlayer-overlayd.sock"]


def come_and_go(on: Machine) -> float:
    """An ADD and a DEL, which must succeed; how long the longer of them took."""
    space = Space(on)
    added = on.call("ADD", on.conf(), "good", space.path)
    added.ok()
    gone = on.call("DEL", on.conf(), "good", space.path)
    gone.ok()
    space.delete()
    return max(added.took, gone.took)


def open_descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def links(pid: int) -> list[str]:
    return sorted(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


@contextlib.contextmanager
def knocking(path: Path, many: int) -> Iterator[list[socket.socket]]:
    """So many connections that say nothing."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(many):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.settimeout(20)
            sock.connect(str(path))
            clients.append(sock)
        yield clients


@pytest.mark.timeout(600)
def test_idle_connections(on: Machine) -> None:
    first, second = doors(on)
    sizes = []
    for _ in range(3):
        with knocking(first, MANY), knocking(second, MANY):
            assert max(come_and_go(on) for _ in range(3)) < 8
        descriptors = MANY
        while descriptors > MANY // 10:  # the daemon has noticed that they are gone
            descriptors = open_descriptors(on.daemon())
            time.sleep(0.05)
        sizes.append(resident(on.daemon()))
    assert sizes[2] - sizes[0] <= AGAIN, sizes


@pytest.mark.timeout(600)
def test_half_frames_and_slow_clients(on: Machine) -> None:
    """Lengths without a body, bodies without an end, one byte at a time, answers that the client does not read."""
    first, second = doors(on)
    with knocking(first, 200) as plugins, knocking(second, 200) as agents:
        for n, sock in enumerate(plugins):
            sock.sendall(((2, 7, 1 << 20)[n % 3]).to_bytes(4, "big") + b"zcni1\0"[: n % 6])
        for n, sock in enumerate(agents):
            sock.sendall(struct.pack("<I" if n % 2 else ">I", 300) + b'{"'[: n % 3])
        assert max(come_and_go(on) for _ in range(2)) < 8
        deaf = plugins[:50]
        for sock in deaf:
            with contextlib.suppress(OSError):
                sock.sendall(len(CALL).to_bytes(4, "big") + CALL)
        for sock in plugins[50:100]:
            with contextlib.suppress(OSError):
                sock.sendall(b"\0")
        assert come_and_go(on) < 8


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "stdin",
    [
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{"name":"net","x":"' + b"y" * (7 << 20) + b'"}',
        b'{"name":"net","type":"zlayer-cni","cniVersion":"1.1.0","a":[' + b"0," * (2 << 20) + b"0]}",
        b"\xff\xfe" * 100_000,
        b'{"name":"net","name":' + b"1" * 100_000 + b"}",
    ],
    ids=["nested lists", "nested objects", "a long string", "a long list", "no text", "a long number"],
)
def test_huge_and_deep_configurations(on: Machine, stdin: bytes) -> None:
    """Straight to the door, as the plugin would hand them on."""
    body = client.request({b"CNI_COMMAND": b"ADD", b"CNI_CONTAINERID": b"x", b"CNI_IFNAME": b"eth0"}, {}, stdin)
    for _ in range(4):
        with knocking(doors(on)[0], 1) as (sock,):
            sock.sendall(len(body).to_bytes(4, "big") + body)
            answer = b""
            while part := sock.recv(1 << 16):
                answer += part
        assert answer[4:].startswith(b"1 "), answer[:200]
    assert come_and_go(on) < 8
    for name in (b"a" * 100, b"\0\xff"):  # and the other door
        with knocking(doors(on)[1], 1) as (sock,):
            sock.sendall(struct.pack("<I", len(stdin[:60000]) + len(name)) + stdin[:60000] + name)
            sock.settimeout(0.2)
            with contextlib.suppress(OSError):
                sock.recv(100)


@pytest.mark.timeout(600)
def test_a_frame_larger_than_any(on: Machine) -> None:
    for path in doors(on):
        with knocking(path, 20) as clients:
            for sock in clients:
                with contextlib.suppress(OSError):
                    sock.sendall(b"\x7f\xff\xff\xff" * 4096)
            assert come_and_go(on) < 8


@pytest.mark.timeout(600)
def test_descriptors_where_none_belongs(on: Machine) -> None:
    """Hundreds with one byte each, in a frame that never ends: the daemon holds on to one of them at most."""
    pid, reader = on.daemon(), os.open("/dev/null", os.O_RDONLY)
    before = open_descriptors(pid)
    for path, order in zip(doors(on), (">I", "<I"), strict=True):
        with knocking(path, 4) as clients:
            for sock in clients:
                sock.sendall(struct.pack(order, 4000))
                for _ in range(100):
                    socket.send_fds(sock, [b"."], [reader] * 60)
            assert come_and_go(on) < 8
            assert open_descriptors(pid) < before + 30, links(pid)
    os.close(reader)


@pytest.mark.timeout(600)
def test_calls_with_every_kind_of_descriptor(on: Machine) -> None:
    """A pipe, a socket, a directory, a mount namespace: none is a network namespace, and all are closed again."""
    body = client.request(
        {b"CNI_COMMAND": b"ADD", b"CNI_CONTAINERID": b"x", b"CNI_IFNAME": b"eth0", b"CNI_NETNS": b"/x"},
        {},
        b'{"cniVersion":"1.1.0","name":"net","type":"zlayer-cni"}',
    )
    pipe = os.pipe()
    kinds = [*pipe, os.open("/", os.O_RDONLY), os.open("/proc/self/ns/mnt", os.O_RDONLY)]
    for fd in kinds:
        with knocking(doors(on)[0], 1) as (sock,):
            socket.send_fds(sock, [len(body).to_bytes(4, "big") + body], [fd, fd])
            assert b'"code":8' in sock.recv(1 << 16)
    for fd in kinds:
        os.close(fd)


@pytest.mark.timeout(600)
def test_plugins_that_are_killed(on: Machine) -> None:
    """Between sending and receiving, at the daemon's every step, and after the commit."""
    for _ in range(3):
        a_plugin_is_killed_in_an_add(on)
        a_plugin_is_killed_before_it_can_print(on)
    assert come_and_go(on) < 8


@pytest.mark.timeout(600)
def test_a_daemon_that_was_asleep_does_nothing_for_nobody(on: Machine) -> None:
    """Two hundred ADDs are sent to a stopped daemon, and their plugins end: it continues, and attaches none."""
    space = Space(on)
    pairs = {b"CNI_COMMAND": b"ADD", b"CNI_IFNAME": b"eth0", b"CNI_NETNS": space.path.encode()}
    fd = on.inside(lambda: os.open(space.path, os.O_RDONLY))
    on.signal_daemon(signal.SIGSTOP, wait=False)
    with knocking(doors(on)[0], 200) as clients:
        for n, sock in enumerate(clients):
            body = client.request(
                {**pairs, b"CNI_CONTAINERID": b"dead%d" % n},
                {plugin_protocol.CONFIRMS: b"1"},
                b'{"cniVersion":"1.1.0","name":"n"}',
            )
            socket.send_fds(sock, [len(body).to_bytes(4, "big") + body], [fd])
    os.close(fd)
    written = len(on.stored("released"))
    on.signal_daemon(signal.SIGCONT, wait=False)
    assert come_and_go(on) < 8
    assert len(on.stored("released")) - written <= 1, "addresses were taken for calls whose plugins had ended"
