"""The registry of problems: the conditions that can be wrong with a running node, each with a code.

An error (`cni/errors.py`) answers one call. A problem is a condition that lasts: `status` shows it and exits with 1,
the daemon logs a line when it begins and when it ends, `doctor` repeats it with the action. docs/problems.md is
generated from this table (`python -m cni.problems`), and a test compares the two.

A new problem needs a row in the file of its area, a test that makes the condition happen, and `ProblemBoard.note` or a
`Problem` returned by the component that detects it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cni.problems import cluster, dns, fence, mesh, node
from cni.problems.kind import ProblemKind

KINDS = (*node.KINDS, *dns.KINDS, *fence.KINDS, *mesh.KINDS, *cluster.KINDS)
REGISTRY: dict[str, ProblemKind] = {kind.code: kind for kind in KINDS}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One problem that exists now: its code, and a sentence with the values concerned."""

    code: str
    text: str

    def kind(self) -> ProblemKind:
        """The row of the registry. Raises KeyError for an unknown code."""
        return REGISTRY[self.code]
