"""Processes as /proc tells of them (proc_pid_stat(5)). Imports nothing, so every process of the product can use it.

A process is named for ever by its number together with its start time, in clock ticks since the boot. A zombie has
ended: nothing of it runs or holds anything, so it is not alive; but its number and its start time stay its own, and its
exit status can be read, until its parent has asked. `start_time` and `is_same` speak of it, `alive_since` does not.
"""

BOOT_ID = "/proc/sys/kernel/random/boot_id"
_ENDED = (b"Z", b"X")
_START_TIME, _EXIT_CODE = 22, 52  # numbers of fields; the first two stand before the rest here


class Stat:
    """One reading of /proc/PID/stat. `exit_code` is a wait status (wait(2)), and means something once it has ended."""

    __slots__ = ("ended", "exit_code", "is_zombie", "start_time")

    def __init__(self, line: bytes) -> None:
        # The command's name is in brackets and may hold anything, brackets and spaces included.
        fields = line.rpartition(b")")[2].split()
        self.is_zombie = fields[0] == b"Z"
        self.ended = fields[0] in _ENDED
        self.start_time = int(fields[_START_TIME - 3])
        self.exit_code = int(fields[_EXIT_CODE - 3])


def stat(pid: int) -> Stat:
    """What is said of the process now, a zombie included. Raises OSError if there is none."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return Stat(file.read())


def start_time(pid: int) -> int:
    """When the process began. Raises OSError if there is none."""
    return stat(pid).start_time


def is_same(pid: int, started: int) -> bool:
    """Whether the number is still that very process's, alive or a zombie."""
    try:
        return start_time(pid) == started
    except OSError:
        return False


def alive_since(pid: int) -> int:
    """When the process began; 0 if there is none, or it has ended."""
    try:
        found = stat(pid)
    except OSError:
        return 0
    return 0 if found.ended else found.start_time


def command(pid: int) -> list[bytes]:
    """The words of its command line; none for a zombie and for a thread of the kernel. Raises OSError."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        line = file.read().rstrip(b"\0")  # a process that rewrote it may have left no NUL at the end
    return line.split(b"\0") if line else []


def boot_id() -> str:
    """What names this start of the machine. Raises OSError."""
    with open(BOOT_ID, "rb") as file:
        return file.read().strip().decode()
