"""`zlayer-cni attach` and `detach`: an operator's own network namespace on the overlay, without a container runtime.
Exit code 0, 1 if the plugin refuses, 3 without a daemon."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from cni import answers
from cni.cli import ask, plugin_call, table

NETWORK = "zlayer-operator"
NAMED = "/run/netns"


def attach(options: argparse.Namespace) -> int:
    """Attach the namespace, and print its addresses. Raises NoDaemon, Refused, OSError."""
    path = namespace_of(options.namespace)
    result = _call(options, "ADD", path, _conf(options))
    ips = [str(each["address"]) for each in result.get("ips", ())]
    if options.json:
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
    else:
        sys.stdout.write(f"{container_of(options)}/{options.ifname} in {path}: {', '.join(ips)}\n")
    return 0


def detach(options: argparse.Namespace) -> int:
    """Detach it, with what the daemon has recorded of it; the namespace may be gone. Raises NoDaemon, Refused."""
    name = container_of(options)
    attached = ask.ask(options.run_dir, "attachments", list[answers.Attachment])
    own = (NETWORK, name, options.ifname)
    mine = next((a for a in attached if (a.network, a.container_id, a.interface) == own), None)
    if mine is None:
        known = ", ".join(a.container_id for a in attached if a.network == NETWORK) or "none"
        raise ask.Refused(f"{name}/{options.ifname} is not attached by `attach`; attached are: {known}")
    conf = {**_place(options), "service": mine.service}
    _call(options, "DEL", mine.netns, conf)
    sys.stdout.write(f"{table.escape_control(name)}/{options.ifname} is detached\n")
    return 0


def namespace_of(word: str) -> str:
    """The path of a namespace: that of a process, of a name (`ip netns`), or the path itself. Raises Refused."""
    path = f"/proc/{word}/ns/net" if word.isdecimal() else word if word.startswith("/") else f"{NAMED}/{word}"
    if not Path(path).exists():
        raise ask.Refused(f"there is no network namespace at {path}: give a name of `ip netns`, a PID, or a path")
    return path


def container_of(options: argparse.Namespace) -> str:
    """The container id that an attachment has: `--id`, or one made of the namespace's name."""
    plain = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in options.namespace)
    return str(options.id or f"ns-{plain.strip('-.')}")


def _place(options: argparse.Namespace) -> dict[str, object]:
    status = ask.ask(options.run_dir, "status", answers.Running)
    data_dir = ask.ask(options.run_dir, "status", answers.Status).data_dir if status.pid else ""
    return {
        "cniVersion": "1.0.0",
        "name": NETWORK,
        "type": "zlayer-cni",
        "runDir": options.run_dir,
        "dataDir": data_dir,
        "autostart": False,
    }


def _conf(options: argparse.Namespace) -> dict[str, object]:
    conf = {**_place(options), "service": options.service}
    return conf if options.network is None else {**conf, "isolationNetwork": options.network}


def _call(options: argparse.Namespace, verb: str, path: str, conf: dict[str, object]) -> dict[str, Any]:
    words = plugin_call.command(options.run_dir, str(conf["dataDir"]))
    variables = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container_of(options),
        "CNI_NETNS": os.path.realpath(path) if path.startswith(NAMED) else path,
        "CNI_IFNAME": options.ifname,
    }
    try:
        return plugin_call.call(words, variables, conf)
    except plugin_call.CallFailed as error:
        raise ask.Refused(f"{verb} failed with code {error.code}: {error}") from error
