"""Tables for people, and words that do no harm on a terminal."""

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


def harmless(answer: T) -> T:
    """The daemon's answer with what no eye sees written out (`\\x1b`): line breaks, escapes, marks that turn a line
    round. Names of pods, networks and services are what tenants made of them."""
    found: object = answer
    if isinstance(answer, str):
        found = printable(answer)
    elif isinstance(answer, dict):
        found = {key: harmless(value) for key, value in answer.items()}
    elif isinstance(answer, list):
        found = [harmless(value) for value in answer]
    return found  # type: ignore[return-value]
