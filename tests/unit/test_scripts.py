"""The scripts: help, unknown options, no colours in pipes, and what root leaves in another user's clone."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path.name
    for path in (ROOT / "scripts").iterdir()
    if path.is_file() and os.access(path, os.X_OK) and path.suffix == ""
)
USER = 65534


def run(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """A script, run to its end; what it prints goes to pipes."""
    return subprocess.run(
        words, cwd=cwd, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm-256color", **env},
    )  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_does_nothing_but_help(name, word, tmp_path):
    done = run(str(ROOT / "scripts" / name), word, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert len(done.stdout.splitlines()) >= 3
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_option_is_refused(name):
    done = run(f"scripts/{name}", "--no-such-option")
    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
    assert done.stdout == ""
    assert "\x1b" not in done.stderr


def common(script: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run lines with scripts/common.sh."""
    return run("bash", "-euc", f"source {shlex.quote(str(ROOT))}/scripts/common.sh\n{script}", "test", cwd=cwd)


def test_talk_has_no_colours_in_a_pipe():
    assert common("say hello").stderr == "== hello\n"


@pytest.mark.root
def test_what_root_makes_in_a_users_clone_is_the_users():
    with tempfile.TemporaryDirectory(prefix="zlt clone ") as name:
        clone = Path(name)
        clone.chmod(0o755)
        (clone / "scripts").mkdir()
        (clone / "scripts/common.sh").write_text("")
        (clone / "build").mkdir()
        (clone / "build/.lock").write_text("")
        for path in (clone, clone / "scripts", clone / "scripts/common.sh"):
            os.chown(path, USER, USER)
        (clone / "link").symlink_to("/etc/passwd")
        done = common("as_owner sh -c 'id -u; echo $HOME; touch build/.lock'; echo not here", clone)
        assert done.stdout.splitlines()[0] == str(USER), done.stderr
        assert "not here" not in done.stdout
        assert common("mkdir -p dist; touch dist/file", clone).returncode == 0
        assert {path.lstat().st_uid for path in clone.rglob("*")} == {USER}
        assert Path("/etc/passwd").stat().st_uid == 0


def wrapper(directory: Path, lines: str) -> Path:
    """An interpreter that runs `lines` first."""
    path = directory / "python"
    real = f'{shlex.quote(sys.executable)} "$@"'
    path.write_text(f"#!/bin/sh\n[ \"$2\" = - ] || exec {real}\n(echo '{lines}'; cat) | {real}\n")
    path.chmod(0o755)
    return path


def test_the_advice_is_for_the_interpreter_that_is_there(tmp_path):
    python = wrapper(tmp_path, 'import sys; sys.modules["ensurepip"] = None')
    for place in ("scripts", "requirements"):
        shutil.copytree(ROOT / place, tmp_path / place)
    done = run("scripts/build", cwd=tmp_path, ZLAYER_PYTHON=str(python), ZLAYER_VENV=str(tmp_path / "none"))
    assert done.returncode == 1
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert f"{python} is Python {version} and lacks: its venv module" in done.stderr
    assert f"apt-get install python{version}-venv" in done.stderr
