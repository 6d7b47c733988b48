"""A bound on the nesting of JSON from other machines, checked before it is decoded."""

from __future__ import annotations

import re

DEEPEST = 16  # levels of JSON; a node document has 4
_NESTING = re.compile(rb'"(?:[^"\\]|\\.)*"|([\[{])|[\]}]')


def check_depth(value: bytes) -> None:
    """Raises ValueError for JSON with more than `DEEPEST` levels."""
    if value.count(b"[") + value.count(b"{") <= DEEPEST:
        return
    level = 0
    for token in _NESTING.finditer(value):
        if token[1]:
            level += 1
            if level > DEEPEST:
                raise ValueError(f"JSON of more than {DEEPEST} levels")
        elif token[0] in (b"]", b"}"):
            level -= 1
