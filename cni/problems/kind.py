"""One row of the registry of problems."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """One row. `code` never changes after a release; `area` is "node", "fence", "mesh" (WireGuard and its peers) or
    "cluster" (the store and its records); `severity` is "error" (traffic or attaches fail, or isolation is not in
    force) or "warning" (degraded, or about to fail); `meaning` and `action` are texts for the operator."""

    code: str
    area: str
    severity: str
    meaning: str
    action: str
