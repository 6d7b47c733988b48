"""Text tables, and text that is safe to print on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from cni.printable import printable

T = TypeVar("T")
WIDEST = 120  # characters of a cell; --json has the whole


def render(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """`rows` under `head`, columns aligned, two spaces apart; ends with a line break."""
    cells = [[_cut(str(cell)) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


def _cut(cell: str) -> str:
    return cell if len(cell) <= WIDEST else cell[: WIDEST - 3] + "..."


def escape_control(answer: T) -> T:
    """The daemon's answer with characters that cannot be printed escaped (`\\x1b`): line breaks, escapes, bidirectional
    marks. Tenants choose the names of pods, networks and services."""
    found: object = answer
    if isinstance(answer, str):
        found = printable(answer)
    elif isinstance(answer, dict):
        found = {key: escape_control(value) for key, value in answer.items()}
    elif isinstance(answer, list):
        found = [escape_control(value) for value in answer]
    return found  # type: ignore[return-value]
