"""Installs the program, the daemon's systemd unit and the network list, in that order.

The network list is written last and atomically, because a runtime uses it as soon as it exists. The program goes into a
directory of its own version, and the plugin in the runtime's directory becomes a link to it, replaced by rename: an
upgrade does not disturb running calls. The previous version stays; older ones are removed, unless a process runs them.
Safe to repeat and to interrupt.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
from ipaddress import ip_network
from pathlib import Path

from cni import __version__, answers, defaults
from cni.cli import ask, conflist, files, record, resources, runtimes, upkeep, versions
from cni.cli.record import Record
from cni.cli.upkeep import UNIT, UNIT_DIR, CommandFailed, say, under
from cni.daemon import settings_reader
from cni.daemon.model import overlap
from cni.daemon.settings import Settings
from cni.errors import CniError, InvalidConfig
from cni.host import own_networks, services

TOOL_DIR = "/usr/local/bin"
NAME = "zlayer-cni"
CONF_SUFFIXES = (".conf", ".conflist", ".json")  # what containerd and CRI-O load
BIN_DIRS = (defaults.BIN_DIR, "/usr/lib/cni", "/usr/libexec/cni")  # where runtimes have plugins


def run(options: argparse.Namespace) -> int:
    """Install; returns the exit code. Raises no error of an installation: prints it and returns 1."""
    try:
        source = resources.unpacked_program()
        if source is None:
            raise CommandFailed(
                "this runs from source: build it with scripts/build, then run `dist/zlayer-cni install`"
            )
        target = under(options.root, options.program_dir)
        before, given = record.load(target) or conflist.earlier(options), record.given(options)
        for words in record.as_before(options, before):
            say(f"as before {words}")
        options = record.completed(options, before)
        settings = settings_reader.find(None, options.data_dir) if options.root == "/" else None
        if settings is not None:
            _refuse_overlap(options.run_dir, settings)
        plan = conflist.plan(options, given, before)
        with versions.locked(target):
            home = target / f"{__version__}-{versions.digest(source)}"
            laid_down = versions.extract(source, home, lambda place: upkeep.prove(place / NAME))
            say(f"program   {home}{'' if laid_down else ' is there already'}")
            _put_in_place(options, home, plan, before)
            _sweep(options, home, source, before.links)
        if settings is not None and (fault := services.unanswered_now(_versions_of(settings))):
            say(f"warning   {fault}; `zlayer-cni doctor` has the commands")
    except (CommandFailed, versions.Busy, CniError, OSError) as error:
        say(f"zlayer-cni: install failed: {_why(error)}")
        return 1
    say("done; `zlayer-cni status` tells how the node is")
    return 0


def _versions_of(settings: Settings) -> list[int]:
    """The IP versions of the overlay."""
    return [ip_network(cidr).version for cidr in settings.cidrs]


def _refuse_overlap(run_dir: str, settings: Settings) -> None:
    """Raises InvalidConfig if a daemon with these settings would not go into service. Where one serves, whose ranges an
    agent may have set, it is an upgrade: that is told, and not refused."""
    serves = _serves(run_dir)
    ranges = serves or settings.cidrs
    host = own_networks.read()
    networks = overlap.host_networks(host, overlap.of_ours(host.addresses, (), marked=True, by_shape=ranges))
    seen = [*overlap.reserved(ranges), *overlap.overlaps(ranges, networks)]
    if seen and serves:
        say(f"warning   {overlap.told(seen)}")
    elif seen:
        raise InvalidConfig(f"cluster_cidr: {overlap.told(seen)}", "give the overlay another range in overlayd.yaml")


def _serves(run_dir: str) -> tuple[str, ...]:
    """The ranges of the daemon that serves; empty if none does."""
    try:
        status = ask.ask(run_dir, "status", answers.Status)
    except (ask.NoDaemon, ask.Refused):
        return ()
    return tuple(status.node.cluster_cidrs) if status.fence.in_force else ()


def _why(error: Exception) -> str:
    """The error on one line, with the remedy if it is known."""
    if isinstance(error, shutil.Error) and error.args and isinstance(error.args[0], list):
        _, target, reason = error.args[0][0]
        return str(reason) if str(target) in str(reason) else f"{target}: {reason}"
    if isinstance(error, CniError):
        return f"the daemon would not start: {error.msg}{': ' + error.details if error.details else ''}"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM) and os.geteuid():
        return f"{error} (this needs root)"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error}; --program-dir, --bin-dir and --conf-dir name other places"
    return str(error)


def _put_in_place(options: argparse.Namespace, home: Path, plan: conflist.Plan, before: Record) -> None:
    """Install the links, the service, and last the network list."""
    seen = Path("/") / home.relative_to(options.root) / NAME  # as programs see it when `--root` is their root directory
    plugin = under(options.root, options.bin_dir) / NAME
    files.link(plugin, seen)
    files.link(under(options.root, TOOL_DIR) / NAME, seen)
    say(f"plugin    {plugin} -> {home / NAME}")
    _renew_others(options, seen, before)
    upkeep.renew(options, home / NAME, seen)
    _remember(options, plan, before)
    _conflist(plan, options)
    for complaint in runtimes.complaints(runtimes.containerd(options.root), options.bin_dir, options.conf_dir):
        say(f"warning   {complaint}")


def _renew_others(options: argparse.Namespace, seen: Path, before: Record) -> None:
    """Bring the plugin in other directories to this version: links of earlier installations. A file that is no such
    link is reported."""
    containerd = runtimes.containerd(options.root)
    directories = dict.fromkeys((*before.links, *BIN_DIRS, *(containerd.bin_dirs if containerd else ())))
    done = {under(options.root, options.bin_dir).resolve()}
    for directory in directories:
        place = under(options.root, directory)
        plugin = place / NAME
        if place.resolve() in done:
            continue
        done.add(place.resolve())
        if plugin.is_symlink() and plugin.readlink().is_relative_to(seen.parents[1]):
            files.link(plugin, seen)
            say(f"plugin    {plugin} too")
        elif plugin.is_symlink() or plugin.exists():
            say(f"warning   {plugin} is not a link of `install`, and stays as it is: --bin-dir {directory} replaces it")


def _sweep(options: argparse.Namespace, home: Path, source: Path, links: tuple[str, ...]) -> None:
    """Remove older versions, here and in the single file's directory, unless a process runs or a link names them."""
    used = set()
    for directory in {*BIN_DIRS, *links, options.bin_dir, TOOL_DIR}:
        link = under(options.root, directory) / NAME
        if link.is_symlink():
            used.add(Path(options.root, str(link.readlink()).lstrip("/")))
    unit = under(options.root, UNIT_DIR) / UNIT
    if unit.exists():
        used |= {Path(word) for word in unit.read_text().replace("=", " ").split() if word.startswith("/")}
    gone = versions.sweep(home.parent, home.name, NAME, used)
    unpacked = under(options.root, options.data_dir) / "program"
    gone += versions.sweep(unpacked, source.name if source.parent == unpacked else "", NAME, used)
    for path in gone:
        say(f"removed   {path}, an older version")


