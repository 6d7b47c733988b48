"""Which module carries out a command; each function imports only its own, so a command costs its own imports."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def run(options: argparse.Namespace) -> int:
    """Carry out one command; returns its exit code. Raises what the command raises."""
    work = _COMMANDS[options.command]
    if getattr(options, "watch", False):
        if not _lists(options):
            sys.stderr.write("zlayer-cni: --watch is for what only lists: `gc --dry-run`, `peer gone`\n")
            return 2
        from cni.cli import watch

        return watch.follow(options.run_dir, lambda: work(options))
    return work(options)


def _lists(options: argparse.Namespace) -> bool:
    """Whether a command only lists, so that it may be carried out again and again."""
    if options.command == "gc":
        return bool(options.dry_run)
    return bool(options.command != "peer" or options.what == "gone")


def _status(options: argparse.Namespace) -> int:
    from cni.cli import status

    if options.wait:
        from cni.cli import watch

        return watch.wait(options.run_dir, lambda: status.run(options.run_dir, options.json), options.timeout)
    return status.run(options.run_dir, options.json)


def _attachments(options: argparse.Namespace) -> int:
    from cni.cli import attachments

    return attachments.run(options)


def _networks(options: argparse.Namespace) -> int:
    from cni.cli import networks

    return networks.run(options)


def _why(options: argparse.Namespace) -> int:
    from cni.cli import why

    return why.run(options.run_dir, options.src, options.dst, options.port, options.json)


def _resolve(options: argparse.Namespace) -> int:
    from cni.cli import resolve

    return resolve.run(options.run_dir, options.name, options.asker, options.json)


def _drops(options: argparse.Namespace) -> int:
    from cni.cli import drops

    return drops.run(options.run_dir, options.follow, options.seconds, options.json)


def _connectivity(options: argparse.Namespace) -> int:
    from cni.cli.connectivity import command

    return command.run(options)


def _trace(options: argparse.Namespace) -> int:
    from cni.cli import trace

    return trace.run(options)


def _version(options: argparse.Namespace) -> int:
    from cni.cli import version

    return version.run(options.run_dir, options.json)


def _explain(options: argparse.Namespace) -> int:
    from cni.cli import explain

    return explain.run(options.code, options.json)


def _ui(options: argparse.Namespace) -> int:
    from cni.cli.ui import command

    return command.run(options.run_dir, options.listen, options.socket or "")


def _texts(options: argparse.Namespace) -> int:
    from cni import __version__
    from cni.cli import completion, parser

    if options.command == "completion":
        sys.stdout.write(completion.script(options.shell, parser.parser()))
        return 0
    pages = {word.name for word in completion.words(parser.parser())}
    if options.page and options.page not in pages:
        sys.stderr.write(f"zlayer-cni: there is no command {options.page!r}\n")
        return 2
    sys.stdout.write(completion.manual(parser.parser(), options.page, __version__))
    return 0


def _attach(options: argparse.Namespace) -> int:
    from cni.cli import own_namespace

    return {"attach": own_namespace.attach, "detach": own_namespace.detach}[options.command](options)


def _plan(options: argparse.Namespace) -> int:
    from cni.cli import plan

    return plan.run(options)


def _bundle(options: argparse.Namespace) -> int:
    from cni.cli import bundle

    return bundle.run(options)


def _doctor(options: argparse.Namespace) -> int:
    from cni.cli import doctor

    return doctor.run(options)


def _gc(options: argparse.Namespace) -> int:
    from cni.cli import gc

    return gc.run(options.run_dir, options.dry_run, options.json)


def _peers(options: argparse.Namespace) -> int:
    from cni.cli import peers

    return peers.run(options)


def _ping(options: argparse.Namespace) -> int:
    from cni.cli import ping

    return ping.run(options.run_dir, options.peer, options.count, options.json)


def _netcheck(options: argparse.Namespace) -> int:
    from cni.cli import netcheck

    return netcheck.run(options.run_dir, options.json)


def _events(options: argparse.Namespace) -> int:
    from cni.cli import events

    return events.run(options.run_dir)


def _log_level(options: argparse.Namespace) -> int:
    from cni.cli import log_level

    return log_level.run(options.run_dir, options.level, options.json)


def _metrics(options: argparse.Namespace) -> int:
    from cni.cli import metrics

    return metrics.run(options.run_dir)


def _peer(options: argparse.Namespace) -> int:
    from cni.cli import peer

    return {"peer": peer.run, "join": peer.join, "showconf": peer.showconf}[options.command](options)


def _graph(options: argparse.Namespace) -> int:
    from cni.cli import graph

    return graph.run(options)


def _validate(options: argparse.Namespace) -> int:
    from cni.cli import validate

    return validate.run(options.file, options.json, options.bin_dir)


def _install(options: argparse.Namespace) -> int:
    from cni.cli import install

    return install.run(options)


def _uninstall(options: argparse.Namespace) -> int:
    from cni.cli import uninstall

    return uninstall.run(options)


def _start(options: argparse.Namespace) -> int:
    from cni.cli import start

    return start.run(options)


def _pod(options: argparse.Namespace) -> int:
    from cni.cli import pod

    return pod.run(options)


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "status": _status,
    "attachments": _attachments,
    "networks": _networks,
    "why": _why,
    "resolve": _resolve,
    "drops": _drops,
    "version": _version,
    "explain": _explain,
    "completion": _texts,
    "man": _texts,
    "attach": _attach,
    "detach": _attach,
    "plan": _plan,
    "bundle": _bundle,
    "trace": _trace,
    "connectivity": _connectivity,
    "doctor": _doctor,
    "gc": _gc,
    "peers": _peers,
    "netcheck": _netcheck,
    "ping": _ping,
    "events": _events,
    "metrics": _metrics,
    "log-level": _log_level,
    "peer": _peer,
    "join": _peer,
    "showconf": _peer,
    "graph": _graph,
    "ui": _ui,
    "validate": _validate,
    "install": _install,
    "uninstall": _uninstall,
    "pod": _pod,
    "start": _start,
    "restart": _start,
}
