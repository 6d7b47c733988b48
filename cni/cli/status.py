"""`zlayer-cni status`: a summary of the node. Exit code 0 without a problem, 1 with one, 3 without a daemon that
should run."""

from __future__ import annotations

import json
import sys

import msgspec

from cni import __version__, answers
from cni.cli import absent, table
from cni.cli.ask import NoDaemon, ask, print_json


def run(run_dir: str, as_json: bool) -> int:
    """Print the status; raises NoDaemon, Refused. A daemon that is not needed yet is no problem."""
    try:
        status = with_versions(ask(run_dir, "status", answers.Status))
    except NoDaemon as error:
        absence = absent.explain(absent.look(run_dir)) if absent.is_silent(error) else None
        if absence is None or absence.state != "not started":
            raise
        document = {"state": absence.state, "run_dir": run_dir, "reason": absence.text, "problems": []}
        sys.stdout.write(json.dumps(document, indent=2) + "\n" if as_json else f"{absence.text}\n")
        return 0
    if as_json:
        print_json(status)
    else:
        sys.stdout.write(_as_text(table.escape_control(status)))
    return 1 if status.problems else 0


def with_versions(status: answers.Status, own: str = __version__) -> answers.Status:
    """The status with the problem that the daemon is of another version than this program; `own`: this one's. Pure."""
    if status.version == own:
        return status
    from cni.problems import REGISTRY

    kind = REGISTRY["version-differs"]
    text = f"the daemon is version {status.version}, this program is {own}"
    detail = answers.ProblemDetail(
        code=kind.code, area=kind.area, severity=kind.severity, text=text, action=kind.action
    )
    details = None if status.problem_details is None else [*status.problem_details, detail]
    return msgspec.structs.replace(status, problems=[*status.problems, text], problem_details=details)


def _as_text(status: answers.Status) -> str:
    node = status.node
    lines = [
        f"daemon     version {status.version}, pid {status.pid}, up {_duration(status.uptime_seconds)}",
        f"node       id {node.node_id} of deployment {node.deployment}/{node.instance_id},"
        f" range {', '.join(node.cluster_cidrs)}, MTU {status.mtu}",
        f"wireguard  {_wireguard(status.wireguard)}",
        f"fence      {'in force' if status.fence.in_force else 'NOT IN FORCE: ' + status.fence.trouble}",
        f"containers {status.attachments} attached{f', {status.unfinished} unfinished' if status.unfinished else ''}",
    ]
    if status.calls is not None:
        lines.append(f"calls      {status.calls.launcher} by the launcher, {status.calls.python} by Python")
    if status.dns is not None:
        counts, served = status.dns.counts, ", ".join(status.dns.served) or "NO ADDRESS"
        asked = f"{status.dns.named} named, {counts.get('queries', 0)} questions"
        lines.append(f"dns        {served}, zone {status.dns.zone}: {asked}")
    lines += [f"{table.paint('PROBLEM', 'red')}    {problem}" for problem in _problems(status)]
    lines += [f"NOTE       {note}" for note in status.notes]
    text = "\n".join(lines) + "\n"
    if status.services:
        rows = [
            (s.service, s.mode, s.bridge or s.attach, ", ".join(s.subnets) or "-", s.attachments)
            for s in status.services
        ]
        text += "\n" + table.render(("SERVICE", "MODE", "BRIDGE", "SUBNETS", "CONTAINERS"), rows)
    return text


def _problems(status: answers.Status) -> list[str]:
    """A line for each problem: its code and text. A daemon that is older than the codes reports texts only."""
    details = status.problem_details
    return status.problems if details is None else [f"{problem.code}: {problem.text}" for problem in details]


def _wireguard(device: answers.WireGuard) -> str:
    if not device.interface:
        return device.note
    return f"{device.interface} ({device.engine}), port {device.port}, {device.alive} of {device.peers} peers answer"


def _duration(seconds: float) -> str:
    """Seconds in the largest suitable unit: 42 s, 3 min, 5 h, 12 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
