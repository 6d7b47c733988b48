"""The only rules outside our tables: a chain and a jump in iptables' filter table.

On a host whose FORWARD policy denies (Docker, ufw), no table of ours can let a container's packet through; only a rule
in that table can. So one chain accepts packets from or to the overlay's devices that have an overlay address, and one
jump leads to it from the top of FORWARD. It matches interface and address both: an overlay address on the uplink is
accepted for no device. It matches the devices' name prefix, so that it is written once. It opens nothing that the fence
closes: a drop in any table is final.

The rules are written through `iptables` and `ip6tables`, whichever kind (nft or legacy) the host uses for its own
rules, and through the other kind where that denies as well. Without iptables there is no such policy to override.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from cni.errors import FenceFailed
from cni.host import xtables

CHAIN = "ZLAYER-CNI"
DEVICES = ("zl-+",)  # every bridge and WireGuard device of the overlay (contract 4.2)
_COMMENT = "zlayer-cni: containers of the overlay"
_DENY_ALL = ("-A FORWARD -j DROP", "-A FORWARD -j REJECT")  # the last rule of Red Hat's old firewalls
_WAIT = "5"  # seconds to wait for the lock that every iptables on the machine takes


class IptablesError(FenceFailed):
    """iptables refused; `details` is its message."""


def forward_rules(cluster: str, devices: Sequence[str] = DEVICES) -> list[str]:
    """The chain's rules for one family: packets that enter or leave the overlay's devices with an overlay address.

    `devices` in iptables' spelling: a `+` at the end matches any suffix. Pure.
    """
    cluster, rules = str(ip_network(cluster)), []
    for device in devices:
        rules.append(f"-A {CHAIN} -s {cluster} -i {device} -j ACCEPT")
        rules.append(f"-A {CHAIN} -d {cluster} -o {device} -j ACCEPT")
    return rules


def ensure_forward_accept(clusters: Iterable[str], devices: Sequence[str] = DEVICES) -> bool:
    """Creates or corrects chain and jump in each family of `clusters`; True if anything had to be written.

    Idempotent; a host without iptables is left alone. Raises IptablesError.
    """
    wrote = False
    for cluster in clusters:
        rules = forward_rules(cluster, devices)
        for tool in _tools(cluster):
            if (tool == _tool(cluster) or _denies(tool)) and _saved(tool) != (rules, True):
                _fill(tool, rules)
                wrote = True
    return wrote


def remove_forward_accept() -> None:
    """Deletes jump and chain, in both families. Idempotent. Raises IptablesError."""
    for tool in (*_tools("0.0.0.0/0"), *_tools("::/0")):
        while _succeeds(tool, "-C", "FORWARD", *_jump()):
            _run(tool, "-D", "FORWARD", *_jump())
        if _succeeds(tool, "-S", CHAIN):
            _run(tool, "-F", CHAIN)
            _run(tool, "-X", CHAIN)


def forward_in_place(clusters: Iterable[str], devices: Sequence[str] = DEVICES) -> bool:
    """Whether `ensure_forward_accept` would have nothing to write. Raises IptablesError."""
    return all(
        shutil.which(tool := _tool(cluster)) is None or _saved(tool) == (forward_rules(cluster, devices), True)
        for cluster in clusters
    )


def forward_denies(clusters: Iterable[str]) -> bool:
    """Whether iptables' FORWARD drops packets that no rule accepts, by policy or by a last rule, in a family of
    `clusters`.

    Raises IptablesError.
    """
    return any(_denies(tool) for cluster in clusters for tool in _tools(cluster))


def denying_chains(listing: Mapping[str, Any]) -> list[str]:
    """Other programs' native nftables chains that drop forwarded or incoming packets by policy, as `family table
    chain`.

    `listing` is `Nft.list_base_chains()`. No other table can override such a chain: `status` and `doctor` name them.
    iptables' own chains (tables `filter` of family ip and ip6) are not among them.
    """
    chains = [item["chain"] for item in listing.get("nftables", ()) if "chain" in item]
    return sorted(
        f"{c['family']} {c['table']} {c['name']}"
        for c in chains
        if c.get("hook") in ("forward", "input")
        and c.get("policy") == "drop"
        and not (c["family"] in ("ip", "ip6") and c["table"] == "filter" and c["name"] in ("FORWARD", "INPUT"))
    )


def rules(tool: str, chain: str = "", table: str = "filter") -> list[str]:
    """The output of `tool -S`: the rules of a chain, or of the whole table, as options that would create them. Raises
    IptablesError where the tool is missing or refuses.
    """
    return _run(tool, "-t", table, "-S", *([chain] if chain else ())).splitlines()


def of_both_families(chain: str = "", table: str = "filter") -> dict[str, list[str]]:
    """`rules` of iptables and of ip6tables, where they exist and answer."""
    listed = {}
    for tool in ("iptables", "ip6tables"):
        with contextlib.suppress(IptablesError):
            listed[tool] = rules(tool, chain, table)
    return listed


def _fill(tool: str, rules: Sequence[str]) -> None:
    """Writes the chain in one transaction (iptables-restore), then the jump, as the first rule of FORWARD."""
    text = "\n".join(["*filter", f":{CHAIN} - [0:0]", *rules, "COMMIT", ""])
    _run(f"{tool}-restore", "--noflush", stdin=text)
    if not _succeeds(tool, "-C", "FORWARD", *_jump()):
        _run(tool, "-I", "FORWARD", "1", *_jump())


def _saved(tool: str) -> tuple[list[str], bool]:
    """The chain's present rules, and whether the jump exists."""
    lines = rules(tool)
    return (
        [line for line in lines if line.startswith(f"-A {CHAIN} ")],
        any(line.startswith("-A FORWARD ") and line.endswith(f"-j {CHAIN}") for line in lines),
    )


def _jump() -> tuple[str, ...]:
    return ("-m", "comment", "--comment", _COMMENT, "-j", CHAIN)


def _denies(tool: str) -> bool:
    lines = rules(tool, "FORWARD")
    return "-P FORWARD DROP" in lines or bool(lines and lines[-1].startswith(_DENY_ALL))


def _tools(cluster: str) -> list[str]:
    """The host's own tool for the family of `cluster`, and the other kind, if that has a FORWARD of its own."""
    own = _tool(cluster)
    path = shutil.which(own)
    tools = [own] if path is not None else []
    legacy = path is not None and "legacy" in Path(path).resolve().name
    if not legacy and xtables.present(6 if own == "ip6tables" else 4):
        tools.append(f"{own}-legacy")
    if legacy:
        tools.append(f"{own}-nft")
    return [tool for tool in tools if shutil.which(tool) is not None]


def _tool(cluster: str) -> str:
    return "ip6tables" if ":" in cluster else "iptables"


def _succeeds(*command: str) -> bool:
    try:
        _run(*command)
    except IptablesError:
        return False
    return True


def _run(tool: str, *arguments: str, stdin: str = "") -> str:
    command = [tool, "-w", _WAIT, *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IptablesError(f"{tool} could not be run", str(error)) from error
    if done.returncode:
        raise IptablesError(f"{tool} refused", done.stderr.strip())
    return done.stdout
