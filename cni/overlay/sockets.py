"""Where an overlayd listens: the path rules of ZLayer's programs (contract 1.3).

Both sides follow the rule to the letter. In consequence a caller that is not root, for which /var/lib/zlayer is not
the default data directory, computes another path than a root daemon, and has to name the socket. On
Windows the daemon has one pipe by default; how its name follows from another data directory is not known here.
"""

import os
from collections.abc import Mapping

from cni.naming import fnv1a64
from cni.overlay.pipe import DEFAULT_PIPE

DEFAULT_SOCKET = "/var/run/zlayer-overlayd.sock"
_ROOTS_DATA_DIR = "/var/lib/zlayer"
_LONGEST = 103
"""Bytes of path that fit a Unix socket address on every system ZLayer runs on."""


def default_data_dir(euid: int, home: str | None) -> str:
    """The platform's default data directory for that user; `home` is None where HOME is not set."""
    return _ROOTS_DATA_DIR if euid == 0 else _join(_ROOTS_DATA_DIR if home is None else home, ".zlayer")


def socket_path(data_dir: str, euid: int, home: str | None) -> str:
    """The socket of the overlayd that keeps its data in `data_dir`, for a caller of that user.

    `data_dir` is not normalised. Only the comparison with the default directory is by path components: repeated
    slashes, a trailing slash and inner dots make no difference to it.
    """
    if _components(data_dir) == _components(default_data_dir(euid, home)):
        return DEFAULT_SOCKET
    path = _join(data_dir, "run/zlayer-overlayd.sock")
    if len(os.fsencode(path)) <= _LONGEST:
        return path
    return f"/tmp/zlayer-overlayd-{fnv1a64(os.fsencode(data_dir) + b'overlayd'):016x}.sock"


def find_socket(
    data_dir: str | None = None, env: Mapping[str, str] | None = None, windows: bool = os.name == "nt"
) -> str:
    """The socket for this process: `data_dir` if given, else $ZLAYER_DATA_DIR if not empty, else the default.

    On Windows the name of the default pipe. Raises ValueError where a data directory is given there.
    """
    env = os.environ if env is None else env
    if data_dir is None:
        data_dir = env.get("ZLAYER_DATA_DIR") or None
    if windows:
        if data_dir is not None:
            raise ValueError(f"no rule gives the pipe of the data directory {data_dir!r}: name the pipe")
        return DEFAULT_PIPE
    euid, home = os.geteuid(), env.get("HOME")
    return socket_path(default_data_dir(euid, home) if data_dir is None else data_dir, euid, home)


def _join(directory: str, name: str) -> str:
    return directory + ("" if directory.endswith("/") or not directory else "/") + name


def _components(path: str) -> list[str]:
    """The components that Rust's `Path` compares: a leading dot counts, and so does a leading slash."""
    first, *rest = path.split("/")
    return [first or "/", *(part for part in rest if part not in ("", "."))]
