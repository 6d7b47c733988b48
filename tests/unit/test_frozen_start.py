"""The frozen program's start: what a plugin call does not need is not brought, and all else is there when asked for.

In place of PyInstaller's importers stand two small modules of the same names that lend the source tree; the real ones,
in the real program, are run by tests/binary.
"""

import ast
import json
import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.binary.fake_door import answer, opened

ROOT = Path(__file__).resolve().parents[2]
IMPORTERS = {
    "pyimod01_archive": "where = None",
    "pyimod02_importers": f"""
import sys, pyimod01_archive
def install():
    assert hasattr(pyimod01_archive, "where")
    sys.path.append({str(ROOT)!r})
    for name, module in sys.modules.items():
        if name == "cni" or name.startswith("cni."):
            if hasattr(module, "__path__"):
                module.__path__[:] = [{str(ROOT)!r} + "/" + name.replace(".", "/")]
""",
}

# With this run directory in place of /run/zlayer-cni, which may be in use.
IN_PLACE = """
import posix
if b"RUN_DIR" in posix.environ:
    from cni.plugin import main
    class Location(main.Location):
        def __init__(self):
            super().__init__()
            self.run_dir = posix.environ[b"RUN_DIR"].decode()
    main.Location = Location
"""


def listed(what: str) -> list[str]:
    """What plugin.spec says every plugin call imports (CARRIED), or some calls besides (AT_HAND), in its order."""
    (found,) = [
        ast.literal_eval(node.value)
        for node in ast.parse((ROOT / "plugin.spec").read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == what
    ]
    return found


def codes(names: list[str]) -> dict[str, bytes]:
    found = {}
    for name in names:
        path = ROOT.joinpath(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        found[name] = marshal.dumps(compile(path.read_text(), str(path), "exec"))
    return found


def start(tmp_path: Path, *words: str, stdin: bytes = b"", **env: str) -> tuple[int, bytes, set[str]]:
    """Run the start and then the program, as the bootloader would: exit code, stdout, and the modules there were."""
    carried, at_hand = (codes(listed(what)) for what in ("CARRIED", "AT_HAND"))
    importers = {name: marshal.dumps(compile(text, name, "exec")) for name, text in IMPORTERS.items()}
    script = tmp_path / "start.py"
    script.write_text(
        f"import sys\nsys._MEIPASS = {str(tmp_path / 'nowhere')!r}\n"
        + "sys.path[:] = [p for p in sys.path if 'python' in p]\n"
        + (ROOT / "cni/frozen_start.py").read_text()
        + f"\nbegin({importers!r}, {carried!r}, {at_hand!r})\n"
        + IN_PLACE
        + f"main = compile(open({str(ROOT / 'cni/__main__.py')!r}).read(), 'cni/__main__.py', 'exec')\n"
        + "space = {'__name__': 'program'}\nexec(main, space)\ncode = space['main']()\n"
        + "import posix\nposix.write(2, ' '.join(sys.modules).encode())\nposix._exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(script), *words],
        env={"PATH": os.environ["PATH"], **env},
        input=stdin,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout, set(done.stderr.decode().split())


def test_packages_come_before_their_modules_and_those_before_who_imports_them() -> None:
    names = listed("CARRIED")
    assert names == ["cni", "cni.plugin_protocol", "cni.plugin", "cni.plugin.client", "cni.plugin.main"]
    for name in names:
        parent = name.rpartition(".")[0]
        assert not parent or names.index(parent) < names.index(name)


def test_a_call_that_is_answered_brings_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path / "run", lambda _: answer(0, b"{}\n")) as door:
        code, stdout, modules = start(tmp_path, CNI_COMMAND="STATUS", RUN_DIR=str(tmp_path / "run"))
    assert (code, stdout, len(door.requests)) == (0, b"{}\n", 1), modules
    assert {name for name in modules if name.startswith(("pyimod", "cni"))} == set(listed("CARRIED"))
    assert "os" not in modules


def test_a_call_that_says_where_has_what_it_needs_at_hand(tmp_path: Path) -> None:
    with opened(tmp_path / "run", lambda _: answer(0, b"{}\n")) as door:
        stdin = json.dumps({"name": "net", "runDir": str(tmp_path / "run"), "dataDir": str(tmp_path)}).encode()
        code, stdout, modules = start(tmp_path, stdin=stdin, CNI_COMMAND="STATUS")
    assert (code, stdout, len(door.requests)) == (0, b"{}\n", 1), modules
    assert "cni.plugin.config" in modules
    assert {"pyimod02_importers", "os", "json"}.isdisjoint(modules)


def test_the_verb_that_needs_a_third_module(tmp_path: Path) -> None:
    code, stdout, modules = start(tmp_path, CNI_COMMAND="VERSION")
    assert (code, "supportedVersions" in json.loads(stdout)) == (0, True)
    assert "cni.plugin.messages" in modules
    assert {"pyimod02_importers", "os", "json"}.isdisjoint(modules)


def test_a_call_that_needs_more_brings_the_importers(tmp_path: Path) -> None:
    """No daemon, and none is to be started: the call is judged, and that is no matter for a doormat."""
    stdin = json.dumps({"name": "net", "cniVersion": "1.1.0", "runDir": str(tmp_path), "autostart": False}).encode()
    code, stdout, modules = start(tmp_path, stdin=stdin, CNI_COMMAND="STATUS")
    assert (code, json.loads(stdout)["code"]) == (1, 50)
    assert {"cni.plugin.no_daemon", "pyimod02_importers"} <= modules


@pytest.mark.parametrize(
    ("words", "env"), [((), {}), ((), {"CNI_COMMAND": ""}), (("--version",), {"CNI_COMMAND": "ADD"})]
)
def test_the_other_faces_have_the_importers_at_once(
    tmp_path: Path, words: tuple[str, ...], env: dict[str, str]
) -> None:
    code, _, modules = start(tmp_path, *words, **env)
    assert code == 0
    assert {"pyimod01_archive", "pyimod02_importers", "cni.plugin.main"} <= modules


@pytest.mark.parametrize("name", listed("IN_SINGLE_FILE"))
def test_the_single_file_has_what_its_modules_import_at_once(name):
    """PyInstaller leaves out what plugin.spec does not list, and the import would fail in the single file alone."""
    path = ROOT.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    taken = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "cni":
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {each for each in below if ROOT.joinpath(*each.split(".")).with_suffix(".py").is_file()}
            taken |= modules | {node.module}
        elif isinstance(node, ast.Import):
            taken |= {alias.name for alias in node.names if alias.name.partition(".")[0] == "cni"}
    assert taken <= set(listed("IN_SINGLE_FILE"))
