"""The doctor's checks of what is installed and running: runtime, network list, plugin, files, daemons. Pure."""

from __future__ import annotations

import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cni import defaults
from cni.cli.checks_machine import Finding, Level

RUNTIMES = {
    "containerd": ("/run/containerd/containerd.sock", "/run/k3s/containerd/containerd.sock"),
    "CRI-O": ("/run/crio/crio.sock",),
    "podman": ("/run/podman/podman.sock",),
}
RUNTIME_UNITS = ("containerd", "crio", "docker", "podman", "kubelet", "k3s", "k3s-agent", "rke2-server", "rke2-agent")
PLUGIN = "zlayer-cni"
LITTLE, TIGHT = 1 << 20, 64 << 20  # free bytes: below the first the check fails, below the second it warns
ERA = 1_735_689_600  # 2025-01-01 in Unix seconds: an earlier clock was never set
SKEW = 120.0  # seconds that the time of a file may be ahead of the clock
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class File:
    """A file or directory: mode as in stat(2), owner, and last change in Unix seconds."""

    path: str
    mode: int
    uid: int
    mtime: float = 0.0


@dataclass(frozen=True, slots=True)
class Disk:
    """The file system of a directory: free bytes, free inodes (None: the file system has no limit), flags."""

    path: str
    free: int
    inodes: int | None
    read_only: bool
    noexec: bool


@dataclass(frozen=True, slots=True)
class Daemon:
    """A process that is an overlay daemon, ours or ZLayer's, in this network namespace."""

    pid: int
    command: str


def runtimes(sockets: Mapping[str, bool]) -> Finding:
    """Which container runtimes listen; `sockets` tells for each path whether it is a socket."""
    there = [name for name, paths in RUNTIMES.items() if any(sockets.get(path) for path in paths)]
    if there:
        return Finding("runtime", "ok", f"{' and '.join(there)} listens")
    paths = ", ".join(path for all_of in RUNTIMES.values() for path in all_of)
    return Finding("runtime", "warn", f"no runtime's socket is at {paths}", "start the runtime, if this node has one")


@dataclass(frozen=True, slots=True)
class Conflist:
    """The first network list of the runtime's directory: its plugins, and the errors that `validate` finds. `broken`:
    why it cannot be read at all; then `ours` tells whether it seems to be a list of this plugin."""

    path: str
    types: tuple[str, ...]
    errors: tuple[str, ...] = ()
    broken: str = ""
    ours: bool = False


def conflist(directory: str, first: Conflist | None) -> Finding:
    """Whether the list that a runtime uses (the first by name) names our plugin, and is valid."""
    if first is None:
        return Finding("conflist", "fail", f"there is no network list in {directory}", "run `zlayer-cni install`")
    if first.broken:
        repair = f"repair it (`zlayer-cni validate {first.path}`)"
        fix = f"{repair}, or `zlayer-cni install --force` writes it anew" if first.ours else f"{repair}, or remove it"
        whose = ", seems to be ours," if first.ours else ""
        return Finding("conflist", "fail", f"{first.path} comes first{whose} and cannot be used: {first.broken}", fix)
    if PLUGIN not in first.types:
        fix = f"remove it, or give ours a name before it: a runtime takes the first by name (in {directory})"
        return Finding("conflist", "fail", f"{first.path} comes first, and does not name {PLUGIN}", fix)
    if first.errors:
        return Finding("conflist", "fail", f"{first.path}: {first.errors[0]}", f"zlayer-cni validate {first.path}")
    return Finding("conflist", "ok", f"{first.path} comes first, is ours and is good")


def plugin(path: str, output: str | None, version: str) -> Finding:
    """The plugin in the runtime's directory: `output` is what its `--version` prints, None if it does not exist."""
    if output is None:
        directory = path.rpartition("/")[0]
        at = "" if directory == defaults.BIN_DIR else f" --bin-dir {directory}"
        return Finding("plugin", "fail", f"{path} is not there, or does not run", f"run `zlayer-cni install{at}`")
    if output != f"{PLUGIN} {version}":
        fix = "run `zlayer-cni install` with the version you want; running containers stay connected"
        return Finding("plugin", "warn", f"{path} is {output or 'something else'}, this is {PLUGIN} {version}", fix)
    return Finding("plugin", "ok", f"{path} is version {version}")


