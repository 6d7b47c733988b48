"""`zlayer-cni drops [--follow]`: the packets that the fence drops, with the rule that drops each. Exit code 0, or 3
without a daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

from cni import answers, plugin_protocol
from cni.cli import ask, table
from cni.cli.networks import name_of

END = "end"


def run(run_dir: str, follow: bool, seconds: float, as_json: bool) -> int:
    """Print each dropped packet as it comes, for `seconds`, or with `follow` until the tool is interrupted. Raises
    NoDaemon, Refused."""
    end = None if follow else time.monotonic() + seconds
    shown = 0
    with contextlib.suppress(KeyboardInterrupt), _ended_by_signal():
        for sample in samples(run_dir, end):
            for packet in sample.packets:
                shown += 1
                sys.stdout.write(as_json_line(packet) if as_json else as_line(table.escape_control(packet)))
            if sample.packets:
                sys.stdout.flush()
            if sample.lost:
                sys.stderr.write(f"zlayer-cni: at least {sample.lost} more packets are not shown\n")
    if not shown and not follow and not as_json:
        sys.stderr.write(f"nothing was dropped in {seconds:g} s; `zlayer-cni networks` has the counters\n")
    return 0


def samples(run_dir: str, end: float | None) -> Iterator[answers.DropSample]:
    """What is dropped until `end`, in seconds of the monotonic clock, or for ever. The first sample is empty: from
    then on packets are logged. Raises NoDaemon, Refused."""
    keys = {plugin_protocol.READER: f"{os.getpid()}-{time.monotonic_ns()}"}
    try:
        while True:
            sample = ask.ask(run_dir, "drops", answers.DropSample, keys)
            yield sample
            keys[plugin_protocol.CURSOR] = str(sample.cursor)
            if end is not None and time.monotonic() >= end:
                return
    finally:
        with contextlib.suppress(ask.NoDaemon, ask.Refused):
            ask.ask(run_dir, "drops", answers.DropSample, {**keys, plugin_protocol.CURSOR: END})


@contextlib.contextmanager
def _ended_by_signal() -> Iterator[None]:
    """SIGTERM ends the reading as an interrupt does, so the log rules go at once."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def as_json_line(packet: answers.DroppedPacket) -> str:
    """One JSON object on a line."""
    import msgspec

    return msgspec.json.encode(packet).decode() + "\n"


def as_line(packet: answers.DroppedPacket) -> str:
    """One line: when, from where to where, and the rule as `why` names it."""
    when = time.strftime("%H:%M:%S", time.localtime(packet.time_unix)) + f"{packet.time_unix % 1:.3f}"[1:]
    source = _end(packet.source, packet.source_label, packet.source_port)
    destination = _end(packet.destination, packet.destination_label, packet.destination_port)
    where = f"chain {packet.chain} of table {packet.family}"
    if packet.of_a_network:
        where = f"network {name_of(packet.isolation_network)}, table {packet.family}"
    return f'{when}  {source} -> {destination}  {packet.protocol}  rule "{packet.rule}" ({where})\n'


def _end(address: str, label: str, port: int | None) -> str:
    text = address or "?"
    if port:
        text = f"[{text}]:{port}" if ":" in text else f"{text}:{port}"
    return f"{text} ({label})" if label else text
