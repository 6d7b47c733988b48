"""What needs no daemon: VERSION, the greeting, and bad places to be run in (conformance S13 to S16, S25, VE1, VE2)."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from cni import __version__
from cni.netconf.versions import SUPPORTED
from cni.plugin import client
from tests import covered
from tests.binary.fake_door import answer, opened

NEWEST = SUPPORTED[-1]
RESULT = b'{"ok":true}\n'


def test_the_plugin_speaks_the_versions_the_verbs_speak():
    assert client.SUPPORTED_VERSIONS == SUPPORTED


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (b'{"cniVersion":"1.1.0"}', "1.1.0"),
        (b' { "cniVersion" : "0.3.1" }\n', "0.3.1"),
        (b'{"name":"a","cniVersion":"0.4.0","prevResult":{"cniVersion":"1.0.0"}}', "0.4.0"),
        (b'{"prevResult":{"cniVersion":"1.0.0"},"name":"a"}', NEWEST),
        (b'{"name":"a", "cniVersion" : "0.4.0", "more": []}', "0.4.0"),
        (b'{"name":"a","CNIVERSION":"0.4.0","prevResult":{"cniVersion":"1.0.0"}}', "0.4.0"),
        (b'{"cniVersion":"7.0.0"}', "7.0.0"),
        (b'{"cniVersion":"\\u0031\\"\\n\xf0\x9f\x90\x8d"}', '1"\n\U0001f40d'),
        (b"{}", NEWEST),
        (b"", NEWEST),
        (b"nonsense", NEWEST),
        (b'{"cniVersion":5}', NEWEST),
    ],
)
def test_version_echoes_the_inputs_version(program, stdin, version):
    done = program.run("VERSION", stdin, CNI_NETNS="dummy", CNI_IFNAME="dummy", CNI_PATH="dummy")
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == {"cniVersion": version, "supportedVersions": list(SUPPORTED)}


def test_version_does_not_wait_for_a_silent_stdin(program):
    reader, writer = os.pipe()
    begun = time.monotonic()
    done = subprocess.run(
        program.argv, env=program.environment("VERSION"), stdin=reader, capture_output=True, timeout=60, check=False
    )
    took = time.monotonic() - begun
    os.close(reader)
    os.close(writer)
    assert (done.returncode, json.loads(done.stdout)["cniVersion"]) == (0, NEWEST)
    assert took < 5  # who waits, waits for ever


@pytest.mark.parametrize("command", [None, ""])
def test_without_a_verb_it_greets_on_stderr(program, command):
    done = program.run(command)
    assert (done.returncode, done.stdout) == (0, b"")
    assert f"CNI protocol versions supported: {', '.join(SUPPORTED)}\n" in done.stderr.decode()


def test_version_option(program):
    done = subprocess.run([*program.argv, "--version"], env=program.environment("ADD"), capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[0] == f"zlayer-cni {__version__}"


@pytest.fixture
def deleted_directory(tmp_path):
    """Stand in a directory that is gone, and back."""
    gone = tmp_path / "gone"
    gone.mkdir()
    before = Path.cwd()
    os.chdir(gone)
    gone.rmdir()
    yield
    os.chdir(before)


def test_a_deleted_working_directory(program, run_dir, conf, deleted_directory):
    with opened(run_dir, lambda _: answer(0, RESULT)):
        done = program.run("ADD", conf())
    assert (done.returncode, done.stdout) == (0, RESULT)


def test_an_environment_full_of_rubbish(program, run_dir, conf):
    more = {
        "LANG": "xx_YY.nonsense",
        "PATH": "",
        "PYTHONHOME": "/nowhere",
        "TRACEPARENT": "00-ab-cd-01",
        "\udcff": b"\xff",
    }
    if program.form == "source":
        del more["PYTHONHOME"]
    with opened(run_dir, lambda _: answer(0, RESULT)):
        done = program.run("ADD", conf(), **more)
    assert (done.returncode, done.stdout) == (0, RESULT)


def shell(program, command: str, script: str, stdin: bytes) -> subprocess.CompletedProcess[bytes]:
    """Run the program by a line of shell, in which it is "$@"."""
    return subprocess.run(
        ["/bin/sh", "-c", script, "sh", *program.argv],
        env=program.environment(command),
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_a_closed_stderr_does_not_matter(program, run_dir, conf):
    with opened(run_dir, lambda _: answer(0, RESULT, b"a warning")) as door:
        done = shell(program, "ADD", 'exec "$@" 2>&-', conf())
    assert (done.returncode, done.stdout, len(door.requests)) == (0, RESULT, 1)


@pytest.mark.parametrize("command", ["ADD", "DEL", "STATUS"])
def test_a_closed_stdin_is_code_5(program, command):
    done = shell(program, command, 'exec "$@" <&-', b"")
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 5, b"")


def test_a_stdin_that_cannot_be_read_is_code_5(program):
    done = shell(program, "ADD", 'exec "$@" 0>/dev/null', b"")
    said = json.loads(done.stdout)
    assert (done.returncode, said["code"]) == (1, 5)
    assert said["msg"] == "error reading from stdin: Bad file descriptor"


def test_all_descriptors_closed(program, run_dir):
    with opened(run_dir) as door:
        done = shell(program, "ADD", 'exec "$@" <&- >&- 2>&-', b"")
    assert (done.returncode, door.requests) == (1, [])


@pytest.fixture
def in_shared_memory():
    """A run directory that stays visible when / is read-only and /tmp is another."""
    path = Path(f"/dev/shm/zlt-{os.getpid()}")
    path.mkdir()
    yield path
    shutil.rmtree(path)


def unshared(mounts: str) -> list[str]:
    return ["unshare", "--mount", "/bin/sh", "-ec", f'{mounts}; exec "$@"', "sh"]


@pytest.mark.root
def test_a_read_only_root(program, conf, in_shared_memory):
    mounts = f"{covered.tmpfs('/tmp')}; mount -o remount,bind,ro /"
    with opened(in_shared_memory, lambda _: answer(0, RESULT)):
        done = subprocess.run(
            [*unshared(mounts), *program.argv],
            env=program.environment("ADD", TMPDIR="/tmp", PATH="/usr/bin:/bin"),
            input=conf(runDir=str(in_shared_memory)),
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, RESULT), done.stderr


@pytest.mark.root
def test_tmp_mounted_noexec(program, conf, in_shared_memory):
    """The unpacked form extracts nothing. The single file must: it needs one directory that allows it, in TMPDIR."""
    mounts = covered.tmpfs("/tmp", "noexec")
    more = {"PATH": "/usr/bin:/bin", "TMPDIR": str(in_shared_memory) if program.form == "plain" else "/tmp"}
    with opened(in_shared_memory, lambda _: answer(0, RESULT)):
        done = subprocess.run(
            [*unshared(mounts), *program.argv],
            env=program.environment("ADD", **more),
            input=conf(runDir=str(in_shared_memory)),
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, RESULT), done.stderr
