"""What a killed single file leaves in the temporary directory, for the daemon to sweep.

The bootloader unpacks into `<temporary directory>/_MEI<its process id, 8 hex digits><6 random characters>` and removes
that at the end. A runtime that gives up kills it (SIGKILL); the plugin process then removes the directory itself, and
only when that is killed too (a whole control group, an OOM kill) does one stay. Ours are told from other programs' by
an empty file that only we put in; one that was not even filled is nobody's.
"""

import os
import time
from pathlib import Path

from cni.plugin import door as plugin_door

MARK = "_zlayer-cni"
"""The file that says whose directory it is; plugin.spec puts it into the single file. The bootloader writes it
directly before LAST, so that a directory with LAST in it has it, or is another program's."""
LAST = "base_library.zip"

_TEMPORARY = ("/tmp", "/var/tmp", "/usr/tmp")  # where PyInstaller's bootloader looks, in its order
_YOUNGEST = 5.0  # seconds; before that the bootloader may still be writing


def sweep(places: tuple[str, ...] | None = None) -> list[str]:
    """Remove the extraction directories of our single file that no process uses any more; returns their paths.

    Looks into $TMPDIR and the usual places, or `places`. Whatever is in doubt stays. Never raises.
    """
    swept = []
    for place in places or (*filter(None, (os.environ.get("TMPDIR"),)), *_TEMPORARY):
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
    return ours and old and not _started_before(pid, status.st_mtime) and not _in_use(directory)


def _started_before(pid: int, moment: float) -> bool:
    """Whether process `pid` is alive and older than `moment`: a younger one only has the number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return fields[0] not in (b"Z", b"X") and started < moment + 2.0


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
