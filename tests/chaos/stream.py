"""A stream of numbered packets between containers, and how many were lost.

Each end is a process in a container's namespace: it sends UDP packets at a steady rate to every other end it was told
of, and counts which numbers came from whom. A sender that the machine did not let run catches up; a receiver has room
for seconds of packets. So a number that is missing at the end was lost on its way.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .machine import Machine, Space

RATE = 1000  # packets a second, to each peer
PORT = 7007

END = """
import json, select, signal, socket, struct, sys, time
mine, rate, port, *peers = sys.argv[1:]
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE
sock.bind((mine, int(port)))
sock.setblocking(False)
over = []
signal.signal(signal.SIGTERM, lambda *_: over.append(1))
sent, refused, seen, gap, begun, mute, last = 0, 0, {}, 0.0, 0.0, False, {}
print("up", flush=True)
sys.stdin.readline()
start = begun = time.monotonic()
while True:
    now = time.monotonic()
    if over and not mute:
        mute, end = True, now + 1.0
    if mute and now > end:
        break
    while not mute and sent < (now - start) * int(rate):
        for peer in peers:
            try:
                sock.sendto(struct.pack("=I", sent) + b"." * 60, (peer, int(port)))
            except OSError:
                refused += 1
        sent += 1
    select.select([sock], [], [], 0.001)
    while True:
        try:
            data, (host, _) = sock.recvfrom(128)
        except BlockingIOError:
            break
        seen.setdefault(host, set()).add(struct.unpack("=I", data[:4])[0])
        arrived = time.monotonic()
        gap = max(gap, arrived - last.get(host, arrived))
        last[host] = arrived
print(json.dumps({"sent": sent, "refused": refused, "seen": {h: len(n) for h, n in seen.items()}, "gap": gap}))
"""


@dataclass(frozen=True)
class Told:
    """What came of a stream: packets sent, lost (by direction), and the longest silence in seconds."""

    sent: int
    lost: dict[str, int]
    longest_gap: float


class Stream:
    """Runs between `enter` and `told`."""

    def __init__(self, on: Machine, spaces: Mapping[str, Space], pairs: list[tuple[str, str]]) -> None:
        """`spaces` by address; `pairs` of addresses talk to each other, both ways."""
        self._pairs = pairs
        self._ends = {}
        for address, space in spaces.items():
            peers = [b if a == address else a for a, b in pairs if address in (a, b)]
            command = [
                "nsenter",
                f"--net={space.path}",
                sys.executable,
                "-c",
                END,
                address,
                str(RATE),
                str(PORT),
                *peers,
            ]
            self._ends[address] = on.inside(
                lambda command=command: subprocess.Popen(  # type: ignore[misc]
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
        for end in self._ends.values():
            assert end.stdout is not None and end.stdout.readline() == "up\n"
        for a, b in pairs:  # neighbours and flows are known before the first packet counts
            for here, there in ((a, b), (b, a)):
                spaces[here].sh(f"ping -n -q -c 2 -i 0.2 -w 5 {there}")
        for end in self._ends.values():
            assert end.stdin is not None
            end.stdin.write("go\n")
            end.stdin.flush()

    def told(self) -> Told:
        """End it, and say what was lost."""
        for end in self._ends.values():
            end.send_signal(signal.SIGTERM)
        found = {address: json.loads(end.communicate(timeout=20)[0]) for address, end in self._ends.items()}
        lost = {}
        for a, b in self._pairs:
            for here, there in ((a, b), (b, a)):
                lost[f"{here} to {there}"] = found[here]["sent"] - found[there]["seen"].get(here, 0)
        return Told(sum(each["sent"] for each in found.values()), lost, max(each["gap"] for each in found.values()))

    def kill(self) -> None:
        for end in self._ends.values():
            if end.poll() is None:
                end.kill()
                end.wait()


@contextlib.contextmanager
def stream(on: Machine, spaces: Mapping[str, Space], pairs: list[tuple[str, str]]) -> Iterator[Stream]:
    """A stream for a `with`; nothing of it outlives the block."""
    made = Stream(on, spaces, pairs)
    try:
        time.sleep(0.3)
        yield made
    finally:
        made.kill()
