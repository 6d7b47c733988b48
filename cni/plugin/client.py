"""The plugin's end of the CNI socket: connects, asks and waits, at most until the verb's deadline and only while the
runtime waits.

One request, one answer, then the daemon closes the connection (docs/cni-socket.md). Only `Waiter` blocks; it has the
deadline and watches the process that the runtime started. Like `main` this module uses `posix`, which the interpreter
has already loaded, instead of `os`, whose import takes a tenth of a call.
"""

import _socket
import posix
import select
import sys
import time

from cni import plugin_protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

SUPPORTED_VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The CNI versions that the plugin supports, oldest first."""

PARENT_VARIABLE = b"ZLAYER_CNI_PARENT"
"""The variable with the PID of the process that the runtime started, if another process serves the call."""
CALL_VARIABLE = b"ZLAYER_CNI_CALL"
"""The variable by which the launcher hands a call over: `<attempt>:<state>`."""
STDIN_VARIABLE = b"ZLAYER_CNI_STDIN"
"""The variable with the descriptor of what the launcher has read of stdin, if stdin has not ended."""


class OutOfTime(Exception):
    """The deadline of the verb has passed."""


class Closed(Exception):
    """No daemon listens on the CNI socket; the argument is the reason, as text for the operator."""


class NoAnswer(Exception):
    """The daemon closed the connection without an answer: it ended, or it is being replaced. `read`: it may have read
    the request and begun to carry it out."""

    def __init__(self, why: str, *, read: bool = True) -> None:
        super().__init__(why)
        self.read = read


class Waiter:
    """Waits until a deadline, and ends this process when the process that the runtime started has ended.

    In the single file that process is the bootloader, our parent. A runtime that gives up kills only the bootloader,
    and this process would carry out an ADD whose result no process reads. So this process ends too, and removes the
    bootloader's temporary directory.
    """

    def __init__(self, seconds: float, *, whole_call: bool = False) -> None:
        """The deadline is `seconds` from now; with `whole_call` from the time at which the runtime started the program,
        which is noticeably earlier on a busy machine."""
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self._parent = -1
        self._pidfd = -1
        # The single file's child passes its bootloader's PID in the variable when it executes the unpacked program.
        bootloader_pid = posix.environ.get(PARENT_VARIABLE, b"")
        if extraction_directory() or bootloader_pid.isdigit():
            self._watch_parent(int(bootloader_pid) if bootloader_pid.isdigit() else bootloader())
        self.whose = (self._parent if self._parent > 0 else posix.getpid(), 0)
        """The process that the runtime started: PID and start time in clock ticks since the boot (0: unknown)."""
        if whole_call:
            self.whose = (self.whose[0], _start_time(self.whose[0]))
            self.deadline -= min(_age(self.whose[1]), seconds / 2)

    def _watch_parent(self, pid: int) -> None:
        self._parent = pid
        try:
            self._pidfd = posix.pidfd_open(self._parent)
        except OSError:
            self._pidfd = -1  # An old kernel, a strict seccomp filter, or the process has ended: see `_alive`.
        if not self._alive():
            die_with_parent()

    def _alive(self) -> bool:
        return posix.getppid() == self._parent

    def left(self) -> float:
        """Seconds until the deadline, never below zero."""
        return max(0.0, self.deadline - time.monotonic())

    def wait(self, fd: int, events: int, seconds: float | None = None) -> bool:
        """Wait until `fd` is ready for `events` (the constants of poll(2)).

        False if `seconds` were given and have passed. Raises OutOfTime at the deadline.
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
                left = min(left, 0.1)  # No pidfd reports the end of the parent: poll for it.
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
        """Sleep for `seconds`. Raises OutOfTime if the deadline is earlier."""
        self.wait(-1, 0, seconds)


class Location:
    """The daemon that a configuration names: its directories, whether the plugin starts it, or the socket of ZLayer's
    overlayd (`foreign`)."""

    __slots__ = ("autostart", "data_dir", "foreign", "run_dir")

    def __init__(self) -> None:
        self.run_dir = "/run/zlayer-cni"
        self.data_dir = "/var/lib/zlayer-cni"
        self.autostart = True
        self.foreign = ""

    @property
    def socket(self) -> str:
        """The path of the CNI socket, for messages."""
        return socket_of(self.run_dir)


class PluginCall:
    """One call of the runtime: the verb, the environment as bytes, stdin, the deadline, and an id of the call."""

    __slots__ = ("attempt", "command", "connection", "env", "state", "stdin", "waiter")

    def __init__(self, command: bytes, env: dict[bytes, bytes], stdin: bytes, waiter: Waiter) -> None:
        self.command = command
        self.env = env
        self.stdin = stdin
        self.waiter = waiter
        self.attempt = posix.urandom(16).hex().encode()
        """Lets the daemon distinguish the plugin's retry from a second ADD of the runtime."""
        self.state = b""
        """What came of the call in the launcher, which hands it over: see `hand_over` in cni/launcher/launcher.c."""
        self.connection: _socket.socket | None = None
        """The connection on which an ADD was answered; open until the runtime has the result."""


