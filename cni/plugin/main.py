"""The plugin's process: passes environment and stdin to the daemon, and the daemon's answer to the runtime unchanged.

While a daemon answers, only modules that the interpreter has loaded, `_socket`, `select` and three small modules of
ours are imported, not even `os`: start-up takes most of the time of a call. tests/unit/test_plugin_imports.py lists the
modules that must not be imported, with the reasons. If no daemon answers, `no_daemon` is used.
"""

import _signal  # type: ignore[import-not-found]  # without the enumerations of `signal`, whose import takes 4 ms
import posix
import select
import sys

from cni import plugin_protocol
from cni.plugin import client
from cni.plugin.client import Location, PluginCall

DEADLINES = {b"ADD": 38.0, b"CHECK": 9.0, b"STATUS": 1.7, b"GC": 30.0, b"DEL": 8.0}
"""Seconds that a verb may take in all. Runtimes wait longer (minutes for ADD, 10 s for DEL and CHECK, 2 s for STATUS):
the plugin's error is more specific than the runtime's time-out."""

_UNREAD_WEIGHT = 0.2  # a connection closed before the request was read counts as 1/5 of a daemon's end; the limit is 2

_DECIDING_KEYS = (b"rundir", b"datadir", b"overlayd", b"autostart", b"\\u")
"""If the lower-cased configuration holds one of these, it may name the daemon. An escape may hide such a key."""


def main() -> int:
    """Serve the call that the environment describes; returns the exit code. Prints one JSON document or nothing."""
    command = posix.environ.get(b"CNI_COMMAND", b"")
    stdin = b""
    try:
        open_descriptors = _standard_descriptors()
        posix.umask(posix.umask(0o077) & 0o077)  # the owner may use the files that this call creates
        waiter = client.Waiter(DEADLINES.get(command, 9.0), whole_call=True)
        if command == b"VERSION":
            from cni.plugin import messages

            return 0 if write_all(1, messages.version_answer(waiter, open_descriptors[0])) else 1
        if not open_descriptors[1] and command == b"ADD":
            # No process could read the result, and the runtime would not know the interface. The other verbs have no
            # result to lose, and a DEL must be carried out.
            write_all(2, b"zlayer-cni: stdout is closed\n")
            return 1
        stdin = _read_stdin(waiter, open_descriptors[0])
        if command == b"ADD":
            _refuse_lost_exit_code()
        env = {name: posix.environ[name] for name in plugin_protocol.VARIABLES if name in posix.environ}
        call = PluginCall(command, env, stdin, waiter)
        if handed_over := posix.environ.get(client.CALL_VARIABLE):
            call.attempt, _, call.state = handed_over.partition(b":")
            if call.state == b"undo":
                return _undo(call)
        code, out, err = serve(call)
        return _print(call, code, out, err)
    except Exception as error:  # noqa: BLE001 - the runtime reads JSON, not tracebacks
        from cni.plugin import messages

        write_all(1, messages.error_answer(error, stdin))
        return 1
    except KeyboardInterrupt:
        return 130


def serve(call: PluginCall) -> tuple[int, bytes, bytes]:
    """Let the daemon carry out `call`; returns exit code, stdout, stderr. Raises CniError if there is no answer."""
    location = Location()
    if _may_decide(call.stdin):
        from cni.plugin import config

        try:
            location = config.place(call.stdin, call.command)
        except Exception:
            from cni.plugin import no_daemon

            no_daemon.validate(call)  # Other errors take precedence, as in the daemon.
            raise
    if location.foreign:
        from cni.plugin import no_daemon

        return no_daemon.foreign(call, location)
    if call.state == b"late":
        from cni.plugin import no_daemon

        return no_daemon.queue_or_fail(call, location, _late(call, location))
    netns, keys = _netns(call)
    keys[plugin_protocol.ATTEMPT] = call.attempt
    if call.command == b"ADD":
        keys[plugin_protocol.CONFIRMS] = b"1"
        keys[plugin_protocol.RUNTIME_PROCESS] = b"%d:%d" % call.waiter.whose
    if directory := client.extraction_directory():
        encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
        keys[plugin_protocol.EXTRACTION] = directory.encode(encoding, errors)
    body = client.request(call.env, keys, call.stdin)
    if len(body) > plugin_protocol.LARGEST:
        from cni.errors import InvalidConfig

        raise InvalidConfig(f"the request is {len(body)} bytes long, at most {plugin_protocol.LARGEST} are accepted")
    try:
        return _ask_until_answered(call, location, body, netns)
    finally:
        for fd in netns:
            posix.close(fd)


def _ask_until_answered(
    call: PluginCall, location: Location, body: bytes, netns: list[int]
) -> tuple[int, bytes, bytes]:
    """Send the request, and repeat it if the daemon ends meanwhile: by the attempt id the next daemon recognises what
    is done already.

    A request that was not read counts less (_UNREAD_WEIGHT): the socket of a daemon that ends accepts connections until
    its last thread has left the kernel.
    """
    why, died = "", float(call.state == b"unanswered")
    while died < 2:
        try:
            try:
                sock = client.connect(location.run_dir, call.waiter)
            except client.Closed as error:
                from cni.plugin import no_daemon

                sock = no_daemon.connect_or_start(call, location, str(error))
            try:
                answer = client.ask(sock, body, netns, call.waiter)
                if call.command == b"ADD":
                    call.connection = sock
                elif call.command == b"DEL" and answer[0]:
                    from cni.plugin import no_daemon

                    return no_daemon.answer_failed_delete(call, location, answer)
                return answer
            finally:
                if call.connection is not sock:
                    sock.close()
        except client.NoAnswer as error:
            died += 1 if error.read else _UNREAD_WEIGHT
            why = f"the overlay daemon at {location.socket} hung up without an answer: {error}"
        except client.OutOfTime:
            why = _late(call, location)
            break
        except client.Closed as error:
            why = str(error)
            break
    from cni.plugin import no_daemon

    return no_daemon.queue_or_fail(call, location, why)


