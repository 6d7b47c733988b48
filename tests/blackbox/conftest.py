"""Options, worlds and marks of the black-box suite.

    pytest tests/blackbox --plugin PATH --conf TEMPLATE [--features +a,-b]

Without options it tests dist/zlayer-cni.d/zlayer-cni, if that is built.
"""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType

import pytest

from .harness.known import RACES, TABLES
from .harness.session import Session, sweep
from .harness.template import Template, load
from .harness.world import World, running_as_root

REPO = Path(__file__).resolve().parent.parent.parent
BUILT = REPO / "dist/zlayer-cni.d/zlayer-cni"
HERE = Path(__file__).resolve().parent
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

Lab = Callable[[str], World]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("blackbox", "black-box tests of a CNI plugin")
    group.addoption("--plugin", help="the plugin: a path, or a command with its words")
    group.addoption("--conf", help="its template: a path, or a name in tests/blackbox/templates")
    group.addoption("--launchers-share", type=float, help="the least share of the calls that the launcher must serve")
    group.addoption("--features", default="", help="changes to the template's features: +gc,-status")


def _option(config: pytest.Config, name: str) -> str | None:
    """The option, also where this conftest was read too late to declare it (a run of all tests)."""
    value: str | None = config.getoption(f"--{name}", default=None) or os.environ.get(f"BLACKBOX_{name.upper()}")
    return value


def reference_dirs() -> list[Path]:
    """Where reference plugins may be: built by reference.sh, or the distribution's."""
    built = os.environ.get("BLACKBOX_REFERENCE", "~/.cache/zlayer-cni/reference")
    return [path for path in (Path(built).expanduser(), Path("/usr/lib/cni"), Path("/opt/cni/bin")) if path.is_dir()]


def find_reference(name: str) -> Path | None:
    """The current release if it was built, else the distribution's."""
    return next((path / name for path in reference_dirs() if (path / name).is_file()), None)


def _plugin(config: pytest.Config) -> list[str] | None:
    given = _option(config, "plugin")
    if given is None:
        return [str(BUILT)] if BUILT.is_file() else None
    words = shlex.split(given)
    found = shutil.which(words[0])
    if found is None:
        raise pytest.UsageError(f"--plugin: there is no program {words[0]}")
    return [str(Path(found).absolute()), *words[1:]]


def _template(config: pytest.Config) -> Template:
    return load(_option(config, "conf") or "zlayer", _option(config, "features") or "")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "standalone: needs no --plugin; it judges the suite itself")

    def interrupt(signum: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt(f"signal {signum}")

    # A run that is ended from outside cleans up as one that is interrupted at the keyboard.
    signal.signal(signal.SIGTERM, interrupt)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if not mine:
        return
    without = _without(config)
    known = _template(config).known or ""
    marks = [(pattern, reason, True) for pattern, reason in TABLES.get(known, {}).items()]
    marks += [(pattern, reason, False) for pattern, reason in RACES.get(known, {}).items()]
    for item in mine:
        item.add_marker(pytest.mark.root)
        if "standalone" not in item.keywords and without:
            item.add_marker(pytest.mark.skip(reason=without))
        for pattern, reason, strict in marks:
            if matches(item.nodeid, pattern):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=strict, raises=AssertionError))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `version` runs once for each CNI version there is."""
    if "version" in metafunc.fixturenames:
        metafunc.parametrize("version", VERSIONS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def version(request: pytest.FixtureRequest, template: Template) -> str:
    if request.param not in template.versions:
        pytest.skip(f"the template does not claim CNI {request.param}")
    chosen: str = request.param
    return chosen


def _without(config: pytest.Config) -> str:
    if not running_as_root():
        return "needs root"
    if _plugin(config) is None:
        return f"no --plugin given and {BUILT.relative_to(REPO)} is not built"
    return ""


def matches(nodeid: str, pattern: str) -> bool:
    """`pattern` against the end of a test's id, square brackets meaning themselves."""
    escaped = pattern.replace("[", "\0").replace("]", "\1").replace("\0", "[[]").replace("\1", "[]]")
    return fnmatch.fnmatchcase(nodeid, f"*::{escaped}")


