"""Interop with ZLayer's own programs, on scratch machines.

They are built by `scripts/interop` (or by `--build-interop`, which runs it) into a cache outside the repository, and
tests that need one that is not there are skipped, saying which and how to get it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.daemons import CLIENT, ROOT, UPSTREAM, VERSION, Daemon, Ours, Upstream
from tests.interop.machine import Machine

WANTED = {UPSTREAM: f"ZLayer's zlayer-overlayd {VERSION}", CLIENT: "the test client of ZLayer's own crate"}
HOW = "run scripts/interop, which builds it with cargo (about 20 minutes the first time), or pytest --build-interop"
TOOLS = ("unshare", "nsenter", "ip", "ping", "iptables")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--build-interop",
        action="store_true",
        help="build ZLayer's programs if they are missing (or set ZLAYER_BUILD_INTEROP)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/interop/" in str(item.path):
            item.add_marker(pytest.mark.root)


def pytest_report_header() -> str:
    found = (f"{what}: {'in' if path.exists() else 'missing from'} {path}" for path, what in WANTED.items())
    return "interop: " + "; ".join(found)


@pytest.fixture(scope="session", autouse=True)
def able(request: pytest.FixtureRequest) -> None:
    """Root, and the tools; what is missing is built if that was asked for."""
    if os.geteuid() != 0:
        pytest.skip("needs root: it makes network namespaces")
    missing = [tool for tool in TOOLS if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (Debian: iproute2 iputils-ping iptables util-linux)")
    # Where all of tests/ is asked for, this file is read too late to add an option.
    wanted = request.config.getoption("--build-interop", default=False) or os.environ.get("ZLAYER_BUILD_INTEROP")
    if wanted and not all(path.exists() for path in WANTED):
        subprocess.run([ROOT / "scripts" / "interop", "--only-build"], check=True)


def need(path: Path) -> None:
    """Skip where a program of ZLayer's is not there."""
    if not path.exists():
        pytest.skip(f"{WANTED[path]} is not in {path}: {HOW}")


@pytest.fixture
def upstream_client() -> str:
    """The program that asks through ZLayer's own client."""
    need(CLIENT)
    return str(CLIENT)


@pytest.fixture
def make_daemon() -> Iterator[Callable[[type[Daemon]], Daemon]]:
    """Daemons, started, each on a machine of its own that ends with the test."""
    machines: list[Machine] = []

    def make(kind: type[Daemon]) -> Daemon:
        if kind is Upstream:
            need(UPSTREAM)
        machines.append(Machine())
        daemon = kind(machines[-1])
        daemon.start()
        return daemon

    try:
        yield make
    finally:
        for machine in machines:
            machine.close()


@pytest.fixture
def upstream(make_daemon: Callable[[type[Daemon]], Daemon]) -> Daemon:
    """ZLayer's daemon, fresh."""
    return make_daemon(Upstream)


@pytest.fixture
def ours(make_daemon: Callable[[type[Daemon]], Daemon]) -> Daemon:
    """Our daemon, fresh."""
    return make_daemon(Ours)
