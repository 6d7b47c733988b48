"""The options and arguments of each command."""

from __future__ import annotations

import argparse
import os

from cni import defaults


def absolute(path: str) -> str:
    """An absolute path, because a daemon is started in another directory. Raises argparse.ArgumentTypeError."""
    if not path.startswith("/"):
        raise argparse.ArgumentTypeError(f"{path!r} is not an absolute path")
    return path


def _why_options(parser: argparse.ArgumentParser) -> None:
    place = "an address, a container, pod, guest, edge peer or node by name or by a part of it, `node`, or `outside`"
    parser.add_argument("src", metavar="SRC", help=place)
    parser.add_argument("dst", metavar="DST", help="the same")
    parser.add_argument("port", metavar="PORT[/tcp|udp|sctp]", nargs="?", default="", help="at DST; default: tcp")


def _watched_why_options(parser: argparse.ArgumentParser) -> None:
    _why_options(parser)
    _watch_options(parser)


def _resolve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name, with or without the zone, or a reverse name")
    _watch_options(parser)
    who = "who asks: as SRC of `why`; default: the node"
    parser.add_argument("--from", metavar="CONTAINER", dest="asker", default="", help=who)


def _doctor_options(parser: argparse.ArgumentParser) -> None:
    place = f"where it is: by containerd's configuration, or {defaults.BIN_DIR}"
    for option, default, text in (
        ("--data-dir", defaults.DATA_DIR, f"identity and settings ({defaults.DATA_DIR})"),
        ("--bin-dir", None, f"where the runtime looks for plugins ({place})"),
        ("--conf-dir", None, "where the runtime looks for network lists (by the same, or /etc/cni/net.d)"),
    ):
        parser.add_argument(option, metavar="DIR", type=absolute, default=default, help=text)


def _drops_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--follow", "-f", action="store_true", help="until it is interrupted")
    words = "how long to watch without --follow (default: %(default)g)"
    parser.add_argument("--seconds", metavar="S", type=float, default=5.0, help=words)


def _detach_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("namespace", metavar="NAME|PID|PATH", help="a name of `ip netns`, a process, or a path")
    parser.add_argument("--ifname", metavar="NAME", default="eth0", help="the interface in it (%(default)s)")
    parser.add_argument("--id", metavar="ID", help="the container id (ns-NAME)")


def _attach_options(parser: argparse.ArgumentParser) -> None:
    _detach_options(parser)
    parser.add_argument("--service", metavar="NAME", required=True, help="the service it joins")
    parser.add_argument("--network", metavar="NAME", help="the isolation network (none: the flat mesh)")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("conf", metavar="CONF", help="a network list, or one configuration")
    parser.add_argument("--args", metavar="A=B;C=D", default="", help="CNI_ARGS, as the runtime would set it")
    parser.add_argument("--ifname", metavar="NAME", default="eth0", help="CNI_IFNAME (%(default)s)")


def _trace_options(parser: argparse.ArgumentParser) -> None:
    _why_options(parser)
    parser.add_argument("--six", "-6", action="store_true", help="the IPv6 addresses of the two")
    parser.add_argument("--wait", action="store_true", help="send nothing: wait for a packet of the flow")
    parser.add_argument("--seconds", metavar="S", type=float, default=10.0, help="how long at most (%(default)g)")


def _connectivity_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("test", "accept"), help="what to do")
    parser.add_argument("--node", metavar="NAME", action="append", default=[], help="test: only this other node")
    parser.add_argument("--outside", metavar="ADDRESS", default="", help="test: an address outside (the gateway)")
    parser.add_argument("--junit", metavar="FILE", help="test: write the results as JUnit's XML, too")
    parser.add_argument("--quiet", action="store_true", help="test: no progress on stderr")
    parser.add_argument("--seconds", metavar="S", type=float, default=600.0, help="accept: how long (%(default)g)")


def _bundle_options(parser: argparse.ArgumentParser) -> None:
    _doctor_options(parser)
    parser.add_argument("--output", metavar="FILE", help="default: zlayer-cni-bundle-TIME.tar.gz, here")
    parser.add_argument("--show", action="store_true", help="print what would be in it, and write nothing")
    words = "with the texts of problems, which may name addresses, files and users"
    parser.add_argument("--texts", action="store_true", help=words)


def _gc_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only list what would be released")
    _watch_options(parser, " (with --dry-run)")


def _peer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("token", "rotate", "remove", "gone", "forget"), help="what to do")
    _watch_options(parser, " (gone)")
    words = "for remove: a name, or a key; for forget: a node id, a name, an identity"
    parser.add_argument("peer", metavar="PEER", nargs="?", default="", help=words)


def _join_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("token", metavar="TOKEN", help="from `peer token` on the other node; - reads it from stdin")


def _showconf_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", metavar="PEER", help="a name, a guest, an edge, a key or the beginning of one")


def _ping_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("peer", metavar="PEER", help="a node or another peer: a name, a key or the beginning of one")
    parser.add_argument("--count", metavar="N", type=int, default=10, help="probes at most, one a second (10)")


def _graph_options(parser: argparse.ArgumentParser) -> None:
    _watch_options(parser)
    parser.add_argument("--svg", action="store_true", help="SVG, for browsers, instead of DOT, for Graphviz")


