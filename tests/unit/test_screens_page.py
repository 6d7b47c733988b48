"""docs/screens.md has every command at both widths, and no line of a table is wider than its terminal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cni.cli import completion
from cni.cli.parser import parser

PAGE = (Path(__file__).resolve().parents[2] / "docs/screens.md").read_text("utf-8")
SCREEN = re.compile(r"^(\d+) columns:\n\n```text\n\$ zlayer-cni (.*?)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
TABLES = ("attachments", "networks", "peers", "connectivity")


@pytest.mark.parametrize(
    "word", [each.name for each in completion.words(parser()) if each.name not in ("overlayd", "help")]
)
def test_every_command_is_shown_at_both_widths(word: str) -> None:
    section = PAGE.split(f"\n## {word}\n", 1)[1].split("\n## ", 1)[0]
    assert [int(columns) for columns, *_ in SCREEN.findall(section)] == [80, 200]


@pytest.mark.parametrize("word", TABLES)
def test_tables_fit_their_terminal(word: str) -> None:
    section = PAGE.split(f"\n## {word}\n", 1)[1].split("\n## ", 1)[0]
    for columns, _, text in SCREEN.findall(section):
        table = text.split("\n\n")[0]
        assert max(map(len, table.splitlines())) <= int(columns)
