"""The fuzzers' corpus, replayed: what broke a parser once, and what reaches each part of it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz/corpus"


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_found_once_breaks_nothing(name: str) -> None:
    inputs = sorted((CORPUS / name).iterdir())
    assert inputs, "each target has at least one input that is whole"
    for path in inputs:
        try:
            TARGETS[name](path.read_bytes())
        except Exception as error:
            raise AssertionError(f"{path.name}: {type(error).__name__}: {error}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_nor_does_what_is_a_little_different(name: str) -> None:
    """A few hundred changes to the JSON in each input, always the same ones: a fault in a rule shows at once."""
    for path in sorted((CORPUS / name).iterdir()):
        data = path.read_bytes()
        if len(data) > 4096:
            continue
        for seed in range(60):
            changed = mutate(data, random.Random(seed))
            if changed is not None:
                TARGETS[name](changed)


def test_no_directory_of_the_corpus_is_left_over() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
