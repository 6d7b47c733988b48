"""The first process of a scratch machine: makes its directories and networks, says "ready", and waits.

Run by machine.py as `unshare --net --mount --pid --fork python scratch_init.py PLUGIN`. It ends when standard input
ends, and with it, by the kernel's rule for the first process of a PID namespace, every process of the machine. So a
test run that is killed leaves no process, mount or network namespace behind: the pipe closes with it.

What the machine has of its own: every directory that a runtime or a plugin writes to (/run, /tmp, /var/lib,
/var/log, /dev/shm, /etc), all on tmpfs; /proc; a network with `uplink` to the namespace `zlt-outside`. Its /etc is a
copy of the host's, but for the networks in /etc/cni.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

REFERENCE = Path("/usr/lib/cni")
CNI_DIRS = (REFERENCE, Path("/opt/cni/bin"))
LOOK = Path("/run/zlt")
ROOT = Path(__file__).resolve().parents[2]


def run(*argv: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)


def private_directories(plugin: Path) -> None:
    """Cover what runtimes write to. `plugin` stays reachable, also when it lies below a covered directory."""
    keep = os.open(plugin.parent, os.O_PATH | os.O_DIRECTORY)
    clone = os.open(ROOT, os.O_PATH | os.O_DIRECTORY)
    run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for name in ("plugin", "reference", "cgroup", "etc"):
        (LOOK / name).mkdir(parents=True)
    run("mount", "--rbind", "/sys/fs/cgroup", str(LOOK / "cgroup"))
    run("mount", "-t", "proc", "proc", "/proc")
    run("mount", "-t", "sysfs", "sysfs", "/sys")  # a sysfs shows the network namespace it was mounted in
    run("mount", "--rbind", str(LOOK / "cgroup"), "/sys/fs/cgroup")
    run("mount", "--bind", f"/proc/{os.getpid()}/fd/{keep}", str(LOOK / "plugin"))
    run("cp", "-a", "/etc/.", str(LOOK / "etc"))
    shutil.rmtree(LOOK / "etc" / "cni", ignore_errors=True)
    run("mount", "--bind", str(LOOK / "etc"), "/etc")
    for covered, mode in (("/tmp", "1777"), ("/dev/shm", "1777"), ("/var/lib", "755"), ("/var/log", "755")):
        run("mount", "-t", "tmpfs", "-o", f"mode={mode}", "tmpfs", covered)
    if not (ROOT / "tests").exists():
        ROOT.mkdir(parents=True)
        run("mount", "--no-canonicalize", "--bind", f"/proc/{os.getpid()}/fd/{clone}", str(ROOT))
    os.close(keep)
    os.close(clone)
    plugin_directories(plugin.name)


def plugin_directories(name: str) -> None:
    """Both directories where Debian's containerd looks for plugins hold the reference plugins and ours.

    A reference plugin that lies beside the plugin under test goes before Debian's: it may speak newer versions.
    """
    if REFERENCE.is_dir():
        run("mount", "--bind", str(REFERENCE), str(LOOK / "reference"))
    for directory in (LOOK / "bin", *filter(Path.is_dir, CNI_DIRS)):
        directory.mkdir(exist_ok=True)
        if directory != LOOK / "bin":
            run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", str(directory))
        for reference in (LOOK / "reference").iterdir():
            beside = LOOK / "plugin" / reference.name
            (directory / reference.name).symlink_to(beside if beside.is_file() else reference)
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(LOOK / "plugin" / name)


def networks() -> None:
    """The machine's `uplink` and, across it, the namespace that lies outside every overlay.

    The documentation ranges (RFC 5737): no overlay may hold them. `zlt-outside` has no route back, so that an
    answer proves that the address was translated on the way out.
    """
    run("ip", "link", "set", "lo", "up")
    run("ip", "netns", "add", "zlt-outside")
    run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", "zlt-outside")
    run("ip", "address", "add", "192.0.2.1/24", "dev", "uplink")
    run("ip", "link", "set", "uplink", "up")
    run("ip", "route", "add", "default", "via", "192.0.2.2")
    for words in (
        "link set lo up",
        "address add 192.0.2.2/24 dev eth0",
        "link set eth0 up",
        "address add 198.51.100.7/32 dev lo",
    ):
        run("ip", "-n", "zlt-outside", *words.split())


def main() -> None:
    """Make the machine, say its process number as the outside counts it, and wait for the end of input."""
    number = Path("/proc/self").readlink()  # the old /proc still counts from outside
    private_directories(Path(sys.argv[1]))
    networks()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans come here: the kernel buries them itself
    sys.stdout.write(f"ready {number}\n")
    sys.stdout.flush()
    while os.read(0, 4096):
        pass


if __name__ == "__main__":
    main()
