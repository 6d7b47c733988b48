"""The doormat stays thin: what a plugin call must not import while a daemon answers, and why.

Start-up is most of what a call costs. The figures are the least of many runs of a fresh interpreter, in milliseconds
(a whole call of the unpacked form takes about 9); where a module brings others along, theirs are in it.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.binary.fake_door import answer, opened

ROOT = Path(__file__).resolve().parents[2]

FORBIDDEN = {
    "argparse": "6.8: the plugin has no options",
    "asyncio": "38: one socket, one question; select.poll does",
    "base64": "5.9: nothing is encoded here",
    "collections": "1.3: tuples and classes with slots do",
    "concurrent.futures": "12.1: nothing happens at the same time",
    "contextlib": "2.5: try and finally do",
    "ctypes": "1.8, and a native library more to copy out of the single file: descriptors are handed over, not entered",
    "dataclasses": "13.0 (inspect, re): classes with slots do",
    "enum": "3.2: constants do; http, signal, socket and re bring it",
    "functools": "2.1: nothing is cached in a process that serves once",
    "inspect": "11: only others' decorators want it",
    "ipaddress": "3.0: addresses are the daemon's business",
    "json": "6.5 (re): the plugin forwards the bytes unread",
    "logging": "11.3: the daemon has a log, the plugin has stderr",
    "os": "0.9: posix has the calls, and is there",
    "msgspec": "16.8 (typing, re, datetime, ...): types are for those who read the bytes",
    "pathlib": "8.4 (fnmatch, re, urllib): paths are put together as text",
    "pyroute2": "130: tests only",
    "re": "5.1: `in` and `split` do",
    "selectors": "2.2: select.poll does",
    "signal": "3.6 (enum): no handler is needed, descriptors tell",
    "socket": "6.2 (enum, selectors): _socket does",
    "sqlite3": "8, and a native library: the daemon's records",
    "struct": "0.3: int.to_bytes does; PyInstaller's own start loads it, ours must not need it",
    "subprocess": "9.8: autostart forks by itself, and only when it must",
    "tempfile": "7 (random, hashlib): nothing temporary is made",
    "threading": "2.8: one thread",
    "typing": "8.4: hints that need it stand behind TYPE_CHECKING",
    "urllib": "4: no URL in sight",
    "yaml": "25: the daemon's configuration",
    "cni.plugin.autostart": "the daemon is there",
    "cni.cli": "the tool's",
    "cni.daemon": "the daemon's",
    "cni.plugin.delete_queue": "the daemon is there",
    "cni.errors": "nothing went wrong",
    "cni.host": "only the daemon touches the kernel",
    "cni.overlay": "only in front of a foreign overlayd",
    "cni.plugin.no_daemon": "the daemon is there",
    "cni.plugin.config": "0.5 and a JSON scanner: only for a configuration that says where to connect",
    "cni.plugin.messages": "the daemon words the answer; only VERSION and errors are the plugin's own",
    "cni.netconf": "the configuration is judged behind the door",
    "cni.unpack": "the single file lays itself down only to run the daemon or the tool",
    "cni.verbs": "only in front of a foreign overlayd",
}

# Runs the plugin as `python -m cni` would, with this run directory in place of /run/zlayer-cni, which may be in use.
HARNESS = """
import posix, sys
before = set(sys.modules)
from cni import __main__
from cni.plugin import main as plugin
if b"RUN_DIR" in posix.environ:
    class Location(plugin.Location):
        def __init__(self):
            super().__init__()
            self.run_dir = posix.environ[b"RUN_DIR"].decode()
    plugin.Location = Location
code = __main__.main([])
posix.write(2, " ".join(set(sys.modules) - before).encode())
posix._exit(code)
"""


def imported(command: str, stdin: bytes, **env: str) -> tuple[int, bytes, set[str]]:
    """Exit code and stdout of a call, and what it imported beyond what any interpreter has (`-I -S`)."""
    # -I and -S: neither site-packages nor the user's directory lend a module; the package comes by path.
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", start + HARNESS],
        env={"CNI_COMMAND": command, **env},
        input=stdin,
        capture_output=True,
        timeout=20,
        check=False,
    )
    return done.returncode, done.stdout, set(done.stderr.decode().split())


def unwanted(modules: set[str]) -> dict[str, str]:
    tops = {".".join(name.split(".")[:depth]) for name in modules for depth in (1, 2, 3)}
    return {name: why for name, why in FORBIDDEN.items() if name in tops}


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL", "GC", "STATUS"])
def test_a_call_that_is_answered(command, tmp_path):
    stdin = b'{"cniVersion":"1.0.0","name":"net","type":"zlayer-cni","service":"web"}'
    with opened(tmp_path / "run", lambda _: answer(0, b"{}\n")) as door:
        env = {"CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0", "CNI_NETNS": "/proc/self/ns/net"}
        code, stdout, modules = imported(command, stdin, RUN_DIR=str(tmp_path / "run"), **env)
    assert (code, stdout, len(door.requests)) == (0, b"{}\n", 1), modules
    assert unwanted(modules) == {}
    ours = {"cni", "cni.__main__", "cni.plugin", "cni.plugin.main", "cni.plugin.client", "cni.plugin_protocol"}
    assert modules <= ours | {"_socket", "select"}


@pytest.mark.parametrize("stdin", [b"", b'{"cniVersion":"1.0.0"}', b'{"name":"net","cniVersion":"1.0.0","more":{}}'])
def test_version(stdin):
    code, stdout, modules = imported("VERSION", stdin)
    assert (code, "supportedVersions" in json.loads(stdout)) == (0, True)
    assert unwanted(modules).keys() == {"cni.plugin.messages"}


def test_the_list_would_notice(tmp_path):
    """A configuration that says where to connect has to be parsed, and this test has to see it."""
    with opened(tmp_path / "run") as door:
        stdin = json.dumps({"name": "net", "runDir": str(tmp_path / "run")}).encode()
        code, _, modules = imported("STATUS", stdin)
    assert (code, len(door.requests)) == (0, 1)
    assert {"cni.plugin.config", "cni.errors"} <= unwanted(modules).keys()


def test_every_forbidden_module_of_ours_exists():
    """A module that was renamed must not slip off the list."""
    for name in FORBIDDEN:
        if name.startswith("cni.") and name != "cni.verbs":
            path = ROOT.joinpath(*name.split("."))
            assert path.is_dir() or path.with_suffix(".py").is_file(), name


def test_a_daemon_outside_a_cluster_starts_without_the_stores_modules():
    """The modules and http.client are a tenth of a start, for which every ADD waits after the daemon was killed."""
    code = "import sys, cni.daemon.app; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if name.startswith(("cni.daemon.cluster.", "http."))] == []
