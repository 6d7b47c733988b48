"""The base of every answer."""

from __future__ import annotations

import msgspec


class Answer(msgspec.Struct, frozen=True):
    """An answer, or a part of one."""