def _start_time(pid: int) -> int:
    """The start time of process `pid`, in clock ticks since the boot; 0 if it is unknown.

    Repeats code of cni/proc.py: a further module on the path of every call costs 0.1 ms.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _age(started: int) -> float:
    """Seconds since `started` (clock ticks since the boot), with a resolution of 10 ms; 0 if `started` is 0."""
    if not started:
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started / posix.sysconf("SC_CLK_TCK"))


def extraction_directory() -> str:
    """The directory into which the single file's bootloader unpacked this program; empty in the unpacked form and from
    source."""
    directory: str = getattr(sys, "_MEIPASS", "")
    return directory if _last(directory).startswith("_MEI") else ""


def bootloader() -> int:
    """The PID of the bootloader, which waits for the end of this process: PyInstaller puts it into the directory's
    name.

    getppid() would be wrong if the bootloader has ended: it returns the process that adopts orphans.
    """
    return int(_last(extraction_directory())[4:12], 16)


def die_with_parent() -> None:
    """End this process without output, after the runtime has killed the call; removes the extraction directory."""
    remove_tree(extraction_directory())
    posix._exit(137)


def remove_tree(directory: str, *, itself: bool = True) -> None:
    """Remove a directory with its contents, or only its contents if not `itself`. Ignores errors."""
    if not directory:
        return
    import os  # imported here: the call is over, so its time does not matter

    for parent, directories, files in os.walk(directory, topdown=False):
        for name in files:
            _quietly(os.unlink, os.path.join(parent, name))
        for name in directories:
            _quietly(os.rmdir, os.path.join(parent, name))
    if itself:
        _quietly(os.rmdir, directory)


def _quietly(remove: "Callable[[str], None]", path: str) -> None:
    try:
        remove(path)
    except OSError:
        return


def socket_of(run_dir: str) -> str:
    """The path of the CNI socket in `run_dir`."""
    return f"{run_dir.rstrip('/')}/{plugin_protocol.SOCKET_NAME}"


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def connect(run_dir: str, waiter: Waiter) -> _socket.socket:
    """A connection to the CNI socket in `run_dir`.

    Raises Closed if no process of root (or of this user) listens on it, OutOfTime if its queue stays full.
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
    """Raise Closed if the process that listens belongs to another user than root or this one: other users may be able
    to write to the run directory.

    Repeats code of cni/peer_credentials.py, which would be a further module on the path of every call.
    """
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)  # struct ucred: process, user, group
    user = int.from_bytes(credentials[4:8], sys.byteorder)
    if user not in (0, posix.geteuid()):
        raise Closed(f"{address}: the process that listens there is user {user}'s, not root's")


def request(variables: "Mapping[bytes, bytes]", keys: "Mapping[str, bytes]", stdin: bytes) -> bytes:
    """The body of a request, without its length: CNI variables, and keys of cni/plugin_protocol.py."""
    pairs = [*variables.items(), *((key.encode(), value) for key, value in keys.items())]
    return b"".join((plugin_protocol.MAGIC, b"\0", *(b"%s=%s\0" % pair for pair in pairs), b"\0", stdin))


def ask(sock: _socket.socket, body: bytes, fds: "Iterable[int]", waiter: Waiter) -> tuple[int, bytes, bytes]:
    """Send `body` with the descriptors, and wait for exit code, stdout and stderr.

    Raises NoAnswer if the daemon closes the connection first, OutOfTime if the deadline passes first.
    """
    try:
        _send(sock, len(body).to_bytes(4, "big") + body, fds, waiter)
    except ConnectionError:
        pass  # A daemon that refuses the request by its header answers and closes before all is sent.
    size = int.from_bytes(_receive(sock, 4, waiter), "big")
    if size > plugin_protocol.LARGEST:
        raise NoAnswer(f"an answer of {size} bytes")
    answer = _receive(sock, size, waiter)
    head, newline, rest = answer.partition(b"\n")
    code, _, length = head.partition(b" ")
    if not (newline and code.isdigit() and length.isdigit()):
        raise NoAnswer("an answer that is none")
    return int(code), rest[: int(length)], rest[int(length) :]


def tell(sock: _socket.socket) -> None:
    """Tell the daemon that the runtime has the answer: the daemon then keeps the attachment when this process ends.
    Never fails, never waits."""
    try:
        sock.send(plugin_protocol.CONFIRMATION)
    except OSError:
        return  # The daemon has ended, or is an older one that has closed the connection.


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
            waiter.pause(0.02)  # until the process that reset the connection has exited
            raise NoAnswer(str(error), read=False) from error
        if not part:
            raise NoAnswer("the connection was closed")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
