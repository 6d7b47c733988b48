"""`zlayer-cni doctor`: checks the node and names remedies. Exit code 0 if no check fails (warnings allowed), else 1.

It reads the machine itself, so it works without a daemon; if a daemon answers, its own status is added.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cni import __version__, answers, defaults, plugin_protocol, proc
from cni.cli import chain, conflist, doctor_daemon, doctor_kernel, runtimes, table, validate
from cni.cli import checks_install as installed
from cni.cli import checks_machine as checks
from cni.cli.checks_machine import Finding
from cni.cli.checks_port import wireguard_port
from cni.errors import CniError, FenceFailed
from cni.host import container, iptables, nft_forward, own_networks, probe, program, rights, services, sysctl
from cni.host.closed_port import of_peers
from cni.overlay import sockets as overlay_sockets

OWN_TABLE = "zlayer_cni"  # the nftables tables of the fence
PRIVATE = (plugin_protocol.SOCKET_NAME, "state.db", "overlayd.lock")
SUFFIXES = (".conf", ".conflist", ".json")  # what containerd and CRI-O load
HUES = {"ok": "green", "warn": "yellow", "fail": "red"}
MARKS = {"ok": "ok   ", "warn": "WARN ", "fail": "FAIL "}


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns 1 if one fails, else 0."""
    findings = list(examine(complete(options)))
    ok = all(finding.level != "fail" for finding in findings)
    if options.json:
        document = {"ok": ok, "version": __version__, "findings": [finding._asdict() for finding in findings]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write("".join(_line(finding) for finding in findings) + _sum(findings))
    return 0 if ok else 1


def complete(options: argparse.Namespace) -> argparse.Namespace:
    """The options with the directories of the runtime, where none is given."""
    runtime = runtimes.containerd() or runtimes.DEFAULT
    places = [*runtime.bin_dirs, defaults.BIN_DIR]
    there = [place for place in places if Path(place, installed.PLUGIN).exists()]
    options.bin_dir = options.bin_dir or (there or places)[0]
    options.conf_dir = options.conf_dir or runtime.conf_dir
    return options


def _sum(findings: list[Finding]) -> str:
    """The last line: how many findings of each level."""
    levels = Counter(finding.level for finding in findings)
    verdict = "not good" if levels["fail"] else "good"
    return f"\n{verdict}: {levels['fail']} failed, {levels['warn']} warnings, {levels['ok']} ok\n"


def _line(finding: Finding) -> str:
    fix = f"\n{'':24}-> {finding.fix}" if finding.fix else ""
    mark = table.paint(MARKS[finding.level], HUES[finding.level])
    return f"{mark} {finding.check:<17} {table.escape_control(finding.text)}{fix}\n"


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Every finding; a check comes after those of the things that it depends on."""
    status, error = doctor_daemon.status(options.run_dir)
    settings = _settings(options.data_dir)
    clusters = tuple(status.node.cluster_cidrs) if status else settings.clusters
    daemon = status.pid if status else None
    for look in (
        lambda: _privileges(daemon),
        lambda: _rights(options, daemon),
        _kernel,
        lambda: _firewalls(clusters),
        lambda: _wireguard_port(status),
        lambda: doctor_kernel.second_look(options.run_dir, status),
        lambda: _network(clusters, daemon is not None),
        lambda: _runtime(options.conf_dir, options.bin_dir),
        lambda: settings.complaints,
        lambda: _files(options),
        lambda: doctor_daemon.sockets(settings.socket, options.run_dir, daemon),
        lambda: installed.clock(time.time(), _newest_key(Path(options.data_dir)), _boot_id()),
        lambda: doctor_daemon.told(options, status, error),
    ):
        yield from _carefully(look)


def _wireguard_port(status: answers.Status | None) -> list[Finding]:
    """Whether peers can call this node, if it has a device."""
    if status is None or not status.wireguard.interface or not status.wireguard.port:
        return []
    port = status.wireguard.port
    return wireguard_port(port, probe.filter_rules(), probe.closed_inputs(of_peers(port).flow, OWN_TABLE))


def _carefully(look: Callable[[], list[Finding]]) -> list[Finding]:
    """Run checks; a reading that fails becomes a finding, and the other checks continue."""
    try:
        return look()
    except (OSError, CniError) as error:
        fix = "run it as root" if os.geteuid() else "see the message"
        return [Finding("doctor", "warn", f"something could not be read: {error}", fix)]


class Settings(NamedTuple):
    """The settings that the checks need: the overlay's ranges, the agents' socket, and findings about the YAML."""

    clusters: tuple[str, ...]
    socket: str
    complaints: list[Finding]


def _settings(data_dir: str) -> Settings:
    """The settings that a daemon on the data directory would use; the defaults if it would refuse to start."""
    from cni.daemon import settings, settings_reader

    effective, complaints = settings.Settings(), []
    try:
        effective = settings_reader.find(None, data_dir)
    except CniError as error:
        complaints = [Finding("settings", "fail", error.msg, "`zlayer-cni validate FILE` tells more")]
    socket = effective.overlay_socket
    if socket is None and data_dir == defaults.DATA_DIR:
        socket = overlay_sockets.DEFAULT_SOCKET
    elif socket is None:
        socket = overlay_sockets.socket_path(data_dir, os.geteuid(), os.environ.get("HOME"))
    return Settings(effective.cidrs, socket, complaints)


# --- the machine ----------------------------------------------------------------------------------------------------


def _privileges(daemon: int | None) -> list[Finding]:
    contained = daemon is not None and bool(container.of(daemon))
    here = contained or bool(container.own())
    findings = [checks.privileges("this process", *probe.capabilities(), contained=here)]
    if daemon is not None:
        who = f"the daemon (process {daemon})"
        findings.append(checks.privileges(who, *probe.capabilities(daemon), contained=contained))
    return findings


def _rights(options: argparse.Namespace, daemon: int | None) -> list[Finding]:
    """What the container of this process lacks, where no daemon answers: a daemon tells of its own as a problem."""
    if daemon is not None:
        return []
    lacking = rights.missing_here((options.run_dir, options.data_dir), engine=False)
    return [
        Finding("rights", "fail", text, "add it to the container (docs/kubernetes.md)") for text in lacking.values()
    ]


def _kernel() -> list[Finding]:
    """The kernel features of the data path, each tried in a new namespace."""
    texts = {name: text for name, (text, *_) in (*checks.NFTABLES.items(), *checks.OPTIONAL.items())}
    tried = probe.try_kernel([*checks.LINKS, "wireguard"], texts)
    if not tried:
        return [Finding("kernel", "warn", "the kernel could not be tried", "run it as root")]
    return [*checks.kernel(tried), *checks.wireguard(tried["wireguard"], probe.engines())]


def _firewalls(clusters: tuple[str, ...]) -> list[Finding]:
    findings = []
    try:
        denies = iptables.forward_denies(clusters)
        findings.append(checks.forward_policy(denies, denies and iptables.forward_in_place(clusters)))
        findings += checks.conditional_drops(iptables.forward_drops(clusters))
    except FenceFailed as error:
        findings.append(checks.forward_policy(False, False, f"{error.msg}: {error.details}"))
    findings.append(checks.input_policy(probe.input_rules()))
    listing = probe.base_chains()
    chains = [item["chain"] for item in listing["nftables"] if "chain" in item]
    dropping = probe.obstacles(clusters, OWN_TABLE)
    findings += checks.foreign_chains(dropping, nft_forward.dropping_own(listing))
    findings += checks.same_bridge_services(services.unanswered_now(_versions(clusters)))
    return findings + checks.recognised({(chain["family"], chain["table"], chain["name"]) for chain in chains})


def _network(clusters: tuple[str, ...], daemon: bool) -> list[Finding]:
    keys = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
    versions = _versions(clusters)
    routes = probe.routes()
    uplinks = sorted({device for destination, device in routes if destination == "0.0.0.0/0" and device})
    return [
        *checks.forwarding(
            {version: sysctl.read(keys[version]) == "1" for version in versions}, probe.not_forwarding(), daemon
        ),
        checks.rp_filter(probe.rp_filters([*uplinks, *probe.tunnels()])),
        *checks.overlaps(clusters, _overlaps(clusters)),
    ]


def _versions(clusters: tuple[str, ...]) -> list[int]:
    return sorted({6 if ":" in cluster else 4 for cluster in clusters})


def _overlaps(clusters: tuple[str, ...]) -> list[str]:
    from cni.daemon.model import overlap

    host = own_networks.read()
    networks = overlap.host_networks(host, overlap.of_ours(host.addresses, (), marked=True, by_shape=clusters))
    return [str(overlap_text) for overlap_text in (*overlap.reserved(clusters), *overlap.overlaps(clusters, networks))]


# --- what is installed ------------------------------------------------------------------------------------------------


def _runtime(conf_dir: str, bin_dir: str) -> list[Finding]:
    sockets = {path: Path(path).is_socket() for paths in installed.RUNTIMES.values() for path in paths}
    first = _first_list(conf_dir, bin_dir)
    missing = [name for name in first.types if not Path(bin_dir, name).exists()] if first else []
    path = Path(bin_dir, installed.PLUGIN)
    elsewhere = runtimes.complaints(runtimes.containerd(), bin_dir, conf_dir)
    return [
        installed.runtimes(sockets),
        *[
            Finding("runtime", "warn", text, "`zlayer-cni install` with that option, or that setting")
            for text in elsewhere
        ],
        installed.conflist(conf_dir, first),
        installed.plugin(str(path), _version_of(path), __version__),
        *installed.chained(
            first.types if first else (), [name for name in missing if name != installed.PLUGIN], bin_dir
        ),
    ]


def _first_list(conf_dir: str, bin_dir: str) -> installed.Conflist | None:
    """The network list that a runtime uses: the first by name with a suffix that it loads."""
    try:
        names = sorted(path for path in Path(conf_dir).iterdir() if path.suffix in SUFFIXES)
    except OSError:
        return None
    if not names:
        return None
    path = str(names[0])
    try:
        data = names[0].read_bytes()
    except OSError as error:
        return installed.Conflist(path, (), broken=error.strerror or str(error), ours=installed.PLUGIN in path)
    errors = tuple(validate.examine(path, data).errors)
    try:
        document = json.loads(data)
        types = tuple(str(entry.get("type", "")) for entry in document.get("plugins", [document]))
    except (ValueError, TypeError, AttributeError) as error:
        ours = installed.PLUGIN.encode() in data or path.endswith(conflist.FILE)
        return installed.Conflist(path, (), broken=(*errors, str(error))[0], ours=ours)
    present = {kind: versions for kind, versions in chain.versions_of(bin_dir, types).items() if versions}
    version = str(document.get("cniVersion", ""))
    return installed.Conflist(path, types, (*errors, *chain.version_faults(types, version, present, bin_dir)))


def _version_of(plugin: Path) -> str | None:
    """The first line of the plugin's `--version`; None if it does not exist or does not run."""
    try:
        code, out, _ = program.run_once([str(plugin), "--version"], {"PATH": os.environ.get("PATH", "")}, b"")
    except OSError:
        return None
    return out.decode(errors="replace").partition("\n")[0] if code == 0 else ""


def _files(options: argparse.Namespace) -> list[Finding]:
    run_dir, data_dir = Path(options.run_dir), Path(options.data_dir)
    watched = [run_dir, *(run_dir / name for name in PRIVATE), data_dir, *_keys(data_dir)]
    plugin = Path(options.bin_dir, installed.PLUGIN)
    return [
        *installed.permissions([_file(path) for path in watched if path.exists()]),
        *installed.disk([_disk(path) for path in (run_dir, data_dir)], unpacks=not plugin.is_symlink()),
    ]


def _keys(data_dir: Path) -> list[Path]:
    """The secret files in the data directory, and those that only the daemon uses."""
    with contextlib.suppress(OSError):
        return [path for path in data_dir.iterdir() if path.suffix in (".key", ".json") and path.is_file()]
    return []


def _newest_key(data_dir: Path) -> installed.File | None:
    return max((_file(path) for path in _keys(data_dir)), key=lambda file: file.mtime, default=None)


def _boot_id() -> str:
    with contextlib.suppress(OSError):
        return proc.boot_id()
    return ""


def _file(path: Path) -> installed.File:
    status = path.stat()
    return installed.File(str(path), status.st_mode, status.st_uid, status.st_mtime)


def _disk(path: Path) -> installed.Disk:
    """The file system of a directory, or of its first existing parent."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    filesystem = os.statvfs(existing)
    return installed.Disk(
        str(path),
        free=filesystem.f_bavail * filesystem.f_frsize,
        inodes=filesystem.f_favail if filesystem.f_files else None,
        read_only=bool(filesystem.f_flag & os.ST_RDONLY),
        noexec=bool(filesystem.f_flag & os.ST_NOEXEC) and path == existing,
    )
