"""`zlayer-cni connectivity test`: exit code 0 if every check is as it should be, 1 if not, 3 without a daemon."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from cni.cli import ask, table
from cni.cli.connectivity import accept, report, runner


def run(options: argparse.Namespace) -> int:
    """Run the test, or take part in others'. Raises NoDaemon, Refused, OSError."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return accept.run(options.run_dir, options.seconds) if options.what == "accept" else _test(options)
    except KeyboardInterrupt:
        sys.stderr.write("zlayer-cni: interrupted; what was attached is detached\n")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _test(options: argparse.Namespace) -> int:
    def tell(text: str) -> None:
        if not options.quiet:
            sys.stderr.write(f"{table.escape_control(text)}\n")

    result = runner.run(
        runner.Options(run_dir=options.run_dir, outside=options.outside, nodes=tuple(options.node), tell=tell)
    )
    if options.junit:
        Path(options.junit).write_text(report.as_junit(result), encoding="utf-8")
    if options.json:
        ask.print_json(result)
    else:
        sys.stdout.write(report.as_text(table.escape_control(result)))
    return 0 if result.ok else 1
