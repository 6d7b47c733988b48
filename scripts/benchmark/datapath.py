"""Two containers of one node: TCP throughput and UDP round trip, fenced, with a bridge and routed, beside `bridge`
chained with `firewall`."""

from __future__ import annotations

import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from benchmark import netns
from benchmark.contender import Contender, namespaces

T = TypeVar("T")
SECONDS, PINGS, ROUNDS = 0.5, 1000, 6
PORT = 5201


def measure(ours: list[Contender], reference: Contender, firewall: Contender) -> dict[str, Any]:
    """Medians over the rounds, each contender in turn: bytes per second, and microseconds."""
    with namespaces("data", 2 * len(ours) + 2) as every:
        pairs = {}
        places = [(plugin, every[2 * n : 2 * n + 2]) for n, plugin in enumerate([*ours, reference])]
        for plugin, names in places:
            results = [json.loads(plugin.call("ADD", name, f"/run/netns/{name}")) for name in names]
            if plugin is reference:
                for name, result in zip(names, results, strict=True):
                    firewall.call("ADD", name, f"/run/netns/{name}", result)
            pairs[plugin.name] = (*names, results[1]["ips"][0]["address"].partition("/")[0])
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in pairs}
        for _ in range(ROUNDS):
            for name, (near, far, address) in pairs.items():
                seen[name].append((throughput(near, far, address), round_trip(near, far, address)))
        for plugin, names in places:
            for name in names:
                if plugin is reference:
                    firewall.call("DEL", name, f"/run/netns/{name}")
                plugin.call("DEL", name, f"/run/netns/{name}")
    return {
        name: {
            "gigabit_per_second": round(statistics.median(rate for rate, _ in rows) * 8 / 1e9, 2),
            "round_trip_us": round(statistics.median(took for _, took in rows), 2),
        }
        for name, rows in seen.items()
    }


def inside(name: str, make: Callable[[], T]) -> T:
    """Make a socket in a namespace; it stays there."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        netns.enter(there)
        return make()
    finally:
        netns.enter(own)
        os.close(own)
        os.close(there)


def throughput(near: str, far: str, address: str) -> float:
    """Bytes per second of one TCP stream."""
    listener = inside(far, lambda: socket.create_server((address, PORT)))
    total = 0

    def drain() -> None:
        nonlocal total
        end, _ = listener.accept()
        room = bytearray(1 << 20)
        while size := end.recv_into(room):
            total += size
        end.close()

    thread = threading.Thread(target=drain)
    thread.start()
    begun, chunk = time.perf_counter(), bytes(1 << 18)
    with inside(near, lambda: socket.create_connection((address, PORT), 5)) as client:
        while time.perf_counter() - begun < SECONDS:
            client.sendall(chunk)
    thread.join()
    listener.close()
    return total / (time.perf_counter() - begun)


def round_trip(near: str, far: str, address: str) -> float:
    """The median of UDP round trips, in microseconds."""

    def opened() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    with inside(far, opened) as server, inside(near, opened) as client:
        server.bind((address, PORT))
        for end in (server, client):
            end.settimeout(2)
        times = []
        for _ in range(PINGS):
            begun = time.perf_counter()
            client.sendto(b"x", (address, PORT))
            _, back = server.recvfrom(16)
            server.sendto(b"y", back)
            client.recvfrom(16)
            times.append((time.perf_counter() - begun) * 1e6)
    return statistics.median(times)


def show(result: dict[str, Any]) -> None:
    """Print the figures, and the ratios to the reference."""
    print(f"\n{'same node':18}{'Gbit/s':>9}{'round trip us':>16}")
    for name, row in result.items():
        print(f"{name:18}{row['gigabit_per_second']:9.2f}{row['round_trip_us']:16.1f}")
    *mine, theirs = result.values()
    for name, ours in zip(result, mine, strict=False):
        rate = ours["gigabit_per_second"] / theirs["gigabit_per_second"]
        trip = ours["round_trip_us"] / theirs["round_trip_us"]
        print(f"{name:10} throughput / bridge+firewall{rate:8.2f}   bar 1.0{'' if rate >= 1 else '   MISSED'}")
        print(f"{name:10} round trip / bridge+firewall{trip:8.2f}   bar 1.0{'' if trip <= 1 else '   MISSED'}")
