"""The path to a peer in words: what it is called, and why it is that one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

PATHS = {"host": "direct", "outside": "hole-punched", "": "searching"}
SHOWN = 4  # places that a sentence names


def path(kind: str) -> str:
    """The word for a path of that kind; upstream's words where it has them."""
    return PATHS[kind]


def why(kind: str, endpoint: str, tried: Sequence[str], mapping: str) -> str:
    """A sentence on the path. `tried`: the places that are probed; `mapping`: of the peer's NAT, as it says itself."""
    if kind == "host":
        return f"{endpoint} is one of the peer's own addresses, and answers"
    if kind == "outside":
        return f"the peer's NAT lets datagrams in at {endpoint}"
    if not tried:
        return "the peer has named no address, and has not called"
    more = f" and {len(tried) - SHOWN} more" if len(tried) > SHOWN else ""
    theirs = f"; the peer's mapping: {mapping}" if mapping else ""
    return f"no answer from {', '.join(tried[:SHOWN])}{more}{theirs}"
