"""The single file carries the whole program, and extracts it the first time that the daemon or the tool is started.

The bootloader copies every native library of the single file out before Python starts, which slows down every plugin
call; a `PKG` member of the archive costs nothing. So the single file's own libraries are only those of the plugin, and
the complete program is one member, `program-VERSION-HASH.tar.gz`. It is extracted to
`<data directory>/program/VERSION-HASH/`: synced, then renamed, so that a directory of that name is always complete.
"""

import os
import sys

from cni import files, lock_files
from cni.plugin import client

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from io import BufferedReader

_COOKIE_MAGIC = b"MEI\014\013\012\013\016"
_COOKIE_SIZE = 88
_PREFIX, _SUFFIX = "program-", ".tar.gz"
_ST_NOEXEC = 8
_PATIENCE = 60.0  # seconds that the tool waits for another process that extracts the same program
_OF_THE_START = ("_PYI_", "_MEI", "PYINSTALLER_", "LD_LIBRARY_PATH")
NAME = "zlayer-cni"


def is_single_file() -> bool:
    """Whether this process was started from the single file (not from the unpacked form, and not from source)."""
    return bool(client.extraction_directory())


def exec_program(argv: list[str]) -> int:
    """Replace this process by the unpacked program with the same arguments; returns an exit code only on failure."""
    location = client.Location()
    data_dir = _option(argv, "--data-dir") or location.data_dir
    run_dir = _option(argv, "--run-dir") or location.run_dir
    try:
        program = extract([data_dir, run_dir, *_personal()])
        _replace(program, argv, {})
    except (OSError, client.OutOfTime) as error:
        os.write(2, f"zlayer-cni: cannot unpack the program: {error}\n".encode())
    return 1


def exec_plugin(stdin: bytes, data_dir: str, run_dir: str, waiter: client.Waiter) -> None:
    """Replace this process by the unpacked program, which serves the same call and reads `stdin` again.

    Raises OSError if the program cannot be extracted or executed.
    """
    program = extract([data_dir, run_dir], waiter)
    again = os.memfd_create("stdin", 0)
    with open(again, "wb", closefd=False) as file:
        file.write(stdin)
    os.lseek(again, 0, os.SEEK_SET)
    os.dup2(again, 0)
    _replace(program, [], {os.fsdecode(client.PARENT_VARIABLE): str(os.getppid())})


def _replace(program: str, argv: list[str], variables: dict[str, str]) -> None:
    # A daemon may run for months and needs no file that the bootloader unpacked. The directory itself stays, because
    # the bootloader warns if it is missing. After this line no module can be imported.
    client.remove_tree(client.extraction_directory(), itself=False)
    forget_start()
    os.execve(program, [program, *argv], {**os.environ, **variables})


def forget_start() -> None:
    """Remove PyInstaller's variables from the environment, and restore the original LD_LIBRARY_PATH.

    Otherwise every process that this program starts would load our libraries instead of its own.
    """
    original = os.environ.get("LD_LIBRARY_PATH_ORIG")
    for name in list(os.environ):
        if name.startswith(_OF_THE_START):
            del os.environ[name]
    if original:
        os.environ["LD_LIBRARY_PATH"] = original


def extract(directories: "Sequence[str]", waiter: client.Waiter | None = None) -> str:
    """Extract the program into the first of `places` that can hold and execute it; returns the path of the program.

    Safe to call from many processes at once. Raises OSError if no directory can, and what `waiter` raises if another
    process extracts the program for longer than this call may wait.
    """
    member, offset, size = _find_member()
    name = member[len(_PREFIX) : -len(_SUFFIX)]
    problem = OSError(f"none of {', '.join(directories)} can hold the unpacked program")
    for directory in directories:
        home = os.path.join(directory, "program")
        program = os.path.join(home, name, NAME)
        try:
            if not _is_ours(program):
                os.makedirs(home, 0o755, exist_ok=True)
                if os.statvfs(home).f_flag & _ST_NOEXEC:
                    raise OSError(f"{home} is mounted noexec")
                _unpack(home, name, offset, size, waiter or client.Waiter(_PATIENCE))
        except OSError as error:
            problem = error
            continue
        return program
    raise problem


def _is_ours(program: str) -> bool:
    """Whether the program exists, can be executed, and belongs to root or to this user."""
    try:
        return os.stat(program).st_uid in (0, os.geteuid()) and os.access(program, os.X_OK)
    except OSError:
        return False


def _unpack(home: str, name: str, offset: int, size: int, waiter: client.Waiter) -> None:
    import tarfile

    lock = lock_files.opened(os.path.join(home, ".lock"))
    try:
        while not lock_files.take(lock):
            waiter.pause(0.01)
        target = os.path.join(home, name)
        if os.path.isdir(target):
            return  # Another process has extracted it.
        for leftover in os.listdir(home):
            if leftover.startswith(".new-"):
                client.remove_tree(os.path.join(home, leftover))  # Its writer ended: this process has the lock.
        fresh = os.path.join(home, f".new-{name}")
        try:
            with open(sys.executable, "rb") as file:
                file.seek(offset)
                part = _Part(file, size)
                with tarfile.open(fileobj=part, mode="r|gz") as tar:  # type: ignore[call-overload]
                    tar.extractall(fresh)
            files.sync_tree(fresh)
            os.rename(fresh, target)
            files.sync(home)
        except BaseException:
            client.remove_tree(fresh)
            raise
    finally:
        os.close(lock)


class _Part:
    """The next `size` bytes of a file, readable as a file."""

    def __init__(self, file: "BufferedReader", size: int) -> None:
        self._file = file
        self._left = size

    def read(self, size: int = -1) -> bytes:
        part = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(part)
        return part


def _find_member() -> tuple[str, int, int]:
    """(name, offset in the file, size) of the program in PyInstaller's archive at the end of the executable; offset and
    size in bytes.

    The format is PyInstaller's CArchive: a table of contents and a cookie after the members. Raises OSError.
    """
    with open(sys.executable, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 65536))
        tail = file.read()
        at = tail.rfind(_COOKIE_MAGIC)
        if at < 0:
            raise OSError(f"{sys.executable} carries no archive")
        number = [int.from_bytes(tail[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in range(3)]
        start = end - len(tail) + at + _COOKIE_SIZE - number[0]
        file.seek(start + number[1])
        table = file.read(number[2])
    while table:
        length, offset, size = (int.from_bytes(table[4 * i : 4 * i + 4], "big") for i in range(3))
        name = table[18:length].rstrip(b"\0").decode()
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            return name, start + offset, size
        table = table[length:]
    raise OSError(f"{sys.executable} carries no program")


def _option(argv: list[str], name: str) -> str:
    """The value of `--name VALUE` or `--name=VALUE`; empty if the option is missing or not an absolute path."""
    for index, word in enumerate(argv):
        value = word[len(name) + 1 :] if word.startswith(f"{name}=") else ""
        if word == name and index + 1 < len(argv):
            value = argv[index + 1]
        if value.startswith("/"):
            return value
    return ""


def _personal() -> list[str]:
    """The directory into which a user other than root may extract the program; empty if there is none."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.environ.get("HOME", ""), ".cache")
    return [os.path.join(cache, NAME)] if cache.startswith("/") else []
