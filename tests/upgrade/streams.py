"""Datagrams both ways between two containers, and how many were answered."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

from tests.mesh.fleet import Container

# Sends numbered datagrams at 1,000 a second and echoes those of the peer. After SIGTERM it prints how many of its own
# came back, as soon as all of them have or after 5 s, and echoes until its stdin is closed: a peer that the machine did
# not let run for a while still gets its answers.
STREAM = """
import select, signal, socket, struct, sys, time
mine, peer = sys.argv[1:]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE
sock.bind((mine, 7007))
sock.setblocking(False)
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(time.monotonic()))
sent, back, printed = 0, set(), False
print("up", flush=True)
sys.stdin.readline()
start = time.monotonic()
while not select.select([sys.stdin], [], [], 0)[0]:
    while not over and sent < (time.monotonic() - start) * 1000:
        sock.sendto(b"q" + struct.pack("=I", sent), (peer, 7007))
        sent += 1
    select.select([sock], [], [], 0.001)
    with_more = True
    while with_more:
        try:
            data, source = sock.recvfrom(64)
        except BlockingIOError:
            with_more = False
            continue
        if data[:1] == b"q":
            sock.sendto(b"a" + data[1:], source)
        else:
            back.add(data)
    if over and not printed and (len(back) == sent or time.monotonic() > over[0] + 5.0):
        printed = True
        print(sent, len(back), flush=True)
"""


@contextlib.contextmanager
def stream(one: Container, two: Container) -> Iterator[Callable[[], dict[str, tuple[int, int]]]]:
    """Datagrams both ways between two containers; call what is given for (sent, answered) of each."""
    ends = {}
    for here, there in ((one, two), (two, one)):
        words = [
            "nsenter",
            "-t",
            str(here.process.pid),
            "-n",
            sys.executable,
            "-c",
            STREAM,
            here.address,
            there.address,
        ]
        here.run("ping", "-n", "-q", "-c", "2", "-i", "0.2", "-w", "5", there.address)
        ends[here.name] = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    for end in ends.values():
        assert end.stdout is not None and end.stdout.readline() == "up\n"
    for end in ends.values():  # both sockets are bound before the first datagram is sent
        assert end.stdin is not None
        end.stdin.write("go\n")
        end.stdin.flush()

    def told() -> dict[str, tuple[int, int]]:
        for end in ends.values():
            end.send_signal(signal.SIGTERM)
        found = {}
        for name, end in ends.items():
            assert end.stdout is not None
            sent, back = end.stdout.readline().split()
            found[name] = (int(sent), int(back))
        for end in ends.values():
            end.communicate(timeout=30)
        return found

    try:
        yield told
    finally:
        for end in ends.values():
            end.kill()
            end.wait()


def lost(told: dict[str, tuple[int, int]]) -> dict[str, int]:
    """How many datagrams were not answered, by the name of the sender."""
    return {name: sent - answered for name, (sent, answered) in told.items()}
