"""Starts our daemon if a plugin cannot connect to the CNI socket: once, however many plugins run at the same time.

The plugin that starts the daemon holds the lock file `<run directory>/autostart.lock` until the CNI socket accepts
connections. The file names the process that was started ("started PID STARTTIME"), so that the next holder of the lock
waits for that process; or the reason why the start failed ("failed NANOSECONDS TEXT"), so that the plugins that waited
meanwhile report the same error instead of starting the daemon one after another.
"""

import _signal  # type: ignore[import-not-found]  # without the enumerations of `signal`, whose import takes 4 ms
import _socket
import errno
import os
import sys
import time

from cni import last_words, lock_files, log_files, proc
from cni.plugin import client
from cni.plugin.client import Location

LOG_NAME = "overlayd.log"
_LOCK_NAME = "autostart.lock"
_SYSTEMD = "/run/systemd/system"  # exists if and only if systemd is the init (sd_booted(3))
_UNIT = "/etc/systemd/system/multi-user.target.wants/zlayer-overlayd.service"
_SYSTEMD_GRACE = 5.0  # seconds for systemd to start the daemon before the plugin does; the unit's RestartSec is 1 s
_STEP = 0.01  # seconds between two attempts to connect
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"

_KEPT = ("HOME", "TZ")
"""The variables that the daemon inherits from a runtime: its proxies, libraries and paths do not apply to the
daemon."""
_OF_SOURCE = ("PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""The variables that the daemon inherits in addition if the program is not frozen."""


def connect_or_start(place: Location, waiter: client.Waiter) -> _socket.socket:
    """A connection to our daemon, which is started if it does not run.

    Raises client.Closed if the daemon cannot be started or ends before it listens, OutOfTime if that takes longer
    than the call may wait.
    """
    since = time.monotonic_ns()
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # while it is ignored, the kernel keeps no exit code
    try:
        os.makedirs(place.run_dir, 0o755, exist_ok=True)
        lock = lock_files.opened(os.path.join(place.run_dir, _LOCK_NAME))
    except OSError as error:
        raise client.Closed(f"cannot start the overlay daemon: {error.filename}: {error.strerror}") from error
    try:
        while not lock_files.take(lock):
            waiter.pause(_STEP)
            try:
                return client.connect(place.run_dir, waiter)
            except client.Closed:
                continue
        return _start_and_wait(place, waiter, lock, since)
    finally:
        os.close(lock)


def _start_and_wait(place: Location, waiter: client.Waiter, lock: int, since: int) -> _socket.socket:
    """With the lock held: the connection to the daemon, started by this plugin, by systemd or by another plugin."""
    child = 0
    grace = 0.0
    if _systemd_starts_it(place):
        grace = time.monotonic() + min(_SYSTEMD_GRACE, waiter.left() / 2)
        _tell_systemd()
    while True:
        try:
            return client.connect(place.run_dir, waiter)
        except client.Closed:
            pass  # The daemon does not listen yet.
        if not child and time.monotonic() >= grace and not _is_starting(lock):
            _raise_recent_failure(lock, since)
            last_words.clear(place.run_dir)
            child = _start(place, waiter, lock)
        ended = child and os.waitpid(child, os.WNOHANG)[0] == child
        if ended:
            try:
                return client.connect(place.run_dir, waiter)  # another daemon serves
            except client.Closed:
                pass
            raise _failure(lock, f"the overlay daemon ended at its start: {_last_words(place)}")
        waiter.pause(_STEP)


def _systemd_starts_it(place: Location) -> bool:
    """Whether a systemd unit is enabled for this run directory: systemd then starts the daemon, also after a stop."""
    if not os.path.isdir(_SYSTEMD):
        return False
    try:
        with open(_UNIT, "rb") as file:
            return b"--run-dir " + os.fsencode(place.run_dir) + b" " in file.read()
    except OSError:
        return False


def _tell_systemd() -> None:
    """Let systemd start the unit, unless systemd is about to stop it: a daemon in its own control group outlives that
    of the runtime.

    The answer is not awaited: if the daemon does not listen in time, this plugin starts it.
    """
    argv = ["systemctl", "--no-block", "--no-ask-password", "--job-mode=fail", "start", os.path.basename(_UNIT)]
    quiet = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1, 2)]
    try:
        os.posix_spawn("/bin/systemctl", argv, environment(), file_actions=quiet, setsigmask=())
    except OSError:
        return  # systemctl may be in another directory, as on NixOS.


