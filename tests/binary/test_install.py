"""`install` and `uninstall` of the frozen program: whole or not at all, whatever comes in between."""

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.binary.conftest import FROZEN
from tests.binary.test_autostart import daemons, ended, netns  # noqa: F401

pytestmark = [pytest.mark.root, pytest.mark.skipif(not FROZEN["unpacked"].exists(), reason="run scripts/build")]

PLUGIN, LIST = "opt/cni/bin/zlayer-cni", "etc/cni/net.d/10-zlayer.conflist"
VERSION = {"CNI_COMMAND": "VERSION", "PATH": "/usr/bin:/bin"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def tool(*words: object, before: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """The tool, run to its end; `before` are shell lines in a mount namespace of its own."""
    argv = [str(FROZEN["unpacked"]), *map(str, words)]
    if before:
        argv = ["unshare", "--mount", "/bin/sh", "-ec", f'{before}\n"$@"', "sh", *argv]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **more})


def install(root: Path, *words: object, before: str = "") -> subprocess.CompletedProcess[str]:
    return tool("install", "--root", root, *words, before=before)


def home(root: Path) -> Path:
    """The installed program's directory, as the plugin's link says."""
    return root / str((root / PLUGIN).readlink().parent).lstrip("/")


def works(root: Path) -> bool:
    done = subprocess.run(
        [home(root) / "zlayer-cni"], env=VERSION, input=b'{"cniVersion":"1.0.0"}', capture_output=True, check=False
    )
    return b"supportedVersions" in done.stdout


def leftovers(root: Path) -> list[str]:
    return [str(path) for path in root.rglob(".*") if path.name != ".lock"]


def test_all_is_in_place_and_again_changes_nothing(root):
    first = install(root)
    assert first.returncode == 0, first.stderr
    assert works(root) and json.loads((root / LIST).read_text())["name"] == "zlayer"
    assert (root / "usr/local/bin/zlayer-cni").readlink() == (root / PLUGIN).readlink()
    second = install(root)
    assert second.returncode == 0 and "is there already" in second.stderr
    assert works(root) and not leftovers(root)
    assert tool("uninstall", "--root", root).returncode == 0
    assert tool("uninstall", "--root", root).returncode == 0
    assert [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()] == []


def test_a_damaged_program_is_laid_down_anew(root):
    install(root)
    damaged = home(root)
    (damaged / "python/_internal/base_library.zip").write_bytes(b"")
    assert not works(root)
    assert install(root).returncode == 0
    assert works(root) and home(root) == damaged and not leftovers(root)


def test_killed_anywhere_it_leaves_all_or_nothing_of_each_thing(root):
    """Eight kills spread over the time that one installation takes here, and then one that goes through."""
    begun = time.monotonic()
    install(root)
    took = time.monotonic() - begun
    shutil.rmtree(root)
    for n in range(8):
        root.mkdir(exist_ok=True)
        running = subprocess.Popen(
            [FROZEN["unpacked"], "install", "--root", root], stderr=subprocess.DEVNULL, start_new_session=True
        )
        time.sleep(took * n / 8)
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        if (root / PLUGIN).is_symlink():
            assert works(root)
        if (root / LIST).exists():
            assert json.loads((root / LIST).read_text())["plugins"] and works(root)
    assert install(root).returncode == 0
    assert works(root) and not leftovers(root)


def test_older_versions_go_unless_somebody_runs_them(root):
    programs = root / "opt/zlayer-cni"
    for age, name in enumerate(("0.0.3-c", "0.0.2-b", "0.0.1-a", "0.0.0-used")):
        (programs / name).mkdir(parents=True)
        shutil.copy("/bin/sleep", programs / name / "zlayer-cni")
        os.utime(programs / name, (1_700_000_000 - age, 1_700_000_000 - age))
    (programs / "foreign").mkdir()
    with subprocess.Popen([programs / "0.0.0-used/zlayer-cni", "600"]) as running:
        try:
            done = install(root)
        finally:
            running.kill()
    assert done.returncode == 0, done.stderr
    left = {path.name for path in programs.iterdir()} - {".lock", "installed.json"}
    assert left == {home(root).name, "0.0.3-c", "0.0.0-used", "foreign"}
    assert "0.0.2-b, an older version" in done.stderr


