"""A table that is wider than the screen: what tells two rows apart stays, whole. Pure.

In this order, until it fits: long hexadecimal ids are cut to as many digits as tell them apart; columns that are the
same in every row leave the table and are told in a line below it, the last ones first; the widest columns are broken
into lines at words, or each row becomes a paragraph. Nothing else is ever cut: `-o wide` and `--json` are for programs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cni.cli.table import SHORT_ID, lay_out

NARROWEST = 8  # characters of a paragraph's lines, however long the heads are
_HEX = re.compile(r"[0-9a-f]{16,}")
_WORDS = re.compile(r"[ ]+")
_BREAKS = (", ", " ")


def fitted(columns: Sequence[Sequence[str]], width: int) -> str:
    """The columns, each with its head, as a table whose lines have at most `width` characters, where it can be."""
    kept = [_short(column) for column in columns]
    kept, same = _without_same(kept, width)
    text = _broken(kept, width)
    return text + ("".join(f"({line})\n" for line in _wrapped("in every row: " + same, width - 2)) if same else "")


def _short(column: Sequence[str]) -> list[str]:
    """Cells that are a long hexadecimal id, cut to the digits that tell it from the others."""
    ids = {cell for cell in column if _HEX.fullmatch(cell)}
    length = SHORT_ID
    while len({each[:length] for each in ids}) < len(ids):
        length += 1
    return [cell[:length] if cell in ids else cell for cell in column]


def _total(columns: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) for column in columns) + 2 * (len(columns) - 1)


def _without_same(columns: list[list[str]], width: int) -> tuple[list[list[str]], str]:
    """The columns that are left, and what was the same in every row. A table of one row keeps all of them."""
    told: list[str] = []
    for column in reversed(columns[1:] if len(columns[0]) > 2 else []):
        if _total(columns) <= width:
            break
        if len(set(column[1:])) == 1:
            columns = [each for each in columns if each is not column]
            told.insert(0, f"{column[0]} {column[1]}")
    return columns, ", ".join(told)


def _broken(columns: list[list[str]], width: int) -> str:
    """The table with its widest columns broken into lines, at words; where that is not narrow enough, a paragraph for
    each row."""
    least = [max(len(word) for cell in column for word in _WORDS.split(cell)) for column in columns]
    widths = [max(map(len, column)) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        spare = [size - floor for size, floor in zip(widths, least, strict=True)]
        if not any(spare):
            return _paragraphs(columns, width)
        widest = max((size, n) for n, size in enumerate(widths) if spare[n])[1]
        widths[widest] -= 1
    wrapped = [[_wrapped(cell, size) for cell in column] for column, size in zip(columns, widths, strict=True)]
    out: list[list[str]] = [[] for _ in columns]
    for row in range(len(columns[0])):
        height = max(len(column[row]) for column in wrapped)
        for column, lines in zip(out, (column[row] for column in wrapped), strict=True):
            column.extend([*lines, *[""] * (height - len(lines))])
    return lay_out(out)


def _paragraphs(columns: list[list[str]], width: int) -> str:
    """Each row as lines `HEAD  cell`, an empty line between two rows."""
    names = max(len(column[0]) for column in columns)
    rows = []
    for row in range(1, len(columns[0])):
        lines = []
        for column in columns:
            first, *more = _wrapped(column[row], max(width - names - 2, NARROWEST))
            lines.append(f"{column[0].ljust(names)}  {first}".rstrip())
            lines += [" " * (names + 2) + line for line in more]
        rows.append("\n".join(lines))
    return "\n\n".join(rows) + "\n"


def _wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters, broken where a reader expects it."""
    lines = []
    while len(text) > width:
        at = next(
            (found + len(b) for b in _BREAKS if (found := text.rfind(b, 1, width + 1 - len(b.rstrip()))) > 0), width
        )
        lines.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*lines, text]
