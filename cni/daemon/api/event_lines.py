"""The typed events of the daemon as lines for readers outside: one JSON object a line (docs/cli.md, "events"). Pure."""

from __future__ import annotations

import msgspec

from cni import __version__, answers
from cni.daemon import events
from cni.daemon.model.records import Attachment
from cni.overlay import wire
from cni.problems import Problem


def line_of(event: events.Event, unix: float) -> answers.EventLine | None:
    """The line of an event that happened at `unix` (Unix seconds); None for one that is of use inside alone."""
    at, line = round(unix, 3), None
    match event:
        case events.AttachmentLive(attachment):
            line = _of_attachment("attachment-added", at, attachment)
        case events.AttachmentGone(attachment):
            line = _of_attachment("attachment-removed", at, attachment)
        case events.AttachmentCollected(attachment, reason):
            line = _of_attachment("attachment-collected", at, attachment, reason)
        case events.CallFailed():
            line = _of_failure(at, event)
        case events.ProblemBegan(problem):
            line = _of_problem("problem-began", at, problem)
        case events.ProblemEnded(problem):
            line = _of_problem("problem-ended", at, problem)
        case events.PeerChanged(wire.NatEndpointChanged(key, endpoint)):
            line = answers.EventLine(time=at, event="peer-endpoint", public_key=key, endpoint=endpoint)
        case events.PeerChanged(wire.PeerHealthChanged(key, healthy)):
            line = answers.EventLine(time=at, event="peer-health", public_key=key, alive=healthy)
        case events.PathsMeasured():
            line = answers.EventLine(time=at, event="path-measured")
    return line


def _of_problem(name: str, at: float, problem: Problem) -> answers.EventLine:
    severity = problem.kind().severity
    return answers.EventLine(time=at, event=name, code=problem.code, severity=severity, text=problem.text)


def _of_failure(at: float, failure: events.CallFailed) -> answers.EventLine:
    facts = failure.facts
    container, _, interface = facts.get("attachment", "").rpartition("/")
    return answers.EventLine(
        time=at,
        event="call-failed",
        verb=failure.verb,
        code=str(failure.code),
        text=failure.text,
        network=facts.get("network"),
        container_id=container or None,
        interface=interface or None,
        pod=facts.get("pod"),
        service=facts.get("service"),
    )


def _of_attachment(name: str, at: float, attachment: Attachment, reason: str = "") -> answers.EventLine:
    return answers.EventLine(
        time=at,
        event=name,
        network=attachment.network,
        container_id=attachment.container,
        interface=attachment.ifname,
        pod=attachment.pod or None,
        service=attachment.service,
        isolation_network=attachment.isolation,
        addresses=list(attachment.ips),
        text=reason or None,
    )


def begin(unix: float) -> bytes:
    """The first line of a stream: what happens from now on is told."""
    return encode(answers.EventLine(time=round(unix, 3), event="begin", text=f"zlayer-cni {__version__}"))


def end(unix: float, reason: str) -> bytes:
    """The last line of a stream, with the reason of its end."""
    return encode(answers.EventLine(time=round(unix, 3), event="end", text=reason))


def encode(line: answers.EventLine) -> bytes:
    """A line with its line break. Fields that are None are left out."""
    return msgspec.json.encode(line) + b"\n"
