"""`python -m tests.fuzz.run TARGET [libFuzzer's options and directories]`: one target under atheris."""

from __future__ import annotations

import logging
import random
import sys

import atheris

with atheris.instrument_imports(include=["cni"]):
    from tests.fuzz import targets

from tests.fuzz.mutate import mutate


def _mutated(data: bytes, most: int, seed: int) -> bytes:
    rng = random.Random(seed)
    changed = mutate(data, rng) if rng.random() < 0.5 else None
    if changed is None or len(changed) > most:
        return bytes(atheris.Mutate(data, most))
    return changed


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    target = targets.TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target, custom_mutator=_mutated)
    atheris.Fuzz()