def chained(types: Sequence[str], missing: Sequence[str], bin_dir: str) -> list[Finding]:
    """The plugins that the network list chains after ours."""
    findings = [
        Finding(
            "plugin",
            "fail",
            f"the network list names {name}, and there is no {bin_dir}/{name}: every ADD fails",
            "install the CNI reference plugins (Debian: containernetworking-plugins), or take it out of the list",
        )
        for name in missing
    ]
    if PLUGIN in types and "portmap" not in types:
        fix = 'add {"type": "portmap", "capabilities": {"portMappings": true}} to the list, if containers publish ports'
        findings.append(
            Finding("plugin", "warn", "the network list does not chain portmap: host ports do nothing", fix)
        )
    return findings


# --- files ----------------------------------------------------------------------------------------------------------


def permissions(files: Sequence[File]) -> list[Finding]:
    """The run and data directories and their files: they belong to root, and other users can neither write nor (files)
    read them."""
    findings = []
    for file in files:
        mode = stat.S_IMODE(file.mode)
        private = not stat.S_ISDIR(file.mode) and mode & 0o077
        if file.uid != 0:
            fix = f"chown root {file.path}"
            findings.append(Finding("permissions", "fail", f"{file.path} belongs to user {file.uid}, not to root", fix))
        elif private or mode & 0o022:
            bits = "go-rwx" if private else "go-w"
            text = f"{file.path} has mode {mode:04o}: others may {'use' if private else 'write'} it"
            findings.append(Finding("permissions", "fail", text, f"chmod {bits} {file.path}"))
    return findings or [Finding("permissions", "ok", "directories, sockets and keys are root's alone")]


def disk(disks: Sequence[Disk], unpacks: bool) -> list[Finding]:
    """Free disk space. `unpacks`: whether the plugin is the single file, which extracts into the data directory."""
    findings = []
    for disk in disks:
        if disk.read_only:
            fix = "mount it writable, or name another directory in the YAML"
            findings.append(Finding("disk", "fail", f"{disk.path} is on a read-only file system", fix))
        elif disk.free < LITTLE or disk.inodes == 0:
            text = f"{disk.path} is full: {disk.free >> 10} KiB" + (", no inode" if disk.inodes == 0 else "") + " left"
            findings.append(Finding("disk", "fail", text, "make room: an ADD fails with code 5 while it is full"))
        elif disk.free < TIGHT:
            findings.append(Finding("disk", "warn", f"{disk.path} has {disk.free >> 20} MiB left", "make room"))
        if disk.noexec and unpacks:
            fix = "run `zlayer-cni install` (it puts the program elsewhere), or name another dataDir"
            text = f"{disk.path} is mounted noexec: the single file cannot unpack its daemon there"
            findings.append(Finding("disk", "fail", text, fix))
    return findings or [Finding("disk", "ok", "there is room in the run and data directories")]


# --- what runs ------------------------------------------------------------------------------------------------------


def daemons(seen: Sequence[Daemon]) -> Finding:
    """Whether only one overlay daemon works in the network namespace; two revert each other's changes."""
    if len(seen) > 1:
        who = "; ".join(f"process {daemon.pid}: {daemon.command}" for daemon in seen)
        fix = "end all but one: neither clears up strays while the other is there, and both write the same tables"
        return Finding("daemons", "warn", f"{len(seen)} overlay daemons work in this network namespace: {who}", fix)
    return Finding("daemons", "ok", "no second overlay daemon works in this network namespace")


