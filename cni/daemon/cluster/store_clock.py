"""Compares this node's clock with the store's: etcd's gateway dates each of its answers (RFC 9110, section 6.6.1)."""

from __future__ import annotations

from collections.abc import Callable
from email.utils import parsedate_to_datetime

FAR = 30.0  # seconds; the header has whole seconds, and an answer takes 5 at most
AGAIN = 10.0  # seconds by which the difference must change for the problem to have another text
PROBLEM = "clock-differs"


class StoreClock:
    """The difference that was told last. Any thread may use it: a race tells the problem twice."""

    def __init__(self, note: Callable[[str, str], None]) -> None:
        """`note`: sets the problem of a code to a text, or clears it with an empty text."""
        self._note = note
        self._told = 0.0

    def heard(self, date: str | None, unix: float) -> None:
        """Take in the header of an answer that came at `unix` (Unix seconds). One that is no date is ignored."""
        try:
            ahead = unix - parsedate_to_datetime(date or "").timestamp()
        except (ValueError, TypeError):
            return
        if abs(ahead) < FAR:
            if self._told:
                self._told = 0.0
                self._note(PROBLEM, "")
        elif abs(ahead - self._told) > AGAIN:
            self._told = ahead
            which = "ahead of" if ahead > 0 else "behind"
            self._note(PROBLEM, f"this node's clock is {abs(ahead):.0f} s {which} that of etcd")
