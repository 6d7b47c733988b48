"""`zlayer-cni ping PEER`: the path to a peer and its round trip, until the path is direct.

Exit code 0 if the last probe was answered, 1 if not, or 3 without a daemon.
"""

from __future__ import annotations

import sys
import time

from cni import answers, plugin_protocol
from cni.cli import table
from cni.cli.ask import ask, print_json

PAUSE = 1.0  # seconds between two probes
FINAL = ("direct", "hole-punched")


def run(run_dir: str, peer: str, count: int, as_json: bool) -> int:
    """Probe `count` times at most; stops early once the path goes through no relay. Raises NoDaemon, Refused."""
    probes: list[answers.Ping] = []
    while True:
        probe = ask(run_dir, "ping", answers.Ping, {plugin_protocol.PEER: peer})
        probes.append(probe)
        if not as_json:
            sys.stdout.write(as_text(table.escape_control(probe)))
            sys.stdout.flush()
        is_final = probe.path in FINAL and probe.round_trip_ms is not None
        if is_final or len(probes) >= count:
            break
        time.sleep(PAUSE)
    if as_json:
        print_json(probes)
    return 0 if probes[-1].round_trip_ms is not None else 1


def as_text(probe: answers.Ping) -> str:
    """One line."""
    if probe.round_trip_ms is None:
        where = f" at {probe.endpoint}" if probe.endpoint else ""
        return f"no answer from {probe.name}{where}: {probe.path}: {probe.path_why}\n"
    return f"answer from {probe.name} at {probe.endpoint} in {probe.round_trip_ms} ms: {probe.path}: {probe.path_why}\n"
