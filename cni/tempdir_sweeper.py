"""Removes the extraction directories that a killed single file leaves in the temporary directory. The daemon calls it.

The bootloader unpacks into `<temporary directory>/_MEI<its PID, 8 hex digits><6 random characters>` and removes that
directory at its end. A runtime that gives up kills the bootloader (SIGKILL); the plugin process then removes the
directory. A directory stays only if the plugin process is killed too (a whole control group, an OOM kill). An empty
file, which only zlayer-cni puts in, distinguishes our directories from those of other programs. A directory that was
not filled completely is removed whatever program made it.
"""

import os
import time
from pathlib import Path

from cni import proc
from cni.plugin import client

MARK = "_zlayer-cni"
"""The file that marks a directory as ours; plugin.spec puts it into the single file. The bootloader writes it directly
before LAST, so a directory with LAST and without MARK belongs to another program."""
LAST = "base_library.zip"
ARCHIVE = b"MEI\014\013\012\013\016"  # the magic number at the start of the cookie of PyInstaller's archive

_TEMPORARY = ("/tmp", "/var/tmp", "/usr/tmp")  # the directories that PyInstaller's bootloader tries, in its order
_YOUNGEST = 5.0  # seconds; the bootloader may still be writing to a younger directory


_noted: dict[str, None] = {}
_MOST_NOTED = 16


def note(unpacked: str) -> None:
    """Remember the parent of `unpacked`, an extraction directory, for `sweep`: a runtime may have another $TMPDIR than
    the daemon."""
    parent, name = os.path.split(unpacked)
    if name.startswith("_MEI") and parent.startswith("/") and parent not in _noted:
        _noted[parent] = None
        while len(_noted) > _MOST_NOTED:
            del _noted[next(iter(_noted))]


def sweep(places: tuple[str, ...] | None = None) -> list[str]:
    """Remove the extraction directories of our single file that no process uses; returns their paths.

    Searches $TMPDIR, the usual temporary directories and those noted; or `places` if given. A doubtful directory stays.
    Never raises.
    """
    swept = []
    for place in places or (*filter(None, (os.environ.get("TMPDIR"),)), *_TEMPORARY, *_noted):
        try:
            candidates = list(Path(place).glob("_MEI*"))
        except OSError:
            continue
        for directory in candidates:
            if _is_dead(directory):
                client.remove_tree(str(directory))
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
    """Whether process `pid` may be the bootloader of a directory made at `moment` (Unix seconds): it is alive, and it
    is older than the directory or runs a single file (the clock may have been set since). Any other process has only
    reused the PID."""
    try:
        status = proc.stat(pid)
    except OSError:
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + status.start_time / os.sysconf("SC_CLK_TCK")
    return not status.ended and (started < moment + 2.0 or _is_single_file(pid))


def _is_single_file(pid: int) -> bool:
    """Whether the process runs a file with PyInstaller's archive at its end."""
    try:
        with Path(f"/proc/{pid}/exe").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 65536))
            return ARCHIVE in file.read()
    except OSError:
        return False


def _in_use(directory: Path) -> bool:
    """Whether a process that was started out of `directory` still runs. It may not have noticed yet that its
    bootloader ended."""
    variable = os.fsencode(f"_PYI_APPLICATION_HOME_DIR={directory}\0")
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable in environment.read_bytes():
                return True
        except OSError:
            continue
    return False
