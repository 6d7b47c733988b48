"""Listening on a Unix socket: who may come in, and whose file it is.

A dead daemon's socket file is replaced, a living one's never is; two daemons that start at once are kept apart by a
lock. A socket is made only where root alone can replace it; in a directory that is every user's (/tmp), what another
user has put in its place goes. Whoever comes in is known by the kernel (SO_PEERCRED), not only by the file's mode.
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
"""Members of this group may use the overlay door, as with ZLayer's own daemon (contract 1.4)."""

_SO_PEERGROUPS = 59  # not in Python's socket module
_LONGEST = 107  # bytes of path in a sockaddr_un


class Listener:
    """A listening socket and the file it has; `remove` takes the file away, unless it is another's by now."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self.sock = sock
        self.path = path
        status = os.stat(path)  # noqa: PTH116
        self._file = (status.st_dev, status.st_ino)

    def is_there(self) -> bool:
        """Whether the file at the path is ours still: only then does anybody find us."""
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
    """Listen at `path`, whose directories are made where they are missing. `group` gets the file if it exists.

    Raises OSError; EADDRINUSE if somebody answers there already, EPERM where another user could replace the socket.
    """
    directory = Path(path).parent
    _ensure_directory(directory)
    _refuse_others(directory)
    with _held(path):
        _make_way(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        fresh = f"{path}.{_mark()}"
        if len(os.fsencode(fresh)) > _LONGEST:
            fresh = str(directory / f".{_mark()}")
        try:
            listener.bind(fresh)
            _give(fresh, mode, group)  # before anybody can find it under its name
            listener.listen(BACKLOG)
            Path(fresh).rename(path)
            return Listener(listener, path)
        except OSError:
            listener.close()
            with contextlib.suppress(OSError):
                Path(fresh).unlink(missing_ok=True)
            raise


def _ensure_directory(directory: Path) -> None:
    """The directory, to be entered by everybody whatever our umask is: the socket's own mode says who may connect."""
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        each.chmod(0o755)


def _refuse_others(directory: Path) -> None:
    gid = group_id(GROUP)
    why = locks.others_may_write(directory, frozenset() if gid is None else frozenset({gid}))
    if why:
        raise PermissionError(errno.EPERM, f"a socket there would not be root's alone: {why}", str(directory))


def _mark() -> str:
    """What tells a file that is being made from all others: not to be foreseen in a directory that is everyone's."""
    return os.urandom(4).hex()


@contextlib.contextmanager
def _held(path: str) -> Iterator[None]:
    """The path's lock: what is found dead by one daemon is not replaced by two.

    It is in a directory of root's alone: a file beside the socket, and the directory itself (/run), can be locked by
    any user, and the daemon would wait for ever.
    """
    status = Path(path).parent.stat()
    name = f"socket-{status.st_dev}-{status.st_ino}-{fnv1a64(os.fsencode(Path(path).name)):016x}"
    fd = locks.hold(name, wait=True)
    assert fd is not None  # it waited
    try:
        yield
    finally:
        locks.release(fd, name)


def _make_way(path: str) -> None:
    """Raises OSError where a daemon listens at the path already, or something else is there. What another user has put
    there goes, in a directory in which every user may: a socket or link is removed, the rest moved aside."""
    there, directory = Path(path), Path(path).parent
    try:
        status = there.lstat()
    except FileNotFoundError:
        return
    if status.st_uid in locks.trusted_users() or not locks.is_shared(directory):
        _refuse_the_living(path)
        return
    log.warning("%s was put there by user %d, and gives way to the daemon's socket", path, status.st_uid)
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISLNK(status.st_mode):
        there.unlink()
    else:
        there.rename(f"{path}.{_mark()}.moved")


def _refuse_the_living(path: str) -> None:
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
            raise OSError(errno.EADDRINUSE, f"somebody may be listening: {error}", path) from error
    raise OSError(errno.EADDRINUSE, "somebody is listening", path)


def _give(path: str, mode: int, group: str | None) -> None:
    """The mode, and the group where there is one of that name; without it the file stays the owner's (contract 1.4)."""
    gid = group_id(group) if group is not None else None
    if gid is not None:
        try:
            os.chown(path, -1, gid)
        except OSError as error:
            log.warning("cannot give %s to group %s: %s", path, group, error)
    Path(path).chmod(mode)


def group_id(name: str) -> int | None:
    """The number of a group, None if there is none of that name."""
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
        return frozenset((gid,))  # more groups than Python's getsockopt has room for (256): judged by the first alone
    return frozenset((gid, *(number for (number,) in struct.iter_unpack("=I", raw))))


def is_root(client: socket.socket) -> bool:
    """Whether the client runs as root, or as whoever we are. The socket's mode says so too; this holds when someone
    loosens the mode."""
    uid = Peer(client).uid
    return uid in (0, os.geteuid())


def may_enter(client: socket.socket, group: str = GROUP) -> bool:
    """Whether the client is root or of `group`."""
    if is_root(client):
        return True
    gid = group_id(group)
    return gid is not None and gid in peer_groups(client)
