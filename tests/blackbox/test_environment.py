"""BB-S25: odd surroundings. What a frozen program trips over, and a runtime's service file may well give it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .harness import shapes
from .harness.template import Json
from .harness.world import World

At = Callable[..., str]
Need = Callable[..., None]

SHELLS = {
    "cwd-deleted": 'd=$(mktemp -d /tmp/zlt-bb-cwd.XXXXXX); cd "$d"; rmdir "$d"; exec "$@"',
    "stderr-closed": 'exec "$@" 2>&-',
    "umask": 'umask 0777; exec "$@"',
    "few-files": 'ulimit -n 64; exec "$@"',
    "many-files": 'ulimit -n 1048576 2>/dev/null || ulimit -n $(ulimit -Hn); exec "$@"',
    "sigpipe-ignored": "trap '' PIPE; exec \"$@\"",
    "sigchld-ignored": "trap '' CHLD; exec \"$@\"",
    "fds-open": 'exec 7</dev/null 8</dev/null 9</dev/null; exec "$@"',
}
PRIVATE = "mount --make-rprivate /; "
NOEXEC = (
    "mount --rbind /tmp /tmp; mount -o remount,bind,noexec,nosuid,nodev /tmp; "
    'case $1 in /tmp/*) d=$(dirname "$1"); mount --bind "$d" "$d"; mount -o remount,bind,exec "$d" ;; esac'
)
"""The plugin's own directory stays executable if it lies below /tmp."""
MOUNTS = {
    "tmp-noexec": PRIVATE + NOEXEC + '; exec "$@"',
    "root-read-only": PRIVATE + 'mount -o remount,bind,ro /; exec "$@"',
}
ENVIRONMENTS: dict[str, dict[str, str | None]] = {
    "no-path": {"PATH": None},
    "empty-path": {"PATH": ""},
    "no-lang": {"LANG": None},
    "odd-locale": {"LANG": "xx_YY.nonsense", "LC_ALL": "tlh"},
    "c-locale": {"LC_ALL": "C", "LANG": "C"},
    "python-variables": {
        "PYTHONPATH": "/nonexistent",
        "PYTHONHOME": "/nonexistent",
        "PYTHONSTARTUP": "/etc/passwd",
        "PYTHONUTF8": "7",
        "PYTHONINSPECT": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONWARNINGS": "error",
        "PYTHONVERBOSE": "",
    },
    "libraries": {"LD_LIBRARY_PATH": "/nonexistent", "LD_LIBRARY_PATH_ORIG": "/also/nonexistent"},
    "frozen-variables": {
        "_MEIPASS2": "/nonexistent",
        "_PYI_APPLICATION_HOME_DIR": "/nonexistent",
        "_PYI_ARCHIVE_FILE": "",
    },
    "tmpdir": {"TMPDIR": "/nonexistent", "HOME": "/nonexistent"},
    "many": {f"KUBERNETES_{number}": "x" * 200 for number in range(300)},
}


@pytest.fixture
def conf(world: World, at: At) -> Json:
    return world.conf(at("1.0.0"))


def there_and_back(world: World, conf: Json, **how: object) -> None:
    box = world.container()
    result = box.attach(conf, **how)  # type: ignore[arg-type]
    shapes.validate(result, conf["cniVersion"])
    assert box.addresses() == set(shapes.addresses(result))
    box.check(conf, result, **how).ok()  # type: ignore[arg-type]
    box.delete(conf, prev=result, **how).ok()  # type: ignore[arg-type]
    assert box.link() is None


@pytest.mark.parametrize("which", ENVIRONMENTS)
def test_s25_environment(world: World, conf: Json, which: str) -> None:
    there_and_back(world, conf, env=ENVIRONMENTS[which])


@pytest.mark.parametrize("which", SHELLS)
def test_s25_process(world: World, conf: Json, which: str) -> None:
    there_and_back(world, conf, command=["sh", "-c", SHELLS[which], "sh", *world.command])


@pytest.mark.parametrize("which", MOUNTS)
def test_s25_mounts(world: World, conf: Json, need: Need, which: str) -> None:
    """In a mount namespace of its own; the plugin's directories stay writable.

    A single file that unpacks itself cannot do this: it needs a directory to unpack into and to run from.
    """
    need("nothing-unpacked")
    world.warm(conf)
    keep = f'W={world.session.dir}; mount --bind "$W" "$W"; ' if which == "root-read-only" else ""
    script = MOUNTS[which].replace(PRIVATE, PRIVATE + keep)
    there_and_back(world, conf, command=["unshare", "-m", "sh", "-ec", script, "sh", *world.command])


@pytest.mark.parametrize("which", ["empty-path", "tmpdir", "python-variables", "libraries"])
def test_s25_the_first_call_of_all(fresh: Callable[[str], World], at: At, which: str) -> None:
    """The call that also starts the daemon, where there is one."""
    world = fresh("base")
    there_and_back(world, world.conf(at("1.0.0")), env=ENVIRONMENTS[which])


@pytest.mark.parametrize("which", ["cwd-deleted", "stderr-closed", "umask", "sigchld-ignored"])
def test_s25_the_first_process_of_all(fresh: Callable[[str], World], at: At, which: str) -> None:
    world = fresh("base")
    there_and_back(world, world.conf(at("1.0.0")), command=["sh", "-c", SHELLS[which], "sh", *world.command])
