"""Who may reach whom, as data, and the comparison with what is seen (issue: "Who reaches whom").

Rows are who sends, columns who is sent to; `y` arrives and is answered, `-` does not arrive, `.` is not asked.
"""

from __future__ import annotations

from collections.abc import Callable

from .lab import Lab, Place
from .probes import PROTOCOLS, Ears, Outcome, ask

EXPECTED = """
from \\ to      same other flat unknown gateway node host outside remote-same remote-other remote-flat remote-unknown
member          y    -     -    -       -       y    -    y       y           -            -           -
flat            .    -     y    -       y       y    y    y       .           -            y           -
unknown         .    -     -    -       -       -    -    -       .           -            -           -
node            .    y     y    -       .       .    .    y       .           y            y           .
outside         .    -     y    -       y       y    y    .       .           -            y           -
remote-member   y    -     -    -       .       y    .    .       .           .            .           .
remote-flat     .    -     y    -       .       y    .    .       .           .            .           .
remote-unknown  .    -     -    -       .       .    .    .       .           .            .           .
"""
ALL = frozenset(f"{protocol}{version}" for protocol in PROTOCOLS for version in (4, 6))
ANSWERED = frozenset(label for label in ALL if not label.startswith("udp"))


def table() -> dict[tuple[str, str], str]:
    """EXPECTED, by row and column."""
    head, *rows = [line.split() for line in EXPECTED.strip().splitlines()]
    columns = head[3:]
    return {(row[0], column): mark for row in rows for column, mark in zip(columns, row[1:], strict=True)}


def row_of(place: Place) -> str | None:
    """Which row speaks of a place as a sender."""
    match place.kind:
        case "container":
            return "flat" if place.network is None else "member"
        case "remote":
            return "remote-flat" if place.network is None else "remote-member"
        case "node" | "outside" | "unknown" | "remote-unknown":
            return place.kind
    return None  # the host's other addresses send as the node does


def column_of(src: Place, dst: Place) -> str:
    """Which column speaks of a place as what `src` sends to."""
    if dst.kind in ("container", "remote"):
        where = "remote-" if dst.kind == "remote" else ""
        if dst.network is None:
            return f"{where}flat"
        same = src.kind in ("container", "remote") and src.network == dst.network
        return f"{where}{'same' if same else 'other'}"
    return dst.kind


def expected(places: dict[str, Place]) -> dict[tuple[str, str], bool]:
    """For every pair that is asked: whether it may."""
    marks = table()
    pairs = {}
    for src in places.values():
        row = row_of(src)
        for dst in places.values():
            if row is None or dst.space is src.space:
                continue
            mark = marks[row, column_of(src, dst)]
            if mark != ".":
                pairs[src.name, dst.name] = mark == "y"
    return pairs


def differences(
    lab: Lab, ears: Ears, only: str = "", host_decides: Callable[[Place, Place], bool] = lambda _src, _dst: False
) -> list[str]:
    """Probe everything; a line for every pair that is not as expected.

    `only`: pairs with that place in them. `host_decides`: pairs that we do not close, but another firewall may.
    """
    want = {pair: may for pair, may in expected(lab.places).items() if not only or only in pair}
    seen = ask(
        ears,
        [(lab.places[src], lab.places[dst]) for src, dst in want],
        {pair for pair, may in want.items() if may and not host_decides(lab.places[pair[0]], lab.places[pair[1]])},
    )
    return [
        line
        for (src, dst), may in want.items()
        if not (may and host_decides(lab.places[src], lab.places[dst]))
        and (line := _difference((src, dst), may, seen[src, dst]))
    ]


def _difference(pair: tuple[str, str], may: bool, outcome: Outcome) -> str:
    src, dst = pair
    if may and (outcome.arrived != ALL or outcome.answered != ANSWERED):
        lost, dumb = sorted(ALL - outcome.arrived), sorted(ANSWERED - outcome.answered)
        return f"{src} -> {dst}: may, but lost {lost}, unanswered {dumb}"
    if not may and outcome.arrived:
        return f"{src} -> {dst}: may not, but arrived {sorted(outcome.arrived)}"
    return ""


def side_by_side(lab: Lab, wrong: list[str]) -> str:
    """The expected table, and beside every wrong pair what was seen."""
    return f"expected:\n{EXPECTED}\nseen otherwise ({len(wrong)}):\n" + "\n".join(wrong[:60])
