"""Listening on a Unix socket: ownership of the socket file, and the clients that may connect.

The socket file of a dead daemon is replaced, that of a running daemon never is; a lock serializes two daemons that
start at once. A socket is made only in a directory where root alone can replace it; in a directory that every user may
write (/tmp), a file of another user at the socket's path is removed. The kernel identifies a client (SO_PEERCRED), in
addition to the file's mode.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from cni.host import locks
from cni.naming import fnv1a64
from cni.peer_credentials import Peer

log = logging.getLogger(__name__)

BACKLOG = 4096
GROUP = "zlayer"
"""Members of this group may use the overlay socket, as with ZLayer's own daemon (contract 1.4)."""

_SO_PEERGROUPS = 59  # not in Python's socket module
_LONGEST = 107  # bytes of a path in a sockaddr_un


class Listener:
    """A listening socket and its file; `remove` deletes the file, unless another file is at the path now."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.sock = sock
        self.path = path
        status = os.stat(path)  # noqa: PTH116
        self._file = (status.st_dev, status.st_ino)

    def is_there(self) -> bool:
        """Whether the file at the path is still this socket's: only then can clients connect."""
        try:
            status = os.stat(self.path)  # noqa: PTH116
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._file

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            if self.is_there():
                Path(self.path).unlink()


def listen(path: str, mode: int, group: str | None = None) -> Listener:
    """Listen at `path`; missing directories are made. The file gets the mode `mode`, and the group `group` if that
    exists.

    Raises OSError: EADDRINUSE if another process listens at the path, EPERM if another user could replace the socket.
    """
    directory = Path(path).parent
    _ensure_directory(directory)
    _refuse_others(directory)
    with _held(path):
        _clear_path(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        fresh = f"{path}.{_mark()}"
        if len(os.fsencode(fresh)) > _LONGEST:
            fresh = str(directory / f".{_mark()}")
        try:
            listener.bind(fresh)
            _give(fresh, mode, group)  # before the rename: clients cannot connect yet
            listener.listen(BACKLOG)
            Path(fresh).rename(path)
            return Listener(listener, path)
        except OSError:
            listener.close()
            with contextlib.suppress(OSError):
                Path(fresh).unlink(missing_ok=True)
            raise


def _ensure_directory(directory: Path) -> None:
    """Make the directory, with mode 0755 regardless of the umask: the socket's own mode decides which users may
    connect."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)


def _refuse_others(directory: Path) -> None:
    gid = group_id(GROUP)
    why = locks.others_may_write(directory, frozenset() if gid is None else frozenset({gid}))
    if why:
        raise PermissionError(errno.EPERM, f"a socket there would not be root's alone: {why}", str(directory))


def _mark() -> str:
    """A random suffix for a temporary file: in a directory that every user may write, its name must not be
    predictable."""
    return os.urandom(4).hex()


@contextlib.contextmanager
def _held(path: str) -> Iterator[None]:
    """Hold the path's lock, so that two daemons do not both replace a dead socket.

    The lock is in a directory of root alone: any user can lock a file beside the socket, or the directory itself
    (/run), and the daemon would wait for ever.
    """
    status = Path(path).parent.stat()
    name = f"socket-{status.st_dev}-{status.st_ino}-{fnv1a64(os.fsencode(Path(path).name)):016x}"
    fd = locks.hold(name, wait=True)
    assert fd is not None  # `wait=True` blocks until it is taken
    try:
        yield
    finally:
        locks.release(fd, name)


def _clear_path(path: str) -> None:
    """Make the path free for a socket. In a directory that every user may write, another user's file is cleared: a
    socket or link is removed, anything else is moved aside. Raises OSError if a daemon listens at the path, or if a
    file other than a socket is there."""
    existing, directory = Path(path), Path(path).parent
    try:
        status = existing.lstat()
    except FileNotFoundError:
        return
    if status.st_uid in locks.trusted_users() or not locks.is_shared(directory):
        _refuse_listening(path)
        return
    log.warning("%s is a file of user %d and is replaced by the daemon's socket", path, status.st_uid)
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISLNK(status.st_mode):
        existing.unlink()
    else:
        existing.rename(f"{path}.{_mark()}.moved")


def _refuse_listening(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            if not Path(path).is_socket():
                raise FileExistsError(errno.EEXIST, "not a socket, and not replaced", path) from None
            return
        except OSError as error:
            raise OSError(errno.EADDRINUSE, f"another process may be listening: {error}", path) from error
    raise OSError(errno.EADDRINUSE, "another process is listening", path)


def _give(path: str, mode: int, group: str | None) -> None:
    """Set the file's group, if a group of that name exists, and its mode. Without the group the file keeps its owner's
    (contract 1.4)."""
    gid = group_id(group) if group is not None else None
    if gid is not None:
        try:
            os.chown(path, -1, gid)
        except OSError as error:
            log.warning("cannot give %s to group %s: %s", path, group, error)
    Path(path).chmod(mode)


def group_id(name: str) -> int | None:
    """The gid of a group, None if there is no group of that name."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def peer_groups(client: socket.socket) -> frozenset[int]:
    """The groups the client had when it connected, supplementary ones included."""
    gid = Peer(client).gid
    try:
        raw = client.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return frozenset((gid,))  # more groups than fit 1024 bytes (256): only the primary group counts
    return frozenset((gid, *(number for (number,) in struct.iter_unpack("=I", raw))))


def is_root(client: socket.socket) -> bool:
    """Whether the client runs as root, or as the daemon's own user. The socket's mode says the same; this check still
    holds if the mode is loosened."""
    uid = Peer(client).uid
    return uid in (0, os.geteuid())


def may_enter(client: socket.socket, group: str = GROUP) -> bool:
    """Whether the client is root or in `group`."""
    if is_root(client):
        return True
    gid = group_id(group)
    return gid is not None and gid in peer_groups(client)
