"""`zlayer-cni peer token|rotate|remove|gone|forget`, `join TOKEN`, `showconf PEER`: manual changes of peers."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from cni.cli.ask import ask


def run(options: argparse.Namespace) -> int:
    """Run the subcommand after `peer`; raises NoDaemon, Refused."""
    if options.what in ("remove", "forget") and not options.peer:
        sys.stderr.write(f"zlayer-cni: peer {options.what}: which PEER? `zlayer-cni peers` and `peer gone` name them\n")
        return 2
    match options.what:
        case "token":
            found = ask(options.run_dir, "token")
            _print(options, found, found["token"] + "\n")
        case "rotate":
            found = ask(options.run_dir, "peer-rotate")
            _print(options, found, found["public_key"] + "\n")
            if not found["cluster"] and not options.json:
                sys.stderr.write("the other nodes must be told: take a new `peer token` to each\n")
        case "gone":
            found = ask(options.run_dir, "peer-gone")
            _print(options, found, _gone(found))
        case "forget":
            found = ask(options.run_dir, "peer-forget", peer=options.peer)
            _print(options, found, f"forgot {_who(found)}: {found['holds']} claims are free\n")
        case _:
            found = ask(options.run_dir, "peer-remove", peer=options.peer)
            _print(options, found, f"removed {found['public_key']}\n")
    return 0


def _gone(found: list[dict[str, Any]]) -> str:
    if not found:
        return "every node that holds something in etcd is heard of\n"
    lines = [f"{_who(each)}  {each['holds']} claims" for each in found]
    return "\n".join(lines) + "\n"


def _who(gone: dict[str, Any]) -> str:
    name = f" {gone['name']}" if gone["name"] else ""
    return f"node {gone['node_id'] or '-'}{name} ({gone['identity']})"


def join(options: argparse.Namespace) -> int:
    """Join by a token; print the command for the other node."""
    token = sys.stdin.read() if options.token == "-" else options.token
    found = ask(options.run_dir, "join", token=token)
    text = f"joined {found['name']} ({found['public_key']})\n"
    if not options.json:
        sys.stderr.write("now on the other node, unless that is done:\n")
        text += f"zlayer-cni join {found['token']}\n"
    _print(options, found, text)
    return 0


def showconf(options: argparse.Namespace) -> int:
    """Print a configuration for wg-quick. That of a guest holds the guest's private key: it must be kept secret."""
    found = ask(options.run_dir, "showconf", peer=options.peer)
    _print(options, found, found["text"])
    return 0


def _print(options: argparse.Namespace, found: object, text: str) -> None:
    sys.stdout.write(json.dumps(found, indent=2) + "\n" if options.json else text)
