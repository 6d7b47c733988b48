"""`zlayer-cni trace SRC DST [PORT]`: the rules that a real packet meets on this node, of every program. Exit code 0 if
a packet was seen and not dropped, 1 if it was dropped or none was seen, 2 if an argument is unclear, 3 without a
daemon."""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
import time
from contextlib import closing
from functools import partial

from cni import answers, plugin_protocol
from cni.cli import ask, table
from cni.errors import FenceFailed
from cni.host import netns, nflog
from cni.host.nft_trace import Step, Tracer
from cni.host.short_thread import inside

RATE = 5  # packets a second that are traced
QUIET = 0.6  # seconds without a further step after which a packet's way is complete
OWN_TABLE = "zlayer_cni"
_COMMENT = re.compile(r'comment "([^"]*)"')


def run(options: argparse.Namespace) -> int:
    """Trace one flow. Raises NoDaemon, NeedsRoot, Refused."""
    keys = {
        plugin_protocol.SRC: options.src,
        plugin_protocol.DST: options.dst,
        plugin_protocol.PORT: options.port,
    }
    said = ask.ask_clearly(options.run_dir, "why", answers.Reachability, keys)
    if said is None:
        return ask.UNCLEAR
    path = next((each for each in said.paths if options.six == (each.family == 6)), said.paths[0])
    if not path.source.address or not path.to.address:
        sys.stderr.write("zlayer-cni: name an address of each end: `outside` is none\n")
        return ask.UNCLEAR
    try:
        found = _trace(options, path, said.port)
    except FenceFailed as error:
        raise ask.Refused(f"nftables cannot trace here: {error.msg}: {error.details}") from error
    if options.json:
        ask.print_json(found)
    else:
        sys.stdout.write(as_text(table.escape_control(found)))
    return 0 if found.packets and not any(packet.dropped for packet in found.packets) else 1


def _trace(options: argparse.Namespace, path: answers.Path, port: answers.Port | None) -> answers.Trace:
    source, target = path.source.address or "", path.to.address or ""
    match, arp = flow(source, target, port)
    with closing(Tracer(match, arp, RATE)) as tracer:
        sent = False if options.wait else _send(options.run_dir, path, port)
        if not sent:
            sys.stderr.write(f"waiting {options.seconds:g} s for a packet of {source} to {target}\n")
        steps: list[Step] = []
        end = time.monotonic() + options.seconds
        while (left := end - time.monotonic()) > 0:
            more = list(tracer.steps(min(left, QUIET)))
            steps += more
            if steps and not more:
                break
        names = {step.handle: tracer.rule(step) for step in steps if step.kind == "rule"}
        packets = [_packet(own, names) for own in by_packet(steps)]
    return answers.Trace(source=source, destination=target, port=port, sent=sent, packets=packets)


def flow(source: str, target: str, port: answers.Port | None) -> tuple[str, str]:
    """The flow, and the questions for its neighbour, in nft's language."""
    ip = "ip6" if ":" in target else "ip"
    match = f"{ip} saddr {source} {ip} daddr {target}"
    if port is not None:
        match += f" {port.protocol} dport {port.number}"
    return match, "" if ip == "ip6" else f"arp saddr ip {source} arp daddr ip {target}"


def by_packet(steps: list[Step]) -> list[list[Step]]:
    """The steps of each packet, in order. The kernel gives a packet another number when a bridge hands it to the node:
    steps of a new number that begin behind the first hooks belong to the packet before."""
    packets: list[list[Step]] = []
    seen: dict[int, list[Step]] = {}
    for step in steps:
        if step.packet not in seen:
            is_first = step.chain in ("prerouting", "output") or step.table != OWN_TABLE
            if is_first or not packets:
                packets.append([])
            seen[step.packet] = packets[-1]
        seen[step.packet].append(step)
    return packets


def _packet(own: list[Step], names: dict[int, str]) -> answers.TracedPacket:
    return answers.TracedPacket(
        in_interface=next((nflog.name_of(step.into) for step in own if step.into), None),
        out_interface=next((nflog.name_of(step.out) for step in reversed(own) if step.out), None),
        dropped=own[-1].verdict == "drop",
        steps=[_step(step, text) for step in own if (text := names.get(step.handle, "")) or step.verdict != "continue"],
    )


def _step(step: Step, text: str) -> answers.TraceStep:
    comment = _COMMENT.search(text) if step.table == OWN_TABLE else None
    return answers.TraceStep(
        family=step.family,
        table=step.table,
        chain=step.chain,
        rule=comment[1] if comment else text or step.kind,
        verdict=step.verdict,
    )


def as_text(found: answers.Trace) -> str:
    """A paragraph for each packet: a line for each rule that it met, and what became of it."""
    if not found.packets:
        return f"no packet from {found.source} to {found.destination} came by\n"
    text = ""
    for number, packet in enumerate(found.packets, 1):
        way = f"in by {packet.in_interface or 'the node itself'}"
        way += f", out by {packet.out_interface}" if packet.out_interface else ""
        text += f"packet {number}: {found.source} -> {found.destination}, {way}\n"
        rows = [(f"  {step.family}", step.table, step.chain, step.rule, step.verdict) for step in packet.steps]
        text += table.render(("  FAMILY", "TABLE", "CHAIN", "RULE", "VERDICT"), rows)
        last = packet.steps[-1]
        fate = f'dropped by rule "{last.rule}" of table {last.family} {last.table}' if packet.dropped else "not dropped"
        text += f"  {fate}\n"
    return text


# --- a packet of our own ------------------------------------------------------------------------------------------


def _send(run_dir: str, path: answers.Path, port: answers.Port | None) -> bool:
    """Send the flow's first packet from the container, or from the node, if the source is on this node."""
    source, target = path.source.address or "", path.to.address or ""
    work = partial(_knock, source, target, port)
    if path.source.kind == "host":
        work()
        return True
    attached = ask.ask(run_dir, "attachments", list[answers.Attachment])
    sandbox = next((each.netns for each in attached if source in (a.partition("/")[0] for a in each.addresses)), "")
    if not sandbox:
        return False
    try:
        fd = netns.open_path(sandbox)
    except OSError:
        return False
    try:
        inside(fd, work)
    except OSError:
        return False  # the container has gone
    finally:
        os.close(fd)
    return True


def _knock(source: str, target: str, port: answers.Port | None) -> None:
    """One packet: the first of a TCP connection, a datagram, or an echo request."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    kind, number = socket.SOCK_DGRAM, port.number if port else 9
    if port is not None and port.protocol == "tcp":
        kind = socket.SOCK_STREAM
    with socket.socket(family, kind) as sock:
        sock.settimeout(1.0)
        try:
            sock.bind((source, 0))
            sock.connect((target, number))
            if kind == socket.SOCK_DGRAM:
                sock.send(b"zlayer-cni trace")
        except OSError:
            pass  # what became of the packet, the trace tells
