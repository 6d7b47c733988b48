"""Options and fixtures of the runtime suite. How to run it: README.md."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .machine import Machine, stale_cgroups, sweep_cgroups
from .plugin import Plugin
from .tools import needed

HERE = Path(__file__).parent
DIST = HERE.parent.parent / "dist"
BUILT = (DIST / "zlayer-cni.d" / "zlayer-cni", DIST / "zlayer-cni")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--plugin and --conflist; another suite in the same run may have brought --plugin already."""
    group = parser.getgroup("runtimes")
    for name, text in (
        ("--plugin", "the CNI plugin to test (default: what scripts/build made)"),
        ("--conflist", "its conflist, the plugin under test first (default: conflists/NAME.conflist)"),
    ):
        with suppress(ValueError):
            group.addoption(name, default=None, metavar="PATH", help=text)


def pytest_configure(config: pytest.Config) -> None:
    """The marks of this suite."""
    config.addinivalue_line("markers", "reference_fault(why): a fact that the reference bridge misses")
    config.addinivalue_line("markers", "more: a runtime that a fresh machine has not (scripts/test runtimes-more)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show, with a failure, the last that the plugin's own daemon wrote."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(machine, Machine):
        said = machine.run("tail", "-n", "20", "/run/zlayer-cni/overlayd.log")
        if said.returncode == 0:
            report.sections.append(("overlayd.log", said.stdout))
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test here needs root."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.root)


@pytest.fixture(scope="session")
def plugin(request: pytest.FixtureRequest) -> Plugin:
    """The plugin under test, or a skip that says what is missing."""
    if os.geteuid() != 0:
        pytest.skip("the runtime suite needs root")
    given = request.config.getoption("--plugin", None)
    found = [Path(given)] if given else [p for p in BUILT if p.is_file()]
    if not found:
        pytest.skip("no plugin to test: run scripts/build, or give --plugin PATH")
    path = found[0].absolute()
    if not os.access(path, os.X_OK) or path.is_dir():
        pytest.fail(f"--plugin {path} is not a program")
    template = request.config.getoption("--conflist", None) or HERE / "conflists" / f"{path.name}.conflist"
    if not Path(template).is_file():
        pytest.skip(f"no conflist for {path.name}: give --conflist PATH")
    conflist = json.loads(Path(template).read_text())
    conflist["plugins"][0]["type"] = path.name
    if attach := os.environ.get("ZLAYER_TEST_ATTACH"):
        conflist["plugins"][0]["attach"] = attach
    return Plugin(path, conflist)


@pytest.fixture(scope="session", autouse=True)
def _stale() -> None:
    """Sweep what an earlier, killed run could not: its cgroups. All else ended with it."""
    sweep_cgroups(stale_cgroups())


@pytest.fixture(scope="module")
def machine(plugin: Plugin) -> Iterator[Machine]:
    """A scratch machine for the tests of one runtime."""
    needed("unshare", "nsenter", "ip", "mount")
    made = Machine(plugin.path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def _reference_faults(request: pytest.FixtureRequest, plugin: Plugin) -> None:
    """A fact that the reference `bridge` is known to miss is expected to fail with it, and only with it."""
    mark = request.node.get_closest_marker("reference_fault")
    if mark and plugin.path.name == "bridge":
        request.applymarker(pytest.mark.xfail(reason=f"reference: {mark.args[0]}", strict=True))


@pytest.fixture
def nothing_left(plugin: Plugin, machine: Machine) -> Iterator[None]:
    """The test leaves the machine without any container interface, cached result or lease of its own."""

    ports, cached, leases = machine.ports(), machine.cached_results(), plugin.leases(machine)
    yield
    assert machine.cached_results() == cached, "the test left a cached result behind"
    assert plugin.leases(machine) == leases, "the test left a lease or attachment behind"
    machine.ports_become(ports)
