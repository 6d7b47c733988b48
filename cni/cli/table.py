"""Text tables, and text that is safe to print on a terminal."""

from __future__ import annotations

import re
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


def render(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """`rows` under `head`, columns aligned, two spaces apart; ends with a line break. Different cells of one column
    never look alike."""
    columns = [_cut([str(row[n]) for row in (head, *rows)]) for n in range(len(head))]
    widths = [max(map(len, column)) for column in columns]
    cells = zip(*columns, strict=True)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


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