# --- the network list ---------------------------------------------------------------------------------------------


def _conflist(plan: conflist.Plan, options: argparse.Namespace) -> None:
    """Write the network list, or say why not, and what is wrong with what it says."""
    for name in plan.missing:
        bin_dir = under(options.root, options.bin_dir)
        say(f"warning   no {name} in {bin_dir}: left out of the list, so what it does (host ports) is not done")
        for other in BIN_DIRS:
            there = under(options.root, other) / name
            if there.exists():
                say(f"          to have it: ln -s {there} {bin_dir}/, and install again")
                break
    if plan.action == "kept":
        say(f"conflist  {plan.path} was changed by hand and is kept (--force replaces it)")
    else:
        files.write(plan.path, plan.text)
        again = " is there already" if plan.action == "unchanged" else ""
        say(f"conflist  {plan.path}{again} (network {options.network}, CNI {options.cni_version})")
    others = sorted(p.name for p in plan.path.parent.iterdir() if p.suffix in CONF_SUFFIXES and p.name < plan.path.name)
    if others:
        say(f"warning   {plan.path.parent / others[0]} sorts before ours: the runtime uses that one")


def _remember(options: argparse.Namespace, plan: conflist.Plan, before: Record) -> None:
    """Write the record of this installation, before the list. A list that was changed by hand keeps its checksums."""
    path, lists = str(Path(options.conf_dir, conflist.FILE)), before.lists
    if plan.action != "kept":
        texts = dict.fromkeys((*lists.get(path, ()), record.checksum(plan.text)))
        lists = {**lists, path: tuple(texts)[-2:]}
    for other in lists:
        if other != path and under(options.root, other).exists():
            stays = "of an earlier installation, stays: remove it if no runtime reads it"
            say(f"note      {under(options.root, other)}, {stays}")
    links = dict.fromkeys((*before.links, options.bin_dir))
    values = {name: getattr(options, name) for name in record.FLAGS}
    record.save(under(options.root, options.program_dir), Record(**values, links=tuple(links), lists=lists))
