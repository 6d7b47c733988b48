"""What the fence costs: admitting a port beside 10, 200 and 2,000 members, in one network and in 200; then the whole
attach (`cost_attach.py`), ours and, where it has been built, that of ZLayer's daemon.

    python -m tests.kernel.fence.cost

Exits with 1 if the whole attach is not flat. As root, in namespaces of its own. Prints medians in milliseconds; trust
the ratios.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.elements import change, of_port
from cni.daemon.fence.model import FenceBridge, FenceNode, FencePort
from cni.host.nft import Nft

from . import cost_attach
from .spaces import Space

NODE = FenceNode(("10.200.0.0/16", "fd00:200::/48"), ("10.200.0.1", "fd00:200::1"))
ROUNDS = 100


def port(number: int, network: str) -> FencePort:
    """A dual-stack port of its own."""
    name, mac = f"zl-{number:010x}-v", "02:00:" + number.to_bytes(4, "big").hex(":")
    addresses = (f"10.200.{number >> 8}.{number & 255}", f"fd00:200::1:{number:x}")
    return FencePort(name, "zl-a-1-web-b", mac, addresses, network)


def timed(work: Callable[[], object]) -> float:
    """Milliseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1000


def populated(members: int, networks: int) -> Iterator[Nft]:
    """A fence with that many members, spread over that many networks."""
    space = Space("cost")
    nft = space.inside(Nft)
    nft.run(fence.base(NODE) + "".join(fence.create_network(f"n{i}") for i in range(networks)))
    nft.run(fence.open_bridge(FenceBridge("zl-a-1-web-b", "02:42:00:00:00:05")))
    for start in range(0, members, 500):
        numbers = range(start, min(start + 500, members))
        nft.run(change(add=(e for i in numbers for e in of_port(port(i + 1, f"n{i % networks}")))))
    yield nft
    nft.close()
    space.close()


HEAD = ("members", "networks", "admit", "p99", "expel", "check", "new net", "list")


def measure(nft: Nft) -> list[float]:
    """One row: medians, and the second slowest admission."""
    newcomers = [port(60000 + i, "n0") for i in range(ROUNDS)]
    admits = [timed(partial(nft.run, fence.add_port(p))) for p in newcomers]
    checks = [timed(partial(nft.absent, fence.add_port(p))) for p in newcomers]
    expels = [timed(partial(nft.run, fence.remove_port(p))) for p in newcomers]
    fresh = [timed(partial(nft.run, fence.create_network(f"x{i}"))) for i in range(10)]
    listed = [timed(partial(nft.list_table, "inet", "zlayer_cni")) for _ in range(3)]
    return [
        statistics.median(admits),
        sorted(admits)[-2],
        *(statistics.median(x) for x in (expels, checks, fresh, listed)),
    ]


def main() -> int:
    """Measure and print; the exit code."""
    say = sys.stdout.write
    say(" ".join(f"{word:>8}" for word in HEAD) + "\n")
    for members, networks in ((10, 1), (200, 1), (2000, 1), (2000, 200)):
        for nft in populated(members, networks):
            say(f"{members:>8} {networks:>8} " + " ".join(f"{column:8.2f}" for column in measure(nft)) + "\n")
    flat = cost_attach.of_ours()
    cost_attach.of_daemons()
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
