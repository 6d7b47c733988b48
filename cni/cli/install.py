"""Puts the program, the daemon's service and the network list in place, in that order.

The network list comes last and whole, because a runtime uses it the moment it is there. The program goes into a
directory of its own version, and the plugin in the runtime's directory becomes a link to it, swapped by rename: an
upgrade disturbs no call that is running. Safe to repeat.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from pathlib import Path

from cni import __version__
from cni.cli import ask, files, resources
from cni.daemon.settings import DEFAULT_DATA_DIR, DEFAULT_RUN_DIR
from cni.host import program, systemd

CONFLIST = "10-zlayer.conflist"
UNIT = "zlayer-overlayd.service"
UNIT_DIR = "/etc/systemd/system"
TOOL_DIR = "/usr/local/bin"
NAME = "zlayer-cni"
CONF_SUFFIXES = (".conf", ".conflist", ".json")  # what containerd and CRI-O load
READY_WITHIN = 30.0  # seconds until the service must answer


class Trouble(Exception):
    """The installation cannot go on; the text says why and what to do."""


def say(text: str) -> None:
    """Progress, for the person watching."""
    sys.stderr.write(f"{text}\n")


def under(root: str, path: str) -> Path:
    """`path` below the prefix `root`."""
    return Path(root) / path.lstrip("/")


def run(options: argparse.Namespace) -> int:
    """Install; returns the exit code."""
    try:
        source = resources.unpacked_program()
        if source is None:
            raise Trouble("this runs from source: build it with scripts/build, then run `dist/zlayer-cni install`")
        home = _place_program(source, under(options.root, options.program_dir))
        _prove(home / NAME)
        plugin = under(options.root, options.bin_dir) / NAME
        files.link(plugin, _as_seen(options, home) / NAME)
        files.link(under(options.root, TOOL_DIR) / NAME, _as_seen(options, home) / NAME)
        say(f"plugin    {plugin} -> {home / NAME}")
        _service(options, home)
        _conflist(options)
    except (Trouble, OSError) as error:
        say(f"zlayer-cni: install failed: {error}")
        return 1
    say("done; `zlayer-cni status` tells how the node is")
    return 0


def _as_seen(options: argparse.Namespace, home: Path) -> Path:
    """`home` as programs will see it when `--root` is their root directory."""
    return Path("/") / home.relative_to(options.root)


def _place_program(source: Path, target: Path) -> Path:
    """Copy the unpacked program to `target/VERSION-HASH`, whole or not at all; returns that directory."""
    home = target / f"{__version__}-{_digest(source)}"
    if home.is_dir() or source.resolve() == home.resolve():
        say(f"program   {home} is there already")
        return home
    target.mkdir(0o755, parents=True, exist_ok=True)
    fresh = target / f".new-{home.name}"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(source, fresh, symlinks=True)
    fresh.rename(home)
    files.sync(target)
    say(f"program   {home}")
    return home


def _digest(source: Path) -> str:
    """Twelve hex digits that change with the program."""
    found = hashlib.blake2b(digest_size=6)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        found.update(str(path.relative_to(source)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def _prove(binary: Path) -> None:
    """The program runs where it lies now: answers VERSION as a runtime would ask it."""
    code, out, err = program.run_once([str(binary)], {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"1.0.0"}')
    if code != 0 or b"supportedVersions" not in out:
        raise Trouble(f"{binary} does not run here: exit code {code}: {err.decode(errors='replace').strip()}")


# --- the daemon's service -----------------------------------------------------------------------------------------


def _service(options: argparse.Namespace, home: Path) -> None:
    """A systemd unit where systemd is; elsewhere the plugin starts the daemon when it is first needed."""
    if options.no_service or options.root != "/" or not systemd.is_running():
        say("service   none: the plugin starts the daemon when it is first needed")
        return
    text = resources.conf(UNIT).replace("@PROGRAM@", str(home / NAME))
    text = text.replace("@RUN_DIR@", options.run_dir).replace("@DATA_DIR@", options.data_dir)
    files.write(Path(UNIT_DIR) / UNIT, text)
    for words in (("daemon-reload",), ("enable", UNIT), ("restart", UNIT)):
        said = systemd.control(*words)
        if said:
            raise Trouble(f"systemctl {' '.join(words)}: {said}")
    _await_daemon(options.run_dir)
    say(f"service   {UNIT} is enabled and running")


def _await_daemon(run_dir: str) -> None:
    end = time.monotonic() + READY_WITHIN
    while True:
        try:
            ask.ask(run_dir, "status")
        except ask.NoDaemon as error:
            if time.monotonic() > end:
                raise Trouble(f"{error}; see `journalctl -u {UNIT}`") from error
            time.sleep(0.1)
        else:
            return


# --- the network list ---------------------------------------------------------------------------------------------


def _conflist(options: argparse.Namespace) -> None:
    """The network list, unless there is one that a person changed."""
    path = under(options.root, options.conf_dir) / CONFLIST
    text = conflist_text(options)
    if path.exists() and path.read_text() != text and not options.force:
        say(f"conflist  {path} differs from ours and is kept (--force replaces it)")
        return
    files.write(path, text)
    say(f"conflist  {path} (network {options.network}, CNI {options.cni_version})")
    others = sorted(p.name for p in path.parent.iterdir() if p.suffix in CONF_SUFFIXES and p.name < path.name)
    if others:
        say(f"warning   {path.parent / others[0]} sorts before ours: the runtime uses that one")


def conflist_text(options: argparse.Namespace) -> str:
    """The network list for these options. portmap is left out where the runtime has none: every ADD would fail."""
    name = CONFLIST if options.cni_version == "1.0.0" else f"cni-{options.cni_version[:3]}/{CONFLIST}"
    conflist = json.loads(resources.conf(name))
    conflist["name"] = options.network
    ours = conflist["plugins"][0]
    for key, value, default in (
        ("runDir", options.run_dir, DEFAULT_RUN_DIR),
        ("dataDir", options.data_dir, DEFAULT_DATA_DIR),
    ):
        if value != default:
            ours[key] = value
    bin_dir = under(options.root, options.bin_dir)
    missing = [p["type"] for p in conflist["plugins"][1:] if not (bin_dir / p["type"]).exists()]
    for name in missing:
        say(f"warning   no {name} in {bin_dir}: left out of the list, so what it does (host ports) is not done")
    conflist["plugins"] = [p for p in conflist["plugins"] if p["type"] not in missing]
    return json.dumps(conflist, indent=2) + "\n"
