"""Options of the chaos suite.

    pytest tests/chaos [--plugin PATH|source] [--seed N] [--operations N] [--longer]

Without --plugin it runs on the frozen forms that are built; `--longer` runs five times as many operations. What takes
long and does not depend on the form runs on one of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator

import pytest

from . import program
from .machine import Machine, machine

OPERATIONS = 2000  # of the storm on each form


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos", "the chaos suite")
    for name, more in {
        "--plugin": {"help": "the plugin: one of the frozen forms, or `source`"},
        "--seed": {"help": "the seed of a storm, as a failure prints it", "type": int},
        "--operations": {"help": f"operations of each storm ({OPERATIONS})", "type": int},
        "--longer": {"help": "five times as many operations", "action": "store_true"},
    }.items():
        try:
            group.addoption(name, **more)  # type: ignore[arg-type]
        except ValueError:
            continue  # the black-box suite, in the same run, has --plugin as well


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    found = program.forms(metafunc.config.getoption("--plugin", default=None))
    none = pytest.param("", marks=pytest.mark.skip(reason="the program is not built: run scripts/build"))
    if "form" in metafunc.fixturenames:
        metafunc.parametrize("form", found or [none])
    if "one_form" in metafunc.fixturenames:
        metafunc.parametrize("one_form", found[-1:] or [none])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/chaos" in str(item.path):
            item.add_marker(pytest.mark.root)
            if os.geteuid() != 0:
                item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture
def seed(pytestconfig: pytest.Config) -> int:
    given = pytestconfig.getoption("--seed", default=None)
    return int(given) if given is not None else random.SystemRandom().randrange(1 << 32)


@pytest.fixture
def operations(pytestconfig: pytest.Config) -> int:
    many = pytestconfig.getoption("--operations", default=None) or OPERATIONS
    return int(many) * (5 if pytestconfig.getoption("--longer", default=False) else 1)


@pytest.fixture
def boot() -> Iterator[Callable[..., Machine]]:
    """Makes machines, and ends them."""
    import contextlib

    with contextlib.ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(machine(*words, **more))
