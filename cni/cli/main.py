"""The operator's tool: a file for each command. Results go to stdout, messages to stderr; `--json` is for programs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from cni import __version__, defaults
from cni.cli import ask, commands

EXIT_CODES = """\
exit codes:
  0  success; no problem
  1  a problem or a failure, which the output names
  2  the command line is invalid, or a file cannot be read
  3  no overlay daemon runs on that run directory

A container runtime runs this same program with CNI_COMMAND set; `zlayer-cni overlayd --help` is about the daemon.
"""

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


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line but `overlayd`, whose options are the daemon's."""
    whole = argparse.ArgumentParser(
        prog="zlayer-cni",
        description=f"zlayer-cni {__version__}: containers on a WireGuard overlay.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"zlayer-cni {__version__}", help="print the version")
    words = whole.add_subparsers(dest="command", metavar="COMMAND", required=True)
    words.add_parser("overlayd", help="run the overlay daemon", add_help=False)
    for word, text in (
        ("status", "a summary of the node, and its problems"),
        ("attachments", "the attached containers: network, container, addresses, service"),
        ("networks", "isolation networks: their members, and the packets that the fence has dropped"),
        ("why", "whether SRC may open a flow to DST, and which rule of the fence decides"),
        ("drops", "the packets that the fence drops, as they come: source, destination, rule"),
        ("resolve", "what the node's DNS server answers about NAME, and what it withholds by which rule"),
        ("version", "the versions of this program and of the daemon that runs"),
        ("explain", "what a code means and what to do: of a problem, an error, the connectivity test; or all codes"),
        ("attach", "attach an own network namespace to a service, without a container runtime"),
        ("detach", "detach what `attach` has attached"),
        ("plan", "what an ADD with a network list would do, without doing it"),
        ("trace", "the rules that a real packet from SRC to DST meets on this node, of every program"),
        (
            "connectivity",
            "test: send packets between throwaway containers, here and on other nodes, and compare with `why`; "
            "accept: take part in other nodes' tests for ten minutes",
        ),
        ("doctor", "check the node (kernel, firewalls, routes, runtime, files, daemon) and name remedies"),
        ("gc", "release attachments whose interface is gone, now"),
        ("peers", "the WireGuard peers: endpoint, handshake, traffic, path MTU, direct or not"),
        (
            "peer",
            "token: print a token for another node; rotate: make a new key; remove PEER: remove a joined node; "
            "gone: list nodes that are gone and still hold ids or subnets; forget NODE: release what such a node holds",
        ),
        ("join", "add another node as a peer, by its token"),
        ("showconf", "a wg-quick configuration for a peer: a guest, an edge, a machine with plain WireGuard"),
        ("ping", "the path to a peer and its round trip, until the path goes through no relay (NAT traversal)"),
        ("netcheck", "what NATs and firewalls do with this node's datagrams, seen from WireGuard's port"),
        ("events", "what happens on the node, as it happens: one JSON object a line"),
        ("metrics", "one scrape of the daemon's metrics, in Prometheus' text format"),
        ("log-level", "print the level of the running daemon's log, or change it until the next start"),
        ("bundle", "one archive for a bug report, made of what may go in: no key, token, log or free text"),
        ("graph", "this node, its tunnels and services as a picture"),
    ):
        command = words.add_parser(word, help=text, description=text)
        command.add_argument("--json", action="store_true", help="for programs: a stable JSON document")
        command.add_argument(
            "--run-dir", metavar="DIR", type=absolute, default=defaults.RUN_DIR, help="default: %(default)s"
        )
        _OPTIONS.get(word, lambda _: None)(command)
    _without_daemon(words)
    validate = words.add_parser("validate", help="check a network list, an entry of one, or the daemon's YAML")
    validate.add_argument("file", metavar="FILE")
    where = "where the plugins of a list must be (the runtime's directory, if this program is installed there)"
    validate.add_argument("--bin-dir", metavar="DIR", type=absolute, help=where)
    validate.add_argument("--json", action="store_true", help="for programs: a stable JSON document")
    _install_options(
        words.add_parser("install", help="put the program, the systemd unit and the network list in place")
    )
    _uninstall_options(words.add_parser("uninstall", help="remove what install put in place"))
    for word, text in (
        ("start", "start the daemon, by systemd if it has a unit, unless it runs"),
        ("restart", "start the daemon anew, if a new one can start; running containers stay connected"),
    ):
        command = words.add_parser(word, help=text, description=text)
        _places(command, "--run-dir", "--data-dir", "--program-dir")
        command.set_defaults(root="/", conf_dir=None)
    return whole


def _without_daemon(words: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The commands about the tool itself."""
    completion = words.add_parser("completion", help="print a shell's completion", description=_COMPLETION)
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), help="for which shell")
    manual = words.add_parser("man", help="print a manual page", description="Print a manual page: `man -l FILE`.")
    manual.add_argument("page", metavar="COMMAND", nargs="?", default="", help="of a command (the whole tool)")
    helping = words.add_parser("help", help="the help of a command", description="The same as COMMAND --help.")
    helping.add_argument("page", metavar="COMMAND", nargs="?", default="")


_COMPLETION = "Print a shell's completion: `source <(zlayer-cni completion bash)`."


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


def _resolve_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a name, with or without the zone, or a reverse name")
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


def _peer_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("token", "rotate", "remove", "gone", "forget"), help="what to do")
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
    parser.add_argument("--svg", action="store_true", help="SVG, for browsers, instead of DOT, for Graphviz")


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


def _watch_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--watch", action="store_true", help="print it again whenever it has changed, until Ctrl-C")


def _status_options(parser: argparse.ArgumentParser) -> None:
    _watch_options(parser)
    parser.add_argument("--wait", action="store_true", help="until a daemon answers and there is no problem")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, default=60.0, help="of --wait; then the exit code is 1 or 3 (60)"
    )


def _log_level_options(parser: argparse.ArgumentParser) -> None:
    levels = ("debug", "info", "warning", "error")
    parser.add_argument("level", metavar="LEVEL", nargs="?", default="", choices=("", *levels), help=", ".join(levels))


_OPTIONS = {
    "status": _status_options,
    "attachments": _members_options,
    "networks": _members_options,
    "peers": _peers_options,
    "explain": _explain_options,
    "log-level": _log_level_options,
    "why": _why_options,
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
    "ping": _ping_options,
}


def _install_options(parser: argparse.ArgumentParser) -> None:
    from cni.cli import install

    parser.description = install.__doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "An option that is not given means what it was at the last installation; the default is in brackets."
    )
    _places(parser)
    parser.add_argument("--cni-version", choices=("1.0.0", "1.1.0"), help="of the network list (1.0.0)")
    parser.add_argument("--network", metavar="NAME", help="the network's name (zlayer)")
    parser.add_argument(
        "--service",
        action=argparse.BooleanOptionalAction,
        help="a systemd unit; without one the plugin starts the daemon",
    )
    parser.add_argument("--force", action="store_true", help="replace a network list that was changed by hand")


def _uninstall_options(parser: argparse.ArgumentParser) -> None:
    _places(parser)
    parser.add_argument("--force", action="store_true", help="also if attached containers lose their network")
    parser.add_argument("--purge", action="store_true", help="remove the data directory too, with the node's identity")


def _places(parser: argparse.ArgumentParser, *only: str) -> None:
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
