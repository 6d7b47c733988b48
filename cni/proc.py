"""Processes as reported by /proc (proc_pid_stat(5)). Imports nothing, so every process of the product can use it.

A PID together with the start time, in clock ticks since the boot, identifies a process uniquely. A zombie has ended: it
runs nothing and holds no resources, so it is not alive. Until its parent has reaped it, its PID and its start time stay
in use and its exit status can be read. `start_time` and `is_same` include zombies, `alive_since` does not.
"""

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ENDED = (b"Z", b"X")
_STOPPED = (b"T", b"t")
_START_TIME, _EXIT_CODE = 22, 52  # field numbers; the split in Stat begins with field 3


class Stat:
    """One reading of /proc/PID/stat. `exit_code` is a wait status (wait(2)), valid only after the process has ended."""

    __slots__ = ("ended", "exit_code", "is_zombie", "start_time")

    def __init__(self, line: bytes) -> None:
        # The command's name is in brackets and may itself contain brackets and spaces.
        fields = line.rpartition(b")")[2].split()
        self.is_zombie = fields[0] == b"Z"
        self.ended = fields[0] in _ENDED
        self.start_time = int(fields[_START_TIME - 3])
        self.exit_code = int(fields[_EXIT_CODE - 3])


def stat(pid: int) -> Stat:
    """The state of the process now, a zombie included. Raises OSError if there is no such process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return Stat(file.read())


def start_time(pid: int) -> int:
    """The start time of the process. Raises OSError if there is no such process."""
    return stat(pid).start_time


def is_same(pid: int, started: int) -> bool:
    """Whether the PID still belongs to the process that began at `started`, alive or a zombie."""
    try:
        return start_time(pid) == started
    except OSError:
        return False


def alive_since(pid: int) -> int:
    """The start time of the process; 0 if there is no such process, or it has ended."""
    try:
        status = stat(pid)
    except OSError:
        return 0
    return 0 if status.ended else status.start_time


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process (SIGSTOP), or a debugger holds it. False if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in _STOPPED
    except OSError:
        return False


def command(pid: int) -> list[bytes]:
    """The arguments of the process; empty for a zombie and for a kernel thread. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        line = file.read().rstrip(b"\0")  # a process that rewrote its arguments may have left no NUL at the end
    return line.split(b"\0") if line else []


def boot_id() -> str:
    """The kernel's random id of this boot. Raises OSError."""
    with open(BOOT_ID, "rb") as file:
        return file.read().strip().decode()