def overlay_socket(path: str, holder: int | None, daemon: int | None, silent: int | None = None) -> list[Finding]:
    """The processes that listen on the agents' socket, as PIDs; None for no process. `silent`: our daemon that does not
    answer."""
    if daemon is None:
        if holder in (None, silent):
            return []
        return [Finding("agents' socket", "warn", f"process {holder}, and no daemon of ours, listens on {path}", "")]
    if holder == daemon:
        return [Finding("agents' socket", "ok", f"the daemon listens on {path}")]
    fix = "end that process and `zlayer-cni restart`, or give ours another overlay_socket"
    if holder is None:
        text, fix = (
            f"no process listens on {path}: agents cannot reach the daemon",
            "see the daemon's log; `zlayer-cni restart`",
        )
    else:
        text = f"process {holder}, not our daemon, listens on {path}: agents talk to that one"
    return [Finding("agents' socket", "warn", text, fix)]


def clock(now: float, newest: File | None, boot_id: str) -> list[Finding]:
    """Wall clock (Unix seconds) and boot id: records are valid for one boot, handshakes and leases use the clock."""
    findings = []
    if not _UUID.fullmatch(boot_id):
        fix = "mount /proc: without a boot id, records cannot be told from those of an earlier boot"
        findings.append(Finding("clock", "fail", f"the kernel's boot id is unreadable ({boot_id!r})", fix))
    if now < ERA:
        fix = "set the clock (chrony, systemd-timesyncd): peers refuse handshakes older than the last they saw"
        findings.append(Finding("clock", "fail", "the clock says it is before 2025", fix))
    elif newest is not None and newest.mtime > now + SKEW:
        text = f"{newest.path} was written {newest.mtime - now:.0f} s in the future: the clock went back"
        fix = "set the clock: WireGuard peers refuse handshakes older than the last they saw"
        findings.append(Finding("clock", "warn", text, fix))
    return findings or [Finding("clock", "ok", "clock and boot id are sane")]


def cgroup(pid: int, lines: Sequence[str]) -> list[Finding]:
    """Whether the daemon is in a runtime's control group, by /proc/PID/cgroup (cgroups(7)): it may end with that."""
    for path in (line.split(":", 2)[2] for line in lines if line.count(":") >= 2):
        for name in path.split("/"):
            if name.removesuffix(".service") in RUNTIME_UNITS or name.startswith("kubepods"):
                fix = "`zlayer-cni install` gives it a unit of its own; what runs stays connected"
                text = f"the daemon (process {pid}) is in the control group of {name}: it may end with it"
                return [Finding("daemon", "warn", f"{text}, until the next call starts one", fix)]
    return []


def absent_daemon(state: str, text: str, fix: str, unreachable: str) -> Finding:
    """No daemon: fine if none is needed yet; without an installation that is another check's failure."""
    if state == "not started":
        return Finding("daemon", "ok", text)
    level: Level = "warn" if state == "not installed" else "fail"
    return Finding("daemon", level, f"{unreachable}; {text}", fix)


def silent_daemon(pid: int, stopped: bool) -> Finding:
    """A daemon that runs and does not answer. `stopped`: by a signal (SIGSTOP)."""
    text = f"process {pid} is the daemon of this run directory, and does not answer"
    if stopped:
        return Finding(
            "daemon", "fail", f"{text}: a signal has stopped it", f"kill -CONT {pid}, or `zlayer-cni restart`"
        )
    return Finding("daemon", "fail", text, "see its log, then `zlayer-cni restart`")


def daemon_status(
    problems: Sequence[str], version: str, ours: str, notes: Sequence[str] = (), *, failed: str = ""
) -> list[Finding]:
    """The daemon's own status. `failed`: why the last start of a daemon failed."""
    findings = [Finding("daemon", "fail", problem, "`zlayer-cni status`; docs/errors.md") for problem in problems]
    if failed:
        failure = f"a daemon that was to take this one's place could not start: {failed}"
        findings.append(Finding("daemon", "warn", failure, "repair that, and try again: this daemon keeps running"))
    if version != ours:
        fix = "`zlayer-cni restart`; running containers stay connected"
        findings.append(Finding("daemon", "warn", f"the daemon is version {version}, this is {ours}", fix))
    findings += [
        Finding("settings", "warn", note, "the values set last are in effect, until a reboot") for note in notes
    ]
    return findings or [Finding("daemon", "ok", f"version {version} answers and reports no problem")]
