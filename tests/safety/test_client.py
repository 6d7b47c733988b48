"""The Python client in front of the frozen program: each of its public names, and the examples of docs/protocol.md."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni import naming
from cni.overlay.manager import OverlayManager
from tests.fakes.client_calls import CALLS, CLUSTER, PORT, SLICE, Stage, set_up
from tests.mesh.fleet import ROOT, Fleet, Node, wait_for

PROGRAM = Path(os.environ.get("ZLAYER_PROGRAM", ROOT / "dist/zlayer-cni.d/zlayer-cni"))
PAGE = ROOT / "docs/protocol.md"


@contextlib.contextmanager
def one_node(tag: str) -> Iterator[Node]:
    """A node whose overlay an agent will set up."""
    fleet = Fleet(tag)
    try:
        node = fleet.node(1, start=False, slice_cidr=SLICE, address_cooldown=0)
        node.program = (str(PROGRAM),)
        node.start()
        yield node
    finally:
        fleet.clean()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One daemon for all calls, each of which leaves it as it was."""
    with one_node("sc") as node, tempfile.TemporaryDirectory() as empty:
        manager = OverlayManager("prod", "42", CLUSTER, SLICE, PORT, socket=node.socket)
        set_up(manager)
        yield Stage(
            manager, lambda: node.unattached().process.pid, Path(empty), naming.service_bridge("prod", "42", "web")
        )
        manager.close()


@pytest.mark.parametrize("name", CALLS)
def test_each_public_name_does_what_it_must(stage: Stage, name: str) -> None:
    call = CALLS[name]
    call.prepare(stage)
    call.run(stage)
    call.undo(stage)
    assert stage.manager.status().service_count == 2


def pip_install(python: Path, *what: str) -> None:
    """Install that into the environment of `python`."""
    command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", *what]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment into which pip has installed a copy of the package, as any program would."""
    directory = tmp_path_factory.mktemp("installed")
    source = directory / "source"
    shutil.copytree(ROOT / "cni", source / "cni", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    venv.create(directory / "venv", with_pip=True)
    python = directory / "venv/bin/python"
    pip_install(python, str(source))
    shutil.rmtree(source)
    return python


def test_the_client_is_installed_with_ranges(installed: Path) -> None:
    """A program that pins its own msgspec can have this client beside it: nothing is required in one version alone."""
    ask = "from importlib.metadata import requires; print('\\n'.join(requires('zlayer-cni')))"
    done = subprocess.run([installed, "-I", "-c", ask], capture_output=True, text=True, timeout=60, check=True)
    needed = [line for line in done.stdout.splitlines() if "extra ==" not in line]
    assert sorted(re.split(r"[<>=!~ ]", line)[0] for line in needed) == ["msgspec", "pyyaml"]
    for line in needed:
        assert re.fullmatch(r"\w+ ?\(?(>=[0-9.]+,<[0-9]+|<[0-9]+,>=[0-9.]+)\)?", line), line


@pytest.mark.parametrize("msgspec", ["newest", "oldest"])
def test_the_examples_of_the_protocol_page_run(installed: Path, tmp_path: Path, msgspec: str) -> None:
    """All of them, one after the other, by the installed client: what is printed is what their comments say.

    Beside the newest msgspec that the package allows, and the oldest.
    """
    if msgspec == "oldest":
        (oldest,) = re.findall(r'"msgspec>=([0-9.]+),', (ROOT / "pyproject.toml").read_text("utf-8"))
        pip_install(installed, f"msgspec=={oldest}")
    script = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    assert script.count("overlay.") > 10
    with one_node("se") as node:
        script = script.replace("/var/run/zlayer-overlayd.sock", node.socket)
        pid = node.unattached().process.pid
        text = f"import cni\npid = {pid}\n{script}\noverlay.close()\nprint(token, cni.__file__)\n"
        done = subprocess.run(
            [installed, "-I", "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        status = node.status()
    told, refused, address, last = done.stdout.splitlines()
    assert told == "zl-prod-42-g 10.200.0.17"
    assert refused.startswith("no service bridge for service no-such-service; call ")
    assert address == "10.200.0.18"
    assert last.startswith("zledge1.")
    assert last.endswith("/cni/__init__.py")
    assert str(installed.parents[1]) in last
    assert (status.service_count, status.peer_count) == (2, 0)


def test_a_restarted_daemon_is_set_up_from_the_current_settings(engine: None) -> None:
    """The first call after a restart sends the setup again, with what was set since the first setup."""
    with one_node("sr") as node, OverlayManager("prod", "42", CLUSTER, SLICE, PORT, socket=node.socket) as manager:
        manager.setup_global_overlay()
        wait_for(lambda: node.tool("status")["wireguard"]["port"] == PORT, "the first port")
        manager.with_overlay_port(PORT + 7).with_local_node_id(9)
        node.end()
        node.start()
        assert manager.status().node_ip == "10.200.0.17"
        wait_for(lambda: node.tool("status")["wireguard"]["port"] == PORT + 7, "the port of the current settings")
        assert node.tool("status")["node"]["node_id"] == 9
        log = node.log.read_text()
    carried = re.findall(r"public keys are computed by libcrypto: library=(\S+)", log)
    assert [Path(library).name for library in carried] == ["libcrypto.so.3"] * 2, "both daemons, once each"
    assert {Path(library).parent.name for library in carried} == {"_internal"}, "the library of the frozen program"
