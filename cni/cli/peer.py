"""`zlayer-cni peer token|rotate|remove|gone|forget`, `join TOKEN`, `showconf PEER`: manual changes of peers."""

from __future__ import annotations

import argparse
import sys

from cni import answers, plugin_protocol
from cni.cli.ask import ask, print_json


def run(options: argparse.Namespace) -> int:
    """Run the subcommand after `peer`; raises NoDaemon, Refused."""
    if options.what in ("remove", "forget") and not options.peer:
        sys.stderr.write(f"zlayer-cni: peer {options.what}: which PEER? `zlayer-cni peers` and `peer gone` name them\n")
        return 2
    match options.what:
        case "token":
            token = ask(options.run_dir, "token", answers.Token)
            _print(options, token, token.token + "\n")
        case "rotate":
            key = ask(options.run_dir, "peer-rotate", answers.RotatedKey)
            _print(options, key, key.public_key + "\n")
            if not key.cluster and not options.json:
                sys.stderr.write("the other nodes need the new key: run `zlayer-cni join` there with a new token\n")
        case "gone":
            departed = ask(options.run_dir, "peer-gone", list[answers.DepartedNode])
            _print(options, departed, _gone(departed))
        case "forget":
            node = ask(options.run_dir, "peer-forget", answers.DepartedNode, {plugin_protocol.PEER: options.peer})
            _print(options, node, f"forgot {_label(node)}: {node.holds} claims are released\n")
        case _:
            removed = ask(options.run_dir, "peer-remove", answers.RemovedPeer, {plugin_protocol.PEER: options.peer})
            _print(options, removed, f"removed {removed.public_key}\n")
    return 0


def _gone(departed: list[answers.DepartedNode]) -> str:
    if not departed:
        return "every node with claims in etcd publishes a document\n"
    return "".join(f"{_label(node)}  {node.holds} claims\n" for node in departed)


def _label(node: answers.DepartedNode) -> str:
    name = f" {node.name}" if node.name else ""
    return f"node {node.node_id or '-'}{name} ({node.identity})"


def join(options: argparse.Namespace) -> int:
    """Join by a token; print the command for the other node."""
    token = sys.stdin.read() if options.token == "-" else options.token
    joined = ask(options.run_dir, "join", answers.Joined, {plugin_protocol.TOKEN: token})
    text = f"joined {joined.name} ({joined.public_key})\n"
    if not options.json:
        sys.stderr.write("run this on the other node, unless it has joined already:\n")
        text += f"zlayer-cni join {joined.token}\n"
    _print(options, joined, text)
    return 0


def showconf(options: argparse.Namespace) -> int:
    """Print a configuration for wg-quick. That of a guest holds the guest's private key: it must be kept secret."""
    configuration = ask(options.run_dir, "showconf", answers.PeerConfiguration, {plugin_protocol.PEER: options.peer})
    _print(options, configuration, configuration.text)
    return 0


def _print(options: argparse.Namespace, answer: object, text: str) -> None:
    if options.json:
        print_json(answer)
    else:
        sys.stdout.write(text)
