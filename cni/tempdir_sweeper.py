"""What a killed single file leaves in the temporary directory, for the daemon to sweep.

The bootloader unpacks into `<temporary directory>/_MEI<its process id, 8 hex digits><6 random characters>` and removes
that at the end. A runtime that gives up kills it (SIGKILL); the plugin process then removes the directory itself, and
only when that is killed too (a whole control group, an OOM kill) does one stay. Ours are told from other programs' by
an empty file that only we put in; one that was not even filled is nobody's.
"""

import os
import time
from pathlib import Path

from cni import proc
from cni.plugin import client as plugin_door

MARK = "_zlayer-cni"
"""The file that says whose directory it is; plugin.spec puts it into the single file. The bootloader writes it
directly before LAST, so that a directory with LAST in it has it, or is another program's."""
LAST = "base_library.zip"
ARCHIVE = b"MEI\014\013\012\013\016"  # begins the cookie of PyInstaller's archive

_TEMPORARY = ("/tmp", "/var/tmp", "/usr/tmp")  # where PyInstaller's bootloader looks, in its order
_YOUNGEST = 5.0  # seconds; before that the bootloader may still be writing


_noted: dict[str, None] = {}
_MOST_NOTED = 16


def note(unpacked: str) -> None:
    """A single file was unpacked into this directory: look beside it as well from now on.

    A runtime may have another $TMPDIR than the daemon.
    """
    place, name = os.path.split(unpacked)
    if name.startswith("_MEI") and place.startswith("/") and place not in _noted:
        _noted[place] = None
        while len(_noted) > _MOST_NOTED:
            del _noted[next(iter(_noted))]


def sweep(places: tuple[str, ...] | None = None) -> list[str]:
    """Remove the extraction directories of our single file that no process uses any more; returns their paths.

    Looks into $TMPDIR, the usual places and those noted, or `places`. Whatever is in doubt stays. Never raises.
    """
    swept = []
    for place in places or (*filter(None, (os.environ.get("TMPDIR"),)), *_TEMPORARY, *_noted):
        try:
            found = list(Path(place).glob("_MEI*"))
        except OSError:
            continue
        for directory in found:
            if _is_dead(directory):
                plugin_door.remove_tree(str(directory))
                swept.append(str(directory))
    return swept


def _is_dead(directory: Path) -> bool:
    try:
        status = directory.lstat()
        pid = int(directory.name[4:12], 16)
        ours = status.st_uid == os.geteuid() and ((directory / MARK).exists() or not (directory / LAST).exists())
    except (OSError, ValueError):
        return False
    old = time.time() - status.st_mtime > _YOUNGEST
    return ours and old and not _is_busy(pid, status.st_mtime) and not _in_use(directory)


def _is_busy(pid: int, moment: float) -> bool:
    """Whether process `pid` may be the bootloader of a directory made at `moment`: alive, and older, or at least a
    single file itself (the clock may have been set since). Any other one only has the number."""
    try:
        found = proc.stat(pid)
    except OSError:
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + found.start_time / os.sysconf("SC_CLK_TCK")
    return not found.ended and (started < moment + 2.0 or _is_single_file(pid))


def _is_single_file(pid: int) -> bool:
    """Whether a process runs a file with PyInstaller's archive at its end."""
    try:
        with Path(f"/proc/{pid}/exe").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            return ARCHIVE in file.read()
    except OSError:
        return False


def _in_use(directory: Path) -> bool:
    """Whether a process was started out of `directory`: its bootloader is dead, and it may not know yet."""
    wanted = os.fsencode(f"_PYI_APPLICATION_HOME_DIR={directory}\0")
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if wanted in environment.read_bytes():
                return True
        except OSError:
            continue
    return False
