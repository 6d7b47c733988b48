"""Why the last start of the daemon failed, one line in the run directory: for `doctor`, and for the error of a call
that could not be served. It is gone as soon as a daemon serves.

Only what the daemon worded as an error for people is written, never its log: that may quote anything.
"""

import os

from cni import files

NAME = "overlayd.failed"
LONGEST = 2000  # characters


def write(run_dir: str, text: str) -> None:
    """These are the last words. Never raises: a full disk must not hide the error itself."""
    line = " ".join(text.split())[:LONGEST]
    try:
        os.makedirs(run_dir, 0o755, exist_ok=True)
        content = f"{line}\n".encode("utf-8", "backslashreplace")
        files.write(os.path.join(run_dir, NAME), content, durable=False, alone=False)
    except OSError:
        return


def read(run_dir: str) -> str:
    """The last words; empty where the last start succeeded, and where they may not be read."""
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
    """A daemon serves: there are none. Never raises."""
    try:
        os.unlink(os.path.join(run_dir, NAME))
    except OSError:
        return
