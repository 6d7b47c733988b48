"""What it means that no daemon answers on a run directory, and what to do about it. `explain` is pure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cni import defaults, last_words
from cni.cli import record, runtimes, upkeep
from cni.host import systemd
from cni.plugin import client

PLUGIN = "zlayer-cni"
SUFFIXES = (".conf", ".conflist", ".json")  # what containerd and CRI-O load
RECORDS = "state.db"


State = Literal["not started", "failed", "ended", "stopped", "not installed"]


class Seen(NamedTuple):
    """What the machine shows. `failed`: why the last start failed; `records`: a daemon has run since the boot; `unit`:
    systemd has a unit for the run directory; `conf_dir`: where network lists are; `starts`: whether a list there lets
    the plugin start the daemon on this run directory, None if no list names the plugin for it."""

    failed: str
    records: bool
    unit: bool
    conf_dir: str
    starts: bool | None


class Absence(NamedTuple):
    """Why no daemon answers, as a sentence, and the remedy (or empty). `not started` is the normal state of a node
    without systemd on which no container has been attached since the boot."""

    state: State
    text: str
    fix: str = ""


def explain(seen: Seen) -> Absence:
    """The state of a node on which no daemon answers."""
    fix = "zlayer-cni start"
    text = ""
    state: State
    if seen.failed:
        state, fix = "failed", f"repair that, then `{fix}`"
        text = f"the daemon's last start failed: {seen.failed}"
    elif seen.unit:
        state, text = "ended" if seen.records else "stopped", f"{upkeep.UNIT} is not running"
    elif seen.records:
        again = "the next call of the plugin starts it again" if seen.starts else "the plugin is not told to start it"
        state, text = "ended", f"the daemon has ended; {again}"
    elif seen.starts is None:
        state, fix = "not installed", "run `zlayer-cni install`"
        text = f"no network list in {seen.conf_dir} names {PLUGIN} for this run directory"
    elif seen.starts:
        state, fix = "not started", ""
        text = "the daemon is not started: the first ADD starts it (or `zlayer-cni start`)"
    else:
        state, text = "stopped", "the daemon is not started, and the network list says `autostart: false`"
    return Absence(state, text, fix)


def look(run_dir: str, conf_dir: str | None = None) -> Seen:
    """Read what `explain` needs."""
    installed = record.load(Path(defaults.PROGRAM_DIR))
    configured = runtimes.containerd() or runtimes.DEFAULT
    directory = conf_dir or (installed.conf_dir if installed else configured.conf_dir)
    return Seen(
        failed=last_words.read(run_dir),
        records=Path(run_dir, RECORDS).exists(),
        unit=upkeep.has_unit(run_dir) and systemd.is_running(),
        conf_dir=directory,
        starts=_starts(Path(directory), run_dir),
    )


def is_silent(error: Exception) -> bool:
    """Whether a NoDaemon error means that nothing listens; else a daemon is there, and does not answer."""
    return isinstance(error.__cause__, client.Closed)


def _starts(directory: Path, run_dir: str) -> bool | None:
    """What the network lists say about starting a daemon on the run directory; None if none names the plugin for it."""
    answers = []
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in SUFFIXES)
    except OSError:
        return None
    for path in paths:
        for entry in _entries(path):
            keys = {str(key).casefold(): value for key, value in entry.items()}
            if (
                keys.get("type") == PLUGIN
                and keys.get("rundir", defaults.RUN_DIR) == run_dir
                and not keys.get("overlayd")
            ):
                answers.append(keys.get("autostart", True) is not False)
    return any(answers) if answers else None


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return []
    entries = document.get("plugins", [document]) if isinstance(document, dict) else []
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