def test_a_full_disk(root):
    (root / "opt").mkdir()
    done = install(root, before=f"mount -t tmpfs -o size=6m tmpfs {root}/opt\ntrap 'find {root}/opt -type f' EXIT")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stdout.split() == [f"{root}/opt/zlayer-cni/.lock"], "nothing half stays"
    assert not (root / LIST).exists()


def test_a_read_only_plugin_directory(root):
    directory = root / "opt/cni/bin"
    directory.mkdir(parents=True)
    done = install(root, before=f"mount -t tmpfs -o ro tmpfs {directory}")
    assert done.returncode == 1 and not (root / LIST).exists()
    assert "Read-only file system" in done.stderr and "--bin-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_changed_list_is_kept_and_said(root):
    (root / LIST).parent.mkdir(parents=True)
    (root / LIST).write_text('{"mine": true}')
    done = install(root)
    assert done.returncode == 0 and "is kept (--force replaces it)" in done.stderr
    assert (root / LIST).read_text() == '{"mine": true}'
    assert install(root, "--force").returncode == 0
    assert "mine" not in (root / LIST).read_text()


# --- what an earlier installation leaves ----------------------------------------------------------------------------


def listed(root: Path) -> tuple[str, str, list[str]]:
    """The network list: its name, its version, and the plugins."""
    document = json.loads((root / LIST).read_text())
    return document["name"], document["cniVersion"], [plugin["type"] for plugin in document["plugins"]]


def test_an_option_counts_though_the_list_of_an_earlier_installation_is_there(root):
    (root / "usr/lib/cni").mkdir(parents=True)
    (root / "usr/lib/cni/portmap").symlink_to("/bin/true")
    install(root)
    assert listed(root) == ("zlayer", "1.0.0", ["zlayer-cni"])
    changed = install(root, "--network", "blue", "--cni-version", "1.1.0", "--bin-dir", "/usr/lib/cni")
    assert changed.returncode == 0, changed.stderr
    assert listed(root) == ("blue", "1.1.0", ["zlayer-cni", "portmap"])
    again = install(root)
    assert again.returncode == 0, again.stderr
    assert "as before --network blue" in again.stderr
    assert listed(root) == ("blue", "1.1.0", ["zlayer-cni", "portmap"])
    assert tool("uninstall", "--root", root).returncode == 0
    assert [path.name for path in root.rglob("*") if not path.is_dir()] == ["portmap"]


def test_an_option_that_a_list_changed_by_hand_contradicts_is_refused(root):
    install(root)
    mine = (root / LIST).read_text().replace('"zlayer"', '"mine"')
    (root / LIST).write_text(mine)
    before = home(root)
    refused = install(root, "--network", "blue")
    assert refused.returncode == 1
    assert "changed by hand" in refused.stderr
    assert "--network blue" in refused.stderr
    assert "--force" in refused.stderr
    assert ((root / LIST).read_text(), home(root)) == (mine, before)
    assert install(root, "--network", "mine").returncode == 0
    assert (root / LIST).read_text() == mine
    assert install(root, "--network", "blue", "--force").returncode == 0
    assert listed(root)[0] == "blue"


def test_the_list_of_a_version_that_kept_no_record_is_recognised(root):
    install(root, "--network", "blue", "--run-dir", "/run/other")
    (root / "opt/zlayer-cni/installed.json").unlink()
    done = install(root, "--cni-version", "1.1.0")
    assert done.returncode == 0, done.stderr
    assert listed(root)[:2] == ("blue", "1.1.0")
    assert '"runDir": "/run/other"' in (root / LIST).read_text()


