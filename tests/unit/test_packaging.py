"""What an installation requires is a range, and what is frozen is one version within it."""

import re
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
RANGE = re.compile(r"([a-z0-9-]+)>=([0-9.]+),<([0-9]+)")
DAEMON = PROJECT["optional-dependencies"]["daemon"]  # what the client does without
REQUIRED = [RANGE.fullmatch(line) for line in (*PROJECT["dependencies"], *DAEMON)]


def parts(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@pytest.mark.parametrize("required", REQUIRED, ids=lambda match: match[1] if match else "not a range")
def test_a_requirement_is_a_range_that_holds_the_frozen_version(required: "re.Match[str] | None") -> None:
    assert required is not None
    name, lowest, below = required.groups()
    pins = dict(pin.split("==") for pin in PROJECT["optional-dependencies"]["frozen"])
    assert parts(lowest) <= parts(pins[name]) < parts(below)


def test_all_that_is_frozen_is_required() -> None:
    pinned = [pin.split("==")[0] for pin in PROJECT["optional-dependencies"]["frozen"]]
    assert pinned == [match[1] for match in REQUIRED if match]
