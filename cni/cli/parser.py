"""The parser of the command line: the commands, each with its line of help."""

from __future__ import annotations

import argparse

from cni import __version__, defaults
from cni.cli import options

EXIT_CODES = """\
exit codes:
  0  success; no problem
  1  a problem or a failure, which the output names
  2  the command line is invalid, or a file cannot be read
  3  no overlay daemon runs on that run directory

A container runtime runs this same program with CNI_COMMAND set; `zlayer-cni overlayd --help` is about the daemon.
"""

_COMPLETION = "Print a shell's completion: `source <(zlayer-cni completion bash)`."


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
        ("ui", "a page that shows the node, live, for a browser on this machine; it changes nothing"),
        ("graph", "this node, its tunnels and services as a picture"),
    ):
        command = words.add_parser(word, help=text, description=text)
        command.add_argument("--json", action="store_true", help="for programs: a stable JSON document")
        command.add_argument(
            "--run-dir", metavar="DIR", type=options.absolute, default=defaults.RUN_DIR, help="default: %(default)s"
        )
        options.OF_COMMANDS.get(word, lambda _: None)(command)
    _without_daemon(words)
    validate = words.add_parser(
        "validate", help="check a network list, an entry of one, the daemon's YAML, or network policies"
    )
    validate.add_argument("file", metavar="FILE")
    where = "where the plugins of a list must be (the runtime's directory, if this program is installed there)"
    validate.add_argument("--bin-dir", metavar="DIR", type=options.absolute, help=where)
    validate.add_argument("--json", action="store_true", help="for programs: a stable JSON document")
    options.of_install(
        words.add_parser("install", help="put the program, the systemd unit and the network list in place")
    )
    options.of_uninstall(words.add_parser("uninstall", help="remove what install put in place"))
    options.of_pod(words.add_parser("pod", help="what the containers of Kubernetes' DaemonSet run"))
    for word, text in (
        ("start", "start the daemon, by systemd if it has a unit, unless it runs"),
        ("restart", "start the daemon anew, if a new one can start; running containers stay connected"),
    ):
        command = words.add_parser(word, help=text, description=text)
        options.places(command, "--run-dir", "--data-dir", "--program-dir")
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
