"""Starts our daemon when a plugin finds its door closed: once, however many plugins come at the same time.

The lock file `<run directory>/autostart.lock` is held by the plugin that starts the daemon until the door opens.
It says which process was started ("started PID STARTTIME"), so that a successor waits for that one, or why the
start failed ("failed NANOSECONDS TEXT"), so that those who waited meanwhile say the same instead of trying in turn.
"""

import _socket
import errno
import os
import sys
import time

from cni import last_words, lock_files, proc
from cni.plugin import client as plugin_door
from cni.plugin.client import Location

LOG_NAME = "overlayd.log"
_LOCK_NAME = "autostart.lock"
_SYSTEMD = "/run/systemd/system"  # is there if and only if systemd is the init (sd_booted(3))
_UNIT = "/etc/systemd/system/multi-user.target.wants/zlayer-overlayd.service"
_SYSTEMD_GRACE = 5.0  # seconds that systemd has to start the daemon before we do; the unit's RestartSec is 1
_STEP = 0.01  # seconds between two looks at the door
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"

_KEPT = ("HOME", "TZ")
"""All that the daemon inherits of a runtime's environment: proxies, libraries and paths are the runtime's own."""
_OF_SOURCE = ("PYTHONPATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
"""What it inherits besides where the program is not frozen."""


def open_door(place: Location, waiter: plugin_door.Waiter) -> _socket.socket:
    """The door of our daemon, started if it has to be.

    Raises plugin_door.Closed when it cannot be started or ends before it opens its door, OutOfTime when it takes
    too long.
    """
    since = time.monotonic_ns()
    try:
        os.makedirs(place.run_dir, 0o755, exist_ok=True)
        lock = lock_files.opened(os.path.join(place.run_dir, _LOCK_NAME))
    except OSError as error:
        raise plugin_door.Closed(f"cannot start the overlay daemon: {error.filename}: {error.strerror}") from error
    try:
        while not lock_files.take(lock):
            waiter.pause(_STEP)
            try:
                return plugin_door.connect(place.run_dir, waiter)
            except plugin_door.Closed:
                continue
        return _start_and_wait(place, waiter, lock, since)
    finally:
        os.close(lock)


def _start_and_wait(place: Location, waiter: plugin_door.Waiter, lock: int, since: int) -> _socket.socket:
    """With the lock held: the door, whoever opened it."""
    child = 0
    grace = 0.0
    if _systemd_starts_it(place):
        grace = time.monotonic() + min(_SYSTEMD_GRACE, waiter.left() / 2)
        _tell_systemd()
    while True:
        try:
            return plugin_door.connect(place.run_dir, waiter)
        except plugin_door.Closed:
            pass  # Not yet.
        if not child and time.monotonic() >= grace and not _is_starting(lock):
            _raise_recent_failure(lock, since)
            last_words.clear(place.run_dir)
            child = _start(place, waiter, lock)
        ended = child and os.waitpid(child, os.WNOHANG)[0] == child
        if ended:
            try:
                return plugin_door.connect(place.run_dir, waiter)  # another one was faster
            except plugin_door.Closed:
                pass
            raise _failure(lock, f"the overlay daemon ended at its start: {_last_words(place)}")
        waiter.pause(_STEP)


def _systemd_starts_it(place: Location) -> bool:
    """Whether a unit is enabled for this run directory: it restarts, or was stopped, and systemd opens the door."""
    if not os.path.isdir(_SYSTEMD):
        return False
    try:
        with open(_UNIT, "rb") as file:
            return b"--run-dir " + os.fsencode(place.run_dir) + b" " in file.read()
    except OSError:
        return False


def _tell_systemd() -> None:
    """Have systemd start the unit, unless it is about to stop it: a daemon in its own cgroup outlives its runtime's.

    Nobody waits for the answer: if the door stays closed, the daemon is started from here.
    """
    words = ["systemctl", "--no-block", "--no-ask-password", "--job-mode=fail", "start", os.path.basename(_UNIT)]
    quiet = [(os.POSIX_SPAWN_OPEN, number, "/dev/null", os.O_RDWR, 0) for number in (0, 1, 2)]
    try:
        os.posix_spawn("/bin/systemctl", words, environment(), file_actions=quiet)
    except OSError:
        return  # It may be elsewhere, as on NixOS.


def _start(place: Location, waiter: plugin_door.Waiter, lock: int) -> int:
    try:
        child = spawn(program(place, waiter), place.run_dir)
    except OSError as error:
        raise _failure(lock, f"cannot start the overlay daemon: {error.filename or ''} {error.strerror}") from error
    _note(lock, f"started {child} {proc.alive_since(child)}")
    return child


def _failure(lock: int, text: str) -> plugin_door.Closed:
    _note(lock, f"failed {time.monotonic_ns()} {text}")
    return plugin_door.Closed(text)


def _note(lock: int, text: str) -> None:
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, os.fsencode(text), 0)
    except OSError:
        return  # A full disk costs the others a try of their own, no more.