def test_the_plugin_is_of_one_version_in_every_directory(root):
    earlier = root / "opt/zlayer-cni/0.0.1-a"
    earlier.mkdir(parents=True)
    shutil.copy("/bin/true", earlier / "zlayer-cni")
    for directory in ("opt/cni/bin", "usr/lib/cni", "usr/libexec/cni"):
        (root / directory).mkdir(parents=True)
    (root / "usr/lib/cni/zlayer-cni").symlink_to("/opt/zlayer-cni/0.0.1-a/zlayer-cni")
    (root / "usr/libexec/cni/zlayer-cni").write_text("a copy")
    done = install(root)
    assert done.returncode == 0, done.stderr
    assert (root / "usr/lib/cni/zlayer-cni").readlink() == (root / PLUGIN).readlink()
    assert f"{root}/usr/libexec/cni/zlayer-cni is not a link of `install`" in done.stderr


@pytest.mark.parametrize(("words", "unit"), [((), True), (("--no-service",), False)])
def test_an_image_with_systemd_gets_the_unit(root, words, unit):
    (root / "usr/lib/systemd").mkdir(parents=True)
    (root / "usr/lib/systemd/systemd").write_text("")
    assert install(root, "--run-dir", "/run/other", *words).returncode == 0
    place = root / "etc/systemd/system/zlayer-overlayd.service"
    wanted = place.parent / "multi-user.target.wants" / place.name
    assert (place.exists(), wanted.is_symlink()) == (unit, unit)
    if unit:
        assert f"{(root / PLUGIN).readlink()} overlayd --run-dir /run/other " in place.read_text()
        assert wanted.readlink() == Path("/etc/systemd/system", place.name)
    assert tool("uninstall", "--root", root).returncode == 0
    assert not place.exists()
    assert not wanted.is_symlink()


def test_uninstall_tells_which_settings_stay(root):
    install(root)
    (root / "etc/zlayer-cni").mkdir()
    (root / "etc/zlayer-cni/overlayd.yaml").write_text("node_id: 1\n")
    done = tool("uninstall", "--root", root, "--purge")
    assert f"kept      {root}/etc/zlayer-cni/overlayd.yaml" in done.stderr


def test_two_installations_at_once(root):
    running = [subprocess.Popen([FROZEN["unpacked"], "install", "--root", root], stderr=subprocess.PIPE) for _ in "ab"]
    said = [each.communicate(timeout=120)[1].decode() for each in running]
    for each, text in zip(running, said, strict=True):
        assert each.returncode == 0 or "another installation into" in text, said
    assert works(root) and not leftovers(root)


# --- with a daemon, without systemd ---------------------------------------------------------------------------------

PRIVATE = "mount -t tmpfs tmpfs /usr/local/bin; test ! -d /run/systemd || mount -t tmpfs tmpfs /run/systemd"


@pytest.fixture
def machine(netns, tmp_path, run_dir):  # noqa: F811
    """Runs the tool as if on a machine without systemd, in the scratch namespace."""
    places = ["--run-dir", run_dir, "--data-dir", tmp_path / "data", "--program-dir", tmp_path / "programs"]
    places += ["--bin-dir", tmp_path / "bin", "--conf-dir", tmp_path / "net.d"]
    begin = f'{PRIVATE}\nset -- nsenter --net=/run/netns/{netns} "$@"'
    return lambda word, *more: tool(word, *places, *more, before=begin)


def begin_daemon(program: Path, netns: str, run_dir: Path, conf: bytes) -> int:  # noqa: F811
    env = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/opt/cni/bin", "PATH": "/usr/bin:/bin"}
    argv = ["nsenter", f"--net=/run/netns/{netns}", program]
    until = time.monotonic() + 60
    while subprocess.run(argv, env=env, input=conf, capture_output=True, check=False).returncode:
        assert time.monotonic() < until
    (pid,) = daemons(run_dir)
    return pid


def test_a_daemon_that_a_plugin_started_gives_way(machine, netns, run_dir, conf, tmp_path):  # noqa: F811
    before = tmp_path / "before"
    shutil.copytree(FROZEN["unpacked"].parent, before, symlinks=True)
    old = begin_daemon(before / "zlayer-cni", netns, run_dir, conf(autostart=True))
    done = machine("install")
    assert done.returncode == 0, done.stderr
    (new,) = daemons(run_dir)
    assert new != old and "in place of" in done.stderr
    assert Path(f"/proc/{new}/exe").samefile((tmp_path / "bin/zlayer-cni").resolve().parent / "python/zlayer-cni")
    again = machine("install")
    assert again.returncode == 0 and "runs already" in again.stderr
    assert daemons(run_dir) == [new]


