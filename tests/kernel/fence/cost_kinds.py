"""What an attach costs with a bridge and without one, beside few and many containers of the same service.

    python -m tests.kernel.fence.cost_kinds [NEIGHBOURS]

As root, some two minutes. The neighbours are real containers, attached by the same code, and the kinds take turns.
"""

from __future__ import annotations

import statistics
import sys

from cni.host import netns

from .cost_attach import Scene
from .spaces import Space

FEW, ROUNDS, EACH = 10, 100, 10
KINDS = ("bridge", "routed")


class Neighbours:
    """A node with containers of one kind; `scene` makes and removes one more."""

    def __init__(self, kind: str, count: int) -> None:
        self.scene = Scene(0, 1, attach=kind)
        # Some interfaces in each namespace: libnftables takes no descriptor from 1024 on (FD_SETSIZE).
        self.boxes = [Space(f"n{number}") for number in range(-(-count // EACH))]
        for number in range(count):
            box = self.boxes[number // EACH]
            self.scene.add(box.fd, netns.identify(box.fd), f"eth{number % EACH}")

    def close(self) -> None:
        for box in self.boxes:
            box.close()
        self.scene.close()


def main(most: str = "1000") -> None:
    """Print medians in milliseconds, and their ratios."""
    say = sys.stdout.write
    nodes = {(kind, count): Neighbours(kind, count) for count in (FEW, int(most)) for kind in KINDS}
    try:
        seen: dict[tuple[str, int], list[tuple[float, float]]] = {key: [] for key in nodes}
        for _ in range(ROUNDS):
            for key, node in nodes.items():
                seen[key].append(node.scene.once())
        say(f"medians of {ROUNDS} in ms\n{'kind':>8} {'neighbours':>11} {'attach':>8} {'detach':>8}\n")
        for (kind, count), row in seen.items():
            attach, detach = (statistics.median(column) for column in zip(*row, strict=True))
            say(f"{kind:>8} {count:>11} {attach:8.2f} {detach:8.2f}\n")
    finally:
        for node in nodes.values():
            node.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
