"""The doctor's second look at the kernel, and at the peers: what is asked, and how often."""

from __future__ import annotations

import time

from cni import answers
from cni.cli import ask
from cni.cli.checks_kernel import peers, readers, records
from cni.cli.checks_machine import Finding
from cni.host import second_reader

ATTEMPTS = 3  # the kernel changes between two readings while containers come and go
PAUSE = 0.5  # seconds between two attempts


def second_look(run_dir: str, status: answers.Status | None) -> list[Finding]:
    """Compare two readings of the kernel with each other and with the daemon's records, if one answers. A difference
    counts if it is there ATTEMPTS times in a row. Raises OSError."""
    findings: list[Finding] = []
    for attempt in range(ATTEMPTS):
        time.sleep(PAUSE if attempt else 0.0)
        seen = second_reader.by_pyroute2()
        findings = [readers(seen.links, second_reader.by_ourselves())]
        if status is not None:
            findings += records(seen, status, _attachments(run_dir))
        if all(finding.level == "ok" for finding in findings):
            break
    return findings + (peers(_peers(run_dir), status.mtu) if status is not None else [])


def _attachments(run_dir: str) -> list[answers.Attachment]:
    try:
        return ask.ask(run_dir, "attachments", list[answers.Attachment])
    except (ask.NoDaemon, ask.Refused) as error:
        raise OSError(str(error)) from error


def _peers(run_dir: str) -> list[answers.Peer]:
    try:
        return ask.ask(run_dir, "peers", list[answers.Peer])
    except (ask.NoDaemon, ask.Refused) as error:
        raise OSError(str(error)) from error