def test_uninstall_without_a_daemon_starts_one_to_take_the_data_path_down(machine, netns, run_dir, conf):  # noqa: F811
    pid = begin_daemon(FROZEN["unpacked"], netns, run_dir, conf(autostart=True))
    os.kill(pid, signal.SIGKILL)
    tables = ["ip", "netns", "exec", netns, "nft", "list", "tables"]
    assert "zlayer_cni" in subprocess.run(tables, capture_output=True, text=True, check=True).stdout
    done = machine("uninstall", "--purge")
    assert done.returncode == 0, done.stderr
    assert "zlayer_cni" not in subprocess.run(tables, capture_output=True, text=True, check=True).stdout
    assert not run_dir.exists() and daemons(run_dir) == []


def test_a_daemon_that_would_not_start_is_told_before_anything_is_touched(machine, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/overlayd.yaml").write_text("cluster_cdir: 10.0.0.0/8\n")
    done = machine("install")
    assert done.returncode == 1 and "cluster_cdir" in done.stderr and "overlayd.yaml" in done.stderr
    assert not (tmp_path / "programs").exists() and not (tmp_path / "net.d").exists()


# --- a node whose daemon no call has needed yet ---------------------------------------------------------------------

BARE = """
mount -t tmpfs tmpfs /run
mkdir /run/over
mount -t tmpfs tmpfs /run/over
for place in etc opt var usr/local/bin; do
    mkdir -p /run/over/$place /run/over/work/$place
    mount -t overlay -o lowerdir=/$place,upperdir=/run/over/$place,workdir=/run/over/work/$place overlay /$place
done
rm -rf /etc/cni /etc/containerd /opt/zlayer-cni /var/lib/zlayer-cni
trap 'test ! -e /run/zlayer-cni/overlayd.pid || kill $(cat /run/zlayer-cni/overlayd.pid)' EXIT
"""


def test_a_node_without_systemd_before_and_after_the_daemon_is_started(netns):  # noqa: F811
    """Steps on one machine that has nothing of ours, with directories that are those of the defaults."""
    steps = {
        "missing": f"{FROZEN['unpacked']} status",
        "install": f"{FROZEN['unpacked']} install",
        "fresh": "zlayer-cni status",
        "fresh-json": "zlayer-cni status --json",
        "start": "zlayer-cni start",
        "again": "zlayer-cni start",
        "status": "zlayer-cni status",
        "restart": "zlayer-cni restart",
        "kill": "kill -9 $(cat /run/zlayer-cni/overlayd.pid); sleep 0.2",
        "ended": "zlayer-cni status",
        "uninstall": "zlayer-cni uninstall --purge",
    }
    lines = [f"echo '== {name}'; {words} 2>&1 || echo \"exit code $?\"" for name, words in steps.items()]
    argv = ["nsenter", f"--net=/run/netns/{netns}", "unshare", "--mount", "/bin/sh", "-ec", BARE + "\n".join(lines)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    said = dict(part.split("\n", 1) for part in done.stdout.split("== ")[1:])
    assert list(said) == list(steps), done.stdout + done.stderr
    assert "exit code 3" in said["missing"]
    assert "run `zlayer-cni install`" in said["missing"]
    assert said["fresh"] == "the daemon is not started: the first ADD starts it (or `zlayer-cni start`)\n"
    assert json.loads(said["fresh-json"])["state"] == "not started"
    assert "runs (process" in said["start"]
    assert "runs already" in said["again"]
    assert "fence      in force" in said["status"]
    assert "in place of process" in said["restart"]
    assert "exit code 3" in said["ended"]
    assert "the daemon has ended; the next call of the plugin starts it again" in said["ended"]
    assert "exit code" not in said["uninstall"]
