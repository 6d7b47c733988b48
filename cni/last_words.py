"""The reason why the last start of the daemon failed: one line in a file of the run directory. `doctor` shows it, and
so does the error of a call that could not be served. A daemon removes the file when it serves.

The file holds only the text of an error, never text of the log: the log may quote any input.
"""

import os

from cni import files

NAME = "overlayd.failed"
LONGEST = 2000  # characters
_EARLIER_LOG = "overlayd.log.1"  # cni/log_files.py


def write(run_dir: str, text: str) -> None:
    """Write the reason, as one line of at most LONGEST characters. Never raises: a full disk must not hide the error
    itself."""
    line = " ".join(text.split())[:LONGEST]
    try:
        os.makedirs(run_dir, 0o755, exist_ok=True)
        content = f"{line}\n".encode("utf-8", "backslashreplace")
        try:
            files.write(os.path.join(run_dir, NAME), content, durable=False, alone=False)
        except OSError:
            os.unlink(os.path.join(run_dir, _EARLIER_LOG))  # the disk is full: the reason is worth more
            files.write(os.path.join(run_dir, NAME), content, durable=False, alone=False)
    except OSError:
        return


def read(run_dir: str) -> str:
    """The reason; empty if the last start succeeded, or if the file cannot be read."""
    try:
        fd = os.open(os.path.join(run_dir, NAME), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(fd, 4 * LONGEST).decode("utf-8", "replace").strip()
    except OSError:
        return ""
    finally:
        os.close(fd)


def clear(run_dir: str) -> None:
    """Remove the file; called when a daemon serves. Never raises."""
    try:
        os.unlink(os.path.join(run_dir, NAME))
    except OSError:
        return
