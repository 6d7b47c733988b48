"""Which known word was meant. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str]) -> str:
    """ "; is `x` meant?", or empty if no known word is near."""
    near = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; is `{near[0]}` meant?" if near else ""