def _late(call: PluginCall, location: Location) -> str:
    return f"the overlay daemon at {location.socket} did not answer within {call.waiter.seconds:g} s"


def _may_decide(stdin: bytes) -> bool:
    lowered = stdin.lower()
    return any(key in lowered for key in _DECIDING_KEYS)


def _netns(call: PluginCall) -> tuple[list[int], dict[str, bytes]]:
    """CNI_NETNS as an open descriptor (none or one), and the keys of the request about it.

    Only a regular file is opened, as a namespace's file is: to open a FIFO blocks forever, and to open some devices has
    side effects. The daemon checks that it is a network namespace.
    """
    keys: dict[str, bytes] = {}
    try:
        own = posix.stat("/proc/self/ns/net")
        keys[plugin_protocol.OWN_NETNS] = b"%d:%d" % (own.st_dev, own.st_ino)
    except OSError:
        pass  # Without /proc the daemon compares with its own namespace.
    path = call.env.get(b"CNI_NETNS", b"")
    if not path:
        return [], keys
    try:
        if (posix.stat(path).st_mode & 0o170000) != 0o100000:
            return [], {**keys, plugin_protocol.NETNS_ERROR: b"EINVAL"}
        fd = posix.open(path, posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC | posix.O_NOCTTY)
    except (OSError, ValueError) as error:
        from errno import errorcode

        number = getattr(error, "errno", None) or 22
        return [], {**keys, plugin_protocol.NETNS_ERROR: errorcode.get(number, "EINVAL").encode()}
    return [fd], {**keys, plugin_protocol.NETNS_FD: b"1"}


def _standard_descriptors() -> tuple[bool, bool]:
    """Whether stdin and stdout are open. A closed descriptor is opened on /dev/null; otherwise a socket would get its
    number."""
    is_open = []
    for fd in (0, 1, 2):
        try:
            posix.fstat(fd)
            is_open.append(True)
        except OSError:
            is_open.append(False)
            null = posix.open("/dev/null", posix.O_RDWR)
            if null != fd:
                posix.dup2(null, fd)
                posix.close(null)
    return is_open[0], is_open[1]


def _refuse_lost_exit_code() -> None:
    """Raises InvalidEnvironment if the caller ignores SIGCHLD and this is the single file: the bootloader, which waits
    for this process, cannot read its exit code then, and exits with 1 whatever it was."""
    if _signal.getsignal(_signal.SIGCHLD) == _signal.SIG_IGN and client.extraction_directory():
        from cni.errors import InvalidEnvironment

        raise InvalidEnvironment(
            "SIGCHLD is ignored, and the single file can return no exit code then",
            "restore SIGCHLD in the caller, or use the unpacked program (zlayer-cni install)",
        )


def _read_stdin(waiter: client.Waiter, is_open: bool) -> bytes:
    """All of stdin. Raises InputOutput (code 5) if it cannot be read, InvalidConfig if it is too long."""
    parts: list[bytes] = []
    size = 0
    if begun := posix.environ.get(client.STDIN_VARIABLE):
        while part := posix.read(int(begun), 1 << 18):
            parts.append(part)
            size += len(part)
    try:
        if not is_open:
            raise OSError(9, "it is closed")
        while True:
            waiter.wait(0, select.POLLIN)
            part = posix.read(0, 1 << 18)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
            if size > plugin_protocol.LARGEST:
                from cni.errors import InvalidConfig

                raise InvalidConfig(f"the network configuration is longer than {plugin_protocol.LARGEST} bytes")
    except (OSError, client.OutOfTime) as error:
        from cni.errors import InputOutput

        why = getattr(error, "strerror", None) or f"it did not end within {waiter.seconds:g} s"
        raise InputOutput(f"error reading from stdin: {why}") from error


def _print(call: PluginCall, code: int, out: bytes, err: bytes) -> int:
    """Print the answer; an ADD whose result cannot be written is undone."""
    printed = write_all(1, out)
    write_all(2, err)
    if printed:
        if call.connection is not None:
            client.tell(call.connection)
        return code
    if call.command == b"ADD" and code == 0:
        return _undo(call)
    return code or 1


def _undo(call: PluginCall) -> int:
    """Undo an ADD whose result could not be written; returns the exit code of the ADD."""
    write_all(2, b"zlayer-cni: the result could not be written to stdout, so the ADD is undone\n")
    waiter = client.Waiter(DEADLINES[b"DEL"])
    undo = PluginCall(b"DEL", {**call.env, b"CNI_COMMAND": b"DEL"}, call.stdin, waiter)
    write_all(2, serve(undo)[2])
    return 1


def write_all(fd: int, data: bytes) -> bool:
    """Write all of `data`, also to a non-blocking pipe; False if it cannot be written."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[posix.write(fd, rest) :]
        except BlockingIOError:
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()
        except OSError:
            return False
    return True