def _ui_options(parser: argparse.ArgumentParser) -> None:
    words = "a loopback address and a port, 0 for a free one (%(default)s)"
    parser.add_argument("--listen", metavar="ADDRESS:PORT", default="127.0.0.1:9475", help=words)
    parser.add_argument("--socket", metavar="PATH", type=absolute, help="a Unix socket instead")


def _explain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("code", metavar="CODE", nargs="?", default="", help="a code of problems.md or errors.md")


def _listing_options(parser: argparse.ArgumentParser) -> None:
    _watch_options(parser)
    form = "wide: every column whole, whatever the terminal; json: as --json"
    parser.add_argument("-o", dest="output_form", choices=("wide", "json"), help=form)
    parser.add_argument("--service", metavar="NAME", help="only of this service")


def _members_options(parser: argparse.ArgumentParser) -> None:
    _listing_options(parser)
    words = "only of this isolation network (`-n ''` is one of that name, `-n -` the flat mesh)"
    parser.add_argument("-n", "--network", metavar="NAME", help=words)


def _peers_options(parser: argparse.ArgumentParser) -> None:
    _listing_options(parser)
    parser.add_argument("--node", metavar="NAME", help="only this peer: a name, or the beginning of a key")


def _watch_options(parser: argparse.ArgumentParser, only: str = "") -> None:
    words = "print it again whenever it has changed, until Ctrl-C"
    parser.add_argument("--watch", action="store_true", help=words + only)


def _status_options(parser: argparse.ArgumentParser) -> None:
    _watch_options(parser)
    parser.add_argument("--wait", action="store_true", help="until a daemon answers and there is no problem")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=60.0, help="of --wait; then the exit code is 1 or 3 (60)"
    )


def _log_level_options(parser: argparse.ArgumentParser) -> None:
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("level", metavar="LEVEL", nargs="?", default="", choices=("", *levels), help=", ".join(levels))


def of_install(parser: argparse.ArgumentParser) -> None:
    from cni.cli import install

    parser.description = install.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "An option that is not given means what it was at the last installation; the default is in brackets."
    )
    places(parser)
    parser.add_argument("--cni-version", choices=("1.0.0", "1.1.0"), help="of the network list (1.0.0)")
    parser.add_argument("--network", metavar="NAME", help="the network's name (zlayer)")
    parser.add_argument(
        "--service",
        action=argparse.BooleanOptionalAction,
        help="a systemd unit; without one the plugin starts the daemon",
    )
    parser.add_argument("--force", action="store_true", help="replace a network list that was changed by hand")


def of_uninstall(parser: argparse.ArgumentParser) -> None:
    places(parser)
    parser.add_argument("--force", action="store_true", help="also if attached containers lose their network")
    parser.add_argument("--purge", action="store_true", help="remove the data directory too, with the node's identity")


def of_pod(parser: argparse.ArgumentParser) -> None:
    parser.description = "A step of a container of Kubernetes' DaemonSet (docs/kubernetes.md)."
    steps = "install: the program and the plugin; engine: userspace WireGuard; live, ready: probes; remove: all of it"
    parser.add_argument("step", choices=("install", "engine", "live", "ready", "remove"), help=steps)
    places(parser, "--bin-dir", "--conf-dir", "--program-dir", "--run-dir", "--data-dir")
    parser.set_defaults(root="/")


def places(parser: argparse.ArgumentParser, *only: str) -> None:
    """The options for directories; `only` these, if there are any."""
    for option, default, text in (
        ("--bin-dir", defaults.BIN_DIR, "where the runtime looks for plugins"),
        ("--conf-dir", defaults.CONF_DIR, "where the runtime looks for network lists"),
        ("--program-dir", defaults.PROGRAM_DIR, "where the unpacked program goes, a directory for each version"),
        ("--run-dir", defaults.RUN_DIR, "sockets and records"),
        ("--data-dir", defaults.DATA_DIR, "identity and settings"),
        ("--root", "/", "prefix for all of them: an image, or a test"),
    ):
        if only and option not in only:
            continue
        kind = os.path.abspath if option == "--root" else absolute
        kept = default if option in ("--root", "--program-dir") else None  # the record of the installation has the rest
        parser.add_argument(option, metavar="DIR", type=kind, default=kept, help=f"{text} ({default})")


OF_COMMANDS = {
    "status": _status_options,
    "attachments": _members_options,
    "networks": _members_options,
    "peers": _peers_options,
    "explain": _explain_options,
    "log-level": _log_level_options,
    "why": _watched_why_options,
    "drops": _drops_options,
    "resolve": _resolve_options,
    "connectivity": _connectivity_options,
    "trace": _trace_options,
    "attach": _attach_options,
    "detach": _detach_options,
    "plan": _plan_options,
    "bundle": _bundle_options,
    "doctor": _doctor_options,
    "gc": _gc_options,
    "peer": _peer_options,
    "join": _join_options,
    "showconf": _showconf_options,
    "graph": _graph_options,
    "ui": _ui_options,
    "ping": _ping_options,
}
"""The options of a command, by its word."""