def _start(place: Location, waiter: client.Waiter, lock: int) -> int:
    try:
        child = spawn(program(place, waiter), place.run_dir)
    except OSError as error:
        raise _failure(lock, f"cannot start the overlay daemon: {error.filename or ''} {error.strerror}") from error
    _note(lock, f"started {child} {proc.alive_since(child)}")
    return child


def _failure(lock: int, text: str) -> client.Closed:
    _note(lock, f"failed {time.monotonic_ns()} {text}")
    return client.Closed(text)


def _note(lock: int, text: str) -> None:
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, os.fsencode(text), 0)
    except OSError:
        return  # The disk is full: each of the other plugins then starts the daemon itself.


def _noted(lock: int) -> list[str]:
    try:
        return os.pread(lock, 4096, 0).decode("utf-8", "replace").split(" ", 2)
    except OSError:
        return []  # There is no record.


def _is_starting(lock: int) -> bool:
    """Whether a daemon that another plugin started is alive; it does not listen yet."""
    fields = _noted(lock)
    if len(fields) != 3 or fields[0] != "started" or not fields[1].isdigit():
        return False
    since = proc.alive_since(int(fields[1]))
    return since != 0 and str(since) == fields[2]


def _raise_recent_failure(lock: int, since: int) -> None:
    fields = _noted(lock)
    if len(fields) == 3 and fields[0] == "failed" and fields[1].isdigit() and int(fields[1]) > since:
        raise client.Closed(fields[2])


def _last_words(place: Location) -> str:
    """Why the daemon ended, as it reported; never text of its log, which may quote any input."""
    reason = last_words.read(place.run_dir) or "it gave no reason"
    return f"{reason} (log: {os.path.join(place.run_dir, LOG_NAME)})"


def program(place: Location, waiter: client.Waiter) -> list[str]:
    """The command line of the daemon. Raises OSError if the single file cannot extract its program."""
    options = ["overlayd", "--run-dir", place.run_dir, "--data-dir", place.data_dir]
    if not getattr(sys, "frozen", False):
        return [sys.executable, "-m", "cni", *options]
    from cni import unpack

    if unpack.is_single_file():
        return [unpack.extract([place.data_dir, place.run_dir], waiter), *options]
    return [sys.executable, *options]


def environment() -> dict[str, str]:
    """The daemon's environment: a fixed PATH, a locale, and the variables in _KEPT (and _OF_SOURCE)."""
    frozen = getattr(sys, "frozen", False)
    kept = _KEPT if frozen else _KEPT + _OF_SOURCE
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"PATH": _SEARCH_PATH, "LANG": "C.UTF-8"}
    if not frozen:
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return env


def spawn(argv: list[str], run_dir: str) -> int:
    """Run `argv` as a daemon: its own session, `/` as directory, no inherited descriptor, output to the log.

    Returns its PID. Raises OSError if it cannot be executed.
    """
    env = environment()
    log = os.path.join(run_dir, LOG_NAME)
    try:
        log_files.bound(log)  # also if no daemon gets so far that it bounds its own log
    except OSError:
        pass  # There is no log yet, or it cannot be written.
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            _detach(writer, log)
            os.execve(argv[0], argv, env)
        except OSError as error:
            number = error.errno or errno.EIO
        finally:
            os.write(3, number.to_bytes(4, "big"))
            os._exit(127)
    os.close(writer)
    failed = os.read(reader, 4)
    os.close(reader)
    if failed:
        os.waitpid(child, 0)
        number = int.from_bytes(failed, "big")
        raise OSError(number, os.strerror(number), argv[0])
    return child


def _detach(report: int, log: str) -> None:
    """Runs in the new process. Closes all descriptors but the standard ones and `report`, which becomes number 3."""
    os.setsid()
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # a blocked SIGTERM would not end the daemon
    os.chdir("/")
    os.umask(0o022)
    if report != 3:
        os.dup2(report, 3, inheritable=False)
    null = os.open("/dev/null", os.O_RDWR)
    try:
        # O_NONBLOCK: the open does not wait for a reader if the path is a FIFO.
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
    except OSError:
        output = null
    os.dup2(null, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 3:
            try:
                os.close(int(name))
            except OSError:
                continue  # The descriptor of the listing itself.
