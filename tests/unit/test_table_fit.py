"""Tables on a narrow terminal: no line is wider, nothing is lost, and rows that differ still differ."""

from __future__ import annotations

import random
import re

import pytest

from cni.cli import table

HEAD = ("NETWORK", "CONTAINER", "ADDRESSES", "SERVICE", "STATE")


def rows_of(count: int) -> list[tuple[str, ...]]:
    dice = random.Random(count)
    return [
        (
            "zlayer",
            "".join(dice.choice("0123456789abcdef") for _ in range(64)),
            f"10.200.{dice.randrange(256)}.{dice.randrange(256)}/26, fd00:200:0:14:8122:dc4f:5e29:{n:x}/120",
            dice.choice(("web", "a-service-with-a-very-long-name-that-goes-on", "db")),
            "live",
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_no_line_is_wider_than_the_screen(width: int, count: int) -> None:
    text = table.render(HEAD, rows_of(count), width)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_what_tells_rows_apart_is_whole(width: int) -> None:
    rows = rows_of(20)
    text = table.render(HEAD, rows, width)
    flat = re.sub(r"\s+", "", text)
    for _, container, addresses, *_ in rows:
        assert all(address in flat for address in addresses.split(", "))
        assert container[:12] in flat
    if "in every row" in text:
        assert "STATE live" in text


def test_without_a_width_nothing_changes() -> None:
    rows = rows_of(3)
    text = table.render(HEAD, rows, 0)
    assert all(cell in text for row in rows for cell in row)


def test_ids_that_begin_alike_keep_the_digits_that_differ() -> None:
    one, two = "a" * 40 + "0" * 24, "a" * 40 + "1" * 24
    text = table.render(("ID", "X"), [(one, "y"), (two, "z")], 60)
    assert "a" * 40 + "0" in text and "a" * 40 + "1" in text


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    assert table.paint("x", "red") == "x"
    monkeypatch.setattr(table, "is_terminal", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert table.paint("x", "red") == "\x1b[31mx\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert table.paint("x", "red") == "x"
