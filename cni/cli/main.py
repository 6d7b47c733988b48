"""The operator's tool: a file for each command. Results go to stdout, messages to stderr; `--json` is for programs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cni.cli import ask, commands
from cni.cli.parser import parser

NEED_ROOT = ("install", "uninstall", "start", "restart")


def main(argv: Sequence[str]) -> int:
    """Run one command of the tool; returns its exit code."""
    whole = parser()
    if argv and argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if unknown := _unknown(whole, argv):
        sys.stderr.write(f"zlayer-cni: {unknown}\n")
        return 2
    options = whole.parse_args(argv)
    if getattr(options, "output_form", None) == "json":
        options.json = True
    return _carry_out(options)


def _carry_out(options: argparse.Namespace) -> int:
    if options.command in NEED_ROOT and options.root == "/" and os.geteuid():
        sys.stderr.write(f"zlayer-cni: {options.command} needs root, and runs as user {os.geteuid()}\n")
        return 1
    try:
        return commands.run(options)
    except ask.NoDaemon as error:
        sys.stderr.write(f"zlayer-cni: {error}\n{_why_absent(options.run_dir, error)}")
        return ask.NOT_RUNNING
    except ask.Refused as error:
        sys.stderr.write(f"zlayer-cni: {error}\n")
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of the pipe has ended, as with `| head`
        return 0
    except OSError as error:
        root = " (this needs root)" if isinstance(error, PermissionError) and os.geteuid() else ""
        sys.stderr.write(f"zlayer-cni: {options.command} failed: {error}{root}\n")
        return 1


def _unknown(whole: argparse.ArgumentParser, argv: Sequence[str]) -> str:
    """Which command there is not, and which is meant; empty if the first word is one."""
    (known,) = (action.choices for action in whole._actions if isinstance(action, argparse._SubParsersAction))
    if not argv or argv[0].startswith("-") or argv[0] in known:
        return ""
    from cni.cli import meant

    hint = meant.hint(argv[0], known) or "; `zlayer-cni --help` lists them"
    return f"there is no command {argv[0]!r}{hint}"


def _why_absent(run_dir: str, error: ask.NoDaemon) -> str:
    from cni.cli import absent

    if not absent.is_silent(error):
        return ""
    absence = absent.explain(absent.look(run_dir))
    return f"{absence.text}{f' -> {absence.fix}' if absence.fix else ''}\n"
