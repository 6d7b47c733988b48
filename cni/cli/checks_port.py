"""The doctor's check of WireGuard's port: whether the host's own iptables let the packets of peers in. Pure.

The packet in question is UDP to the port, of a new flow, from any machine, by any device but lo. A condition that is
not evaluated here may match or not; only what is dropped in every case counts as closed.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from cni.cli.checks_machine import Finding

_DEPTH = 16  # jumps within jumps; the kernel allows as many
_VERDICTS = {"ACCEPT": "accept", "DROP": "drop", "REJECT": "drop", "RETURN": "return"}
_HARMLESS = {"-A": 1, "-m": 1, "--comment": 1, "-j": 1, "-g": 1, "--reject-with": 1}
"""Options that restrict nothing, with the number of their arguments."""


def wireguard_port(port: int, tables: Mapping[str, Sequence[str]]) -> Finding:
    """Whether peers can call this node. `tables`: the output of `-S` of iptables and ip6tables."""
    closed = [tool for tool, lines in tables.items() if _is_closed(port, lines)]
    if not closed:
        return Finding("wireguard", "ok", f"iptables lets UDP to port {port} in: other nodes can call this one")
    text = f"INPUT of {' and '.join(closed)} drops UDP to port {port}: other nodes cannot call this one"
    fix = f"allow it, for instance: {closed[0]} -I INPUT -p udp --dport {port} -j ACCEPT"
    return Finding("wireguard", "fail", text, fix)


def _is_closed(port: int, lines: Sequence[str]) -> bool:
    policy = next((line.split()[2] for line in lines if line.startswith("-P INPUT ")), "ACCEPT")
    ends = _ends(port, lines, "INPUT", 0)
    return "accept" not in ends and ("pass" not in ends or policy != "ACCEPT")


def _ends(port: int, lines: Sequence[str], chain: str, depth: int) -> frozenset[str]:
    """What may become of the packet in a chain: accept, drop, or pass (back to the caller)."""
    ends: set[str] = set()
    for words in (shlex.split(line) for line in lines if line.startswith(f"-A {chain} ")):
        matches = _matches(port, words)
        if matches is False:
            continue
        target = next((words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-j", "-g")), "")
        verdict = _VERDICTS.get(target, "")
        is_chain = not verdict and depth < _DEPTH and f"-N {target}" in lines
        inner = _ends(port, lines, target, depth + 1) if is_chain else frozenset({verdict or "pass"})
        leaves = verdict == "return" or "-g" in words
        ends |= inner - {"pass", "return"} | ({"pass"} if leaves and inner & {"pass", "return"} else set())
        if matches and (leaves or "pass" not in inner):
            return frozenset(ends)
    return frozenset(ends | {"pass"})


def _matches(port: int, words: Sequence[str]) -> bool | None:
    """Whether the packet meets a rule's conditions; None: perhaps."""
    answers: list[bool | None] = []
    at = 0
    while at < len(words):
        word, value = words[at], words[at + 1] if at + 1 < len(words) else ""
        if word in ("-p", "--protocol"):
            answers.append(value in ("udp", "17", "all"))
        elif word == "-i":
            answers.append(False if value == "lo" else None)
        elif word in ("--dport", "--dports"):
            answers.append(any(_has(part, port) for part in value.split(",")))
        elif word in ("--ctstate", "--state"):
            answers.append("NEW" in value.split(","))
        elif word not in _HARMLESS:
            answers.append(None)
        at += 2
        if word == "!":
            answers.append(None)
            at += 1
    return False if False in answers else None if None in answers else True


def _has(part: str, port: int) -> bool:
    first, _, last = part.partition(":")
    return int(first or 0) <= port <= int(last or first or 0) if part.replace(":", "").isdigit() else False