@pytest.fixture(scope="session")
def template(pytestconfig: pytest.Config) -> Template:
    return _template(pytestconfig)


@pytest.fixture(scope="session")
def plugin(pytestconfig: pytest.Config) -> list[str]:
    return _plugin(pytestconfig) or pytest.skip("no plugin")


@pytest.fixture(scope="session")
def session() -> Iterator[Session]:
    swept = sweep()
    if swept:
        print(f"swept the remains of {', '.join(swept)}")  # noqa: T201
    run = Session()
    yield run
    run.close()


@pytest.fixture(scope="session")
def cni_path(plugin: list[str]) -> str:
    """The plugin's own directory and the reference's: what CNI_PATH says."""
    return ":".join(dict.fromkeys([str(Path(plugin[0]).parent), *map(str, reference_dirs())]))


@pytest.fixture(scope="session")
def build(session: Session, plugin: list[str], template: Template, cni_path: str) -> Lab:
    """Makes a world of a variant; the caller closes it."""

    def make(variant: str) -> World:
        if not template.has(variant):
            pytest.skip(f"the template has no variant {variant!r}")
        return World(session, plugin, template, variant, cni_path)

    return make


def _check_launchers_share(config: pytest.Config, plugin: list[str], worlds: Iterable[World]) -> None:
    """Fails if the plugin's launcher served a smaller share of the calls than is asked for: the suite would then judge
    the Python program instead. A call to a daemon that does not run yet is Python's: the first of each world."""
    least = config.getoption("--launchers-share", default=None)
    if least is None:
        return
    launcher, python = 0, 0
    for world in worlds:
        words = [*plugin, "status", "--json", "--run-dir", str(world.run_dir)]
        done = subprocess.run(words, capture_output=True, check=False, timeout=30)
        calls = json.loads(done.stdout)["calls"] if done.returncode in (0, 1) and done.stdout else {}
        launcher, python = launcher + calls.get("launcher", 0), python + max(0, calls.get("python", 0) - 1)
    share = launcher / max(1, launcher + python)
    assert share >= least, f"the launcher served {launcher} calls, Python {python}, to daemons that lived"


@pytest.fixture(scope="session")
def shared(request: pytest.FixtureRequest, build: Lab, plugin: list[str], template: Template) -> Iterator[Lab]:
    """The worlds that tests share: one for all variants that need the same files."""
    worlds: dict[str, World] = {}

    def give(variant: str) -> World:
        if not template.has(variant):
            pytest.skip(f"the template has no variant {variant!r}")
        key = repr(template.files_of(variant))
        if key not in worlds:
            worlds[key] = build(variant)
        worlds[key].variant = variant
        return worlds[key]

    yield give
    _check_launchers_share(request.config, plugin, worlds.values())
    stubborn = [command for world in worlds.values() for command in world.close()]
    assert not stubborn, f"did not end on SIGTERM: {stubborn}"


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """`lab(variant)` is a world shared with other tests; the containers made in it end with the test."""
    used: list[World] = []

    def give(variant: str) -> World:
        used.append(shared(variant))
        return used[-1]

    yield give
    for world in used:
        world.clear()


@pytest.fixture
def world(lab: Lab) -> World:
    """The shared world of the base configuration."""
    return lab("base")


@pytest.fixture
def fresh(build: Lab) -> Iterator[Lab]:
    """`fresh(variant)` is a world of the test's own: nothing was ever attached there."""
    made: list[World] = []

    def give(variant: str) -> World:
        made.append(build(variant))
        return made[-1]

    yield give
    for world in made:
        world.close()


@pytest.fixture
def need(template: Template) -> Callable[[str], None]:
    """`need(feature)` skips the test where the plugin does not claim the feature."""

    def ask(feature: str) -> None:
        if feature not in template.features:
            pytest.skip(f"the template does not claim {feature!r}")

    return ask


@pytest.fixture
def at(template: Template) -> Callable[..., str]:
    """`at("1.1.0", "1.0.0")` is the first of these versions that the plugin speaks, else skips."""

    def choose(*versions: str) -> str:
        for version in versions:
            if version in template.versions:
                return version
        return pytest.skip(f"the plugin speaks none of {versions}")

    return choose
