"""Text tables, and text that is safe to print on a terminal."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import msgspec

from cni.printable import printable

T = TypeVar("T")
WIDEST = 120  # characters of a cell; --json has the whole
SHORT_ID = 12  # digits of a container id, as the runtimes' own tools show it
_DIGITS = 64  # of an id that a runtime made
_RUNTIME_ID = re.compile(rf"(.*?)([0-9a-f]{{{_DIGITS}}})", re.DOTALL)


def render(head: Sequence[str], rows: Sequence[Sequence[object]], width: int | None = None) -> str:
    """`rows` under `head`, columns aligned, two spaces apart; ends with a line break. Different cells of one column
    never look alike. `width`: of the screen, 0 for none; None: of the terminal, if stdout is one (table_fit.py)."""
    width = screen_width() if width is None else width
    columns = [[head[n], *_cut([str(row[n]) for row in rows])] for n in range(len(head))]
    if width and len(rows) and _width(columns) > width:
        from cni.cli import table_fit

        return table_fit.fitted(columns, width)
    return lay_out(columns)


def lay_out(columns: Sequence[Sequence[str]]) -> str:
    """The columns side by side, aligned."""
    widths = [max(map(len, column)) for column in columns]
    cells = zip(*columns, strict=True)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


def _width(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def screen_width() -> int:
    """The columns of the terminal that stdout is; 0 if it is none."""
    return shutil.get_terminal_size().columns if is_terminal() else 0


def is_terminal() -> bool:
    """Whether the process writes to a terminal, whatever its stdout is redirected to meanwhile (`--watch`)."""
    out = sys.__stdout__
    return out is not None and not out.closed and out.isatty()


COLOURS = {"red": 31, "green": 32, "yellow": 33}


def paint(text: str, colour: str) -> str:
    """The text in a colour on a terminal; as it is elsewhere, and with NO_COLOR (no-color.org) or TERM=dumb."""
    if not is_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{COLOURS[colour]}m{text}\x1b[0m"


def _cut(column: Sequence[str]) -> list[str]:
    """Cells longer than WIDEST without their middle; whole if another cell would look the same."""
    half = (WIDEST - 3) // 2
    cut = {cell: cell if len(cell) <= WIDEST else f"{cell[:half]}...{cell[-half:]}" for cell in column}
    seen = Counter(cut.values())
    return [cut[cell] if seen[cut[cell]] == 1 else cell for cell in column]


def short_ids(ids: Iterable[str]) -> dict[str, str]:
    """What a table shows of container ids: of the digits of an id that a runtime made, the first SHORT_ID, or as many
    as no other id begins with. A name (ctr's `default-web`) is whole, and so is what nerdctl puts before the digits.
    """
    matches = {name: _RUNTIME_ID.fullmatch(name) for name in ids}
    short = {name: name for name in matches}
    made = sorted((match[1], match[2], name) for name, match in matches.items() if match)
    alike = [_alike(one[1], other[1]) if one[0] == other[0] else 0 for one, other in pairwise(made)]
    for (before, digits, name), *beside in zip(made, [0, *alike], [*alike, 0], strict=False):
        short[name] = before + digits[: max(SHORT_ID, 1 + max(beside))]
    return short


def _alike(one: str, other: str) -> int:
    """The number of characters with which both begin."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def escape_control(answer: T) -> T:
    """The daemon's answer with characters that cannot be printed escaped (`\\x1b`): line breaks, escapes, bidirectional
    marks. Tenants choose the names of pods, networks and services."""
    escaped: object = answer
    if isinstance(answer, str):
        escaped = printable(answer)
    elif isinstance(answer, list):
        escaped = [escape_control(value) for value in answer]
    elif isinstance(answer, msgspec.Struct):
        fields = {name: escape_control(getattr(answer, name)) for name in answer.__struct_fields__}
        escaped = msgspec.structs.replace(answer, **fields)
    return escaped  # type: ignore[return-value]
