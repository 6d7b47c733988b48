"""The plugin's end of the CNI door: connect, ask, wait; never longer than the verb may take, never for a dead runtime.

One request, one answer, then the daemon closes (docs/architecture.md, "Two doors"):

    request  u32 big-endian length, b"zcni1\\0" (KEY=VALUE\\0)* \\0 stdin; the netns descriptor rides on the first byte
    answer   u32 big-endian length, b"<exit code> <length of stdout>\\n" stdout stderr
    told     one byte, if the request had TELLS=1: the runtime has the answer. Who ends without it was killed over it

Nothing here blocks except in `Waiter`, which knows the deadline and watches the process that the runtime started.
Like `main` it uses `posix`, which the interpreter has loaded, and not `os`, whose import takes a tenth of a call.
"""

import _socket
import posix
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The CNI versions this plugin speaks, oldest first."""

MAGIC = b"zcni1\0"
PARENT_VARIABLE = b"ZLAYER_CNI_PARENT"
"""Names the process that the runtime started, where that is not the one that serves the call."""
SOCKET_NAME = "cni.sock"
TOLD = b"+"
LARGEST = 8 * 1024 * 1024
"""The largest body either side may send, in bytes."""


class OutOfTime(Exception):
    """The deadline of the verb has come."""


class Closed(Exception):
    """Nobody listens at the door; the argument is the reason for a person."""


class NoAnswer(Exception):
    """The daemon hung up without an answer: it died, or it is being replaced. `read`: it may have begun."""

    def __init__(self, why: str, *, read: bool = True) -> None:
        super().__init__(why)
        self.read = read


class Waiter:
    """Waits, until a deadline, and notices when the process that the runtime started is gone.

    In the single file that process is the bootloader, our parent: a runtime that gives up kills it and not us, and
    we would carry out an ADD for nobody. Its end is ours, and its temporary directory, which it can no longer
    remove, goes with us.
    """

    def __init__(self, seconds: float, *, whole_call: bool = False) -> None:
        """`seconds` from now; with `whole_call` from when the runtime started the program, which on a busy machine
        is noticeably earlier."""
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self._parent = -1
        self._pidfd = -1
        # The unpacked program, when it took the place of the single file's child, was told of its bootloader.
        told = posix.environ.get(PARENT_VARIABLE, b"")
        if extraction_directory() or told.isdigit():
            self._watch_parent(int(told) if told.isdigit() else bootloader())
        self.whose = (self._parent if self._parent > 0 else posix.getpid(), 0)
        """The process that the runtime started, and when, in ticks since boot; 0 if that cannot be told."""
        if whole_call:
            self.whose = (self.whose[0], _start_time(self.whose[0]))
            self.deadline -= min(_age(self.whose[1]), seconds / 2)

    def _watch_parent(self, pid: int) -> None:
        self._parent = pid
        try:
            self._pidfd = posix.pidfd_open(self._parent)
        except OSError:
            self._pidfd = -1  # An old kernel, a strict seccomp filter, or gone already: `_alive` decides.
        if not self._alive():
            die_with_parent()

    def _alive(self) -> bool:
        return posix.getppid() == self._parent

    def left(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def wait(self, fd: int, events: int, seconds: float | None = None) -> bool:
        """Wait until `fd` is ready for `events` (poll's numbers).

        False when `seconds` were given and have passed; OutOfTime when the deadline has come.
        """
        until = self.deadline if seconds is None else min(self.deadline, time.monotonic() + seconds)
        poll = select.poll()
        if fd >= 0:
            poll.register(fd, events)
        if self._pidfd >= 0:
            poll.register(self._pidfd, select.POLLIN)
        while True:
            left = until - time.monotonic()
            if self._parent >= 0 and self._pidfd < 0:
                left = min(left, 0.1)  # No descriptor tells of the parent's end: look at it now and then.
            ready = poll.poll(max(0, int(left * 1000 + 0.999)))
            if self._parent >= 0 and (not ready or any(f == self._pidfd for f, _ in ready)) and not self._alive():
                die_with_parent()
            if any(f == fd for f, _ in ready):
                return True
            now = time.monotonic()
            if now >= self.deadline:
                raise OutOfTime
            if now >= until:
                return False

    def pause(self, seconds: float) -> None:
        """Sleep for `seconds`; OutOfTime when the deadline comes first."""
        self.wait(-1, 0, seconds)


class Location:
    """Which daemon a configuration means: its directories, whether to start it, or a foreign overlayd's socket."""

    __slots__ = ("autostart", "data_dir", "foreign", "run_dir")

    def __init__(self) -> None:
        self.run_dir = "/run/zlayer-cni"
        self.data_dir = "/var/lib/zlayer-cni"
        self.autostart = True
        self.foreign = ""

    @property
    def socket(self) -> str:
        """The CNI door's path, for messages."""
        return socket_of(self.run_dir)


class PluginCall:
    """One call of the runtime: the verb, the environment as raw bytes, stdin, the deadline, and an id of its own."""

    __slots__ = ("attempt", "command", "door", "env", "stdin", "waiter")

    def __init__(self, command: bytes, env: dict[bytes, bytes], stdin: bytes, waiter: Waiter) -> None:
        self.command = command
        self.env = env
        self.stdin = stdin
        self.waiter = waiter
        self.attempt = posix.urandom(16).hex().encode()
        """Tells the daemon our own retry from a second ADD of the runtime's."""
        self.door: _socket.socket | None = None
        """The connection on which an ADD was answered: open until the runtime has the result."""


def _start_time(pid: int) -> int:
    """When process `pid` was started, in ticks since boot; 0 when that cannot be told.

    A copy of what cni/proc.py has: a module more on the path of every call costs 0.1 ms, this line nothing.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _age(started: int) -> float:
    """Seconds since then, at a resolution of 10 ms."""
    if not started:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / posix.sysconf("SC_CLK_TCK"))


def extraction_directory() -> str:
    """Where the single file's bootloader has unpacked us; empty in the unpacked form and from source."""
    directory: str = getattr(sys, "_MEIPASS", "")
    return directory if _last(directory).startswith("_MEI") else ""


def bootloader() -> int:
    """The process that unpacked us and waits for our end: PyInstaller puts its number into the directory's name.

    Asking for our parent would not do: when the bootloader is dead, that is whoever adopts orphans here.
    """
    return int(_last(extraction_directory())[4:12], 16)


def die_with_parent() -> None:
    """The runtime has killed the call: leave nothing, say nothing."""
    remove_tree(extraction_directory())
    posix._exit(137)


def remove_tree(directory: str, *, itself: bool = True) -> None:
    """Remove a directory of files (or all that is in it); what is gone already, or cannot go, stays."""
    if not directory:
        return
    import os  # the call is over: time does not matter

    for here, directories, files in os.walk(directory, topdown=False):
        for name in files:
            _quietly(os.unlink, os.path.join(here, name))
        for name in directories:
            _quietly(os.rmdir, os.path.join(here, name))
    if itself:
        _quietly(os.rmdir, directory)


def _quietly(remove: "Callable[[str], None]", path: str) -> None:
    try:
        remove(path)
    except OSError:
        return


def socket_of(run_dir: str) -> str:
    """The path of the door of `run_dir`."""
    return f"{run_dir.rstrip('/')}/{SOCKET_NAME}"


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def connect(run_dir: str, waiter: Waiter) -> _socket.socket:
    """The connected door of `run_dir`.

    Raises Closed when no process of root's (or of this user's) listens there, OutOfTime while its queue is full.
    """
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    address = socket_of(run_dir)
    try:
        while True:
            try:
                sock.connect(address)
            except BlockingIOError:
                waiter.pause(0.01)
            else:
                _refuse_strangers(sock, address)
                return sock
    except OSError as error:
        sock.close()
        raise Closed(f"{address}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise


def _refuse_strangers(sock: _socket.socket, address: str) -> None:
    """The run directory may be one in which other users write: what listens there is root's, or hears nothing.

    As cni/peer_credentials.py has it, which would be a module more on the path of every call.
    """
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: process, user, group
    user = int.from_bytes(credentials[4:8], sys.byteorder)
    if user not in (0, posix.geteuid()):
        raise Closed(f"{address}: the process that listens there is user {user}'s, not root's")


def request(pairs: "Mapping[bytes, bytes]", stdin: bytes) -> bytes:
    """The body of a request, without its length."""
    return b"".join((MAGIC, *(b"%s=%s\0" % pair for pair in pairs.items()), b"\0", stdin))


def ask(sock: _socket.socket, body: bytes, fds: "Iterable[int]", waiter: Waiter) -> tuple[int, bytes, bytes]:
    """Send `body` with the descriptors, and wait for exit code, stdout and stderr.

    Raises NoAnswer when the daemon hangs up first, OutOfTime when the deadline comes first.
    """
    try:
        _send(sock, len(body).to_bytes(4, "big") + body, fds, waiter)
    except ConnectionError:
        pass  # A daemon that refuses from the header answers and closes while we are still sending.
    size = int.from_bytes(_receive(sock, 4, waiter), "big")
    if size > LARGEST:
        raise NoAnswer(f"an answer of {size} bytes")
    answer = _receive(sock, size, waiter)
    head, newline, rest = answer.partition(b"\n")
    code, _, length = head.partition(b" ")
    if not (newline and code.isdigit() and length.isdigit()):
        raise NoAnswer("an answer that is none")
    return int(code), rest[: int(length)], rest[int(length) :]


def tell(sock: _socket.socket) -> None:
    """Tell the daemon that the runtime has the answer: from now on our end undoes nothing. Never fails, never waits."""
    try:
        sock.send(TOLD)
    except OSError:
        return  # The daemon is gone, or an older one that does not listen any more.


def _send(sock: _socket.socket, data: bytes, fds: "Iterable[int]", waiter: Waiter) -> None:
    rights = b"".join(fd.to_bytes(4, sys.byteorder) for fd in fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if rights else []
    rest = memoryview(data)
    while rest:
        try:
            sent = sock.sendmsg([rest], ancillary)
        except BlockingIOError:
            waiter.wait(sock.fileno(), select.POLLOUT)
        else:
            rest, ancillary = rest[sent:], []


def _receive(sock: _socket.socket, size: int, waiter: Waiter) -> bytes:
    parts: list[bytes] = []
    while size:
        try:
            part = sock.recv(min(size, 1 << 18))
        except BlockingIOError:
            waiter.wait(sock.fileno(), select.POLLIN)
            continue
        except ConnectionError as error:
            waiter.pause(0.02)  # for the dead to be gone
            raise NoAnswer(str(error), read=False) from error
        if not part:
            raise NoAnswer("the connection was closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
