"""docs/problems.md, from the registry."""

from __future__ import annotations

from collections.abc import Iterable

from cni.problems import KINDS
from cni.problems.kind import ProblemKind


def page(kinds: Iterable[ProblemKind] = KINDS) -> str:
    """The text of docs/problems.md."""
    lines = [
        "# Problems",
        "",
        "What `zlayer-cni status` can report. Each problem has a code that does not change. `status` exits with 1",
        "while there is a problem; `status --json` has them as `problem_details`; the daemon's log has a line",
        "`problem=CODE ...` when one begins and `resolved=CODE ...` when it ends. This page is made from",
        "`cni/problems/` (`python -m cni.problems > docs/problems.md`).",
        "",
        "| code | area | severity | what it means | what to do |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| `{kind.code}` | {kind.area} | {kind.severity} | {kind.meaning} | {kind.action} |" for kind in kinds]
    return "\n".join(lines) + "\n"