def _noted(lock: int) -> list[str]:
    try:
        return os.pread(lock, 4096, 0).decode("utf-8", "replace").split(" ", 2)
    except OSError:
        return []  # No file: nothing was ever noted.


def _is_starting(lock: int) -> bool:
    """Whether a daemon that another plugin started is alive and has not opened its door yet."""
    words = _noted(lock)
    if len(words) != 3 or words[0] != "started" or not words[1].isdigit():
        return False
    since = proc.alive_since(int(words[1]))
    return since != 0 and str(since) == words[2]


def _raise_recent_failure(lock: int, since: int) -> None:
    words = _noted(lock)
    if len(words) == 3 and words[0] == "failed" and words[1].isdigit() and int(words[1]) > since:
        raise plugin_door.Closed(words[2])


def _last_words(place: Location) -> str:
    """Why the daemon ended, in its own words for people; never its log, which may quote anything."""
    said = last_words.read(place.run_dir) or "it gave no reason"
    return f"{said} (log: {os.path.join(place.run_dir, LOG_NAME)})"


def program(place: Location, waiter: plugin_door.Waiter) -> list[str]:
    """The command line of the daemon. Raises OSError when the single file cannot lay its program down."""
    options = ["overlayd", "--run-dir", place.run_dir, "--data-dir", place.data_dir]
    if not getattr(sys, "frozen", False):
        return [sys.executable, "-m", "cni", *options]
    from cni import unpack

    if unpack.is_single_file():
        return [unpack.extract([place.data_dir, place.run_dir], waiter), *options]
    return [sys.executable, *options]


def environment() -> dict[str, str]:
    """The daemon's environment: a fixed PATH, a locale, and hardly anything of this process's."""
    frozen = getattr(sys, "frozen", False)
    kept = _KEPT if frozen else _KEPT + _OF_SOURCE
    env = {name: os.environ[name] for name in kept if name in os.environ}
    env |= {"PATH": _SEARCH_PATH, "LANG": "C.UTF-8"}
    if not frozen:
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (root, env.get("PYTHONPATH"))))
    return env


def spawn(argv: list[str], run_dir: str) -> int:
    """Run `argv` as a daemon: own session, `/` as directory, no descriptor of ours, output to the log.

    Returns its process id. Raises OSError when it cannot be executed.
    """
    env = environment()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        number = errno.EIO
        try:
            _become_daemon(writer, os.path.join(run_dir, LOG_NAME))
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


def _become_daemon(report: int, log: str) -> None:
    """In the new process. Only standard descriptors and `report`, which becomes number 3, are left."""
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    if report != 3:
        os.dup2(report, 3, inheritable=False)
    null = os.open("/dev/null", os.O_RDWR)
    try:
        # Not to wait for a reader, should somebody have put a FIFO there.
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
                continue  # The listing's own descriptor.
