"""Words that name no component are kept out of code, comments, messages, docs, scripts and configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PRONOUNS = re.compile(r"\b(no|some|every)body\b|\bwhoever\b", re.IGNORECASE)
"""A sentence with one of them does not say which process, user, machine or function it means."""
PLACES = ("cni", "tests", "docs", "conf", "scripts", "requirements", ".ci")
NOT_OURS = ("tests/fuzz/corpus/", "tests/recordings/", "tests/interop/upstream-client/target/")
"""Inputs of the fuzzers, and what other programs printed."""


def texts() -> Iterator[Path]:
    """Every text file of the project but this one."""
    files = [path for path in ROOT.iterdir() if path.is_file() and path.name != "LICENSE"]
    files += [path for place in PLACES for path in (ROOT / place).rglob("*") if path.is_file()]
    for path in sorted(files):
        name = str(path.relative_to(ROOT))
        if path != Path(__file__) and "__pycache__" not in path.parts and not name.startswith(NOT_OURS):
            yield path


def pronouns(text: str) -> list[tuple[int, str]]:
    """The lines with such a word, with their numbers."""
    return [(number, line) for number, line in enumerate(text.splitlines(), 1) if PRONOUNS.search(line)]


def test_every_sentence_names_its_subject() -> None:
    wrong = []
    for path in texts():
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # not a text
        wrong += [f"{path.relative_to(ROOT)}:{number}: {line.strip()}" for number, line in pronouns(text)]
    assert wrong == []


@pytest.mark.parametrize("line", ["# Whoever asks", "x = 'nobody'", "(somebody's)", "NOBODY = 1", "everybody."])
def test_such_a_word_is_seen(line: str) -> None:
    assert pronouns(f"a\n{line}\n") == [(2, line)]


@pytest.mark.parametrize("line", ["the body of a request", "anybody", "# nobodyish", "no body"])
def test_other_words_are_not(line: str) -> None:
    assert pronouns(line) == []


def test_all_kinds_of_files_are_read() -> None:
    names = {str(path.relative_to(ROOT)) for path in texts()}
    assert {"cni/naming.py", "README.md", "plugin.spec", "pyproject.toml", "scripts/test", ".ci/run"} <= names
    assert {
        "conf/zlayer-overlayd.service",
        "docs/reference/contract.md",
        "tests/kernel/fence/foreign/open.nft",
    } <= names
