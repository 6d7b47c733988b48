"""The data path with the fence and without it, in one run: TCP throughput and UDP round trip, on a bridge and across.

"Unfenced" is what any overlay has: masquerade, and so connection tracking.

    python -m tests.kernel.fence.throughput

As root, in namespaces of its own. The machine is noisy: the two are measured by turns.
"""

from __future__ import annotations

import socket
import statistics
import sys
import threading
import time

from cni.daemon.fence import ruleset as fence

from .lab import Lab, Place, opened

MASQUERADE = """
table inet zlt_masq {
  chain post {
    type nat hook postrouting priority srcnat;
    ip saddr 10.200.0.0/16 ip daddr != 10.200.0.0/16 masquerade
  }
}
"""
SECONDS, ROUNDS = 0.5, 6


def _bytes_per_second(src: Place, dst: Place) -> float:
    listener = dst.space.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(True)
    listener.bind((dst.four, 0))
    listener.listen()
    total = 0

    def drain() -> None:
        nonlocal total
        end, _ = listener.accept()
        while data := end.recv(1 << 20):
            total += len(data)
        end.close()

    thread = threading.Thread(target=drain)
    thread.start()
    start, chunk = time.perf_counter(), bytes(1 << 18)
    with src.space.socket(socket.AF_INET, socket.SOCK_STREAM) as near:
        near.setblocking(True)
        near.connect((dst.four, listener.getsockname()[1]))
        while time.perf_counter() - start < SECONDS:
            near.sendall(chunk)
    thread.join()
    listener.close()
    return total / (time.perf_counter() - start)


def _round_trip(src: Place, dst: Place) -> float:
    """Median microseconds of a UDP ping-pong."""
    with (
        dst.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as far,
        src.space.socket(socket.AF_INET, socket.SOCK_DGRAM) as near,
    ):
        for end, place in ((far, dst), (near, src)):
            end.setblocking(True)
            end.settimeout(2)
            end.bind((place.four, 0))
        times = []
        for _ in range(1000):
            start = time.perf_counter()
            near.sendto(b"x", far.getsockname())
            _, who = far.recvfrom(10)
            far.sendto(b"y", who)
            near.recvfrom(10)
            times.append((time.perf_counter() - start) * 1e6)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    with opened() as lab:
        for target in ("red-web2", "red-db"):
            for nf_call in (0, 1):
                lab.nf_call(nf_call)
                _compare(lab, target, nf_call)


def _compare(lab: Lab, target: str, nf_call: int) -> None:
    src, dst = lab.places["red-web"], lab.places[target]
    speed: dict[bool, list[float]] = {True: [], False: []}
    trip: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for fenced in (True, False):
            if fenced:
                lab.nft.run("add table inet zlt_masq\ndelete table inet zlt_masq\n")
                lab.load()
            else:
                lab.nft.run(fence.uninstall() + MASQUERADE)
            speed[fenced].append(_bytes_per_second(src, dst) * 8 / 1e9)
            trip[fenced].append(_round_trip(src, dst))
    said = [
        f"{'fenced' if f else 'unfenced'} {statistics.median(speed[f]):.1f} Gbit/s {statistics.median(trip[f]):.0f} us"
        for f in (True, False)
    ]
    sys.stdout.write(f"red-web to {target}, bridge-nf-call {nf_call}: {', '.join(said)}\n")


if __name__ == "__main__":
    main()
