"""The only rules outside our tables: a chain and a jump in iptables' filter table.

On a host whose FORWARD denies (Docker, ufw), no table of ours can let a container's packet through; only a rule in that
table can. So one chain accepts packets from or to the overlay's devices that have an overlay address, and one jump
leads to it. It stands directly before the first rule that drops every forwarded packet, whatever that rule's form is,
else at the chain's end: what a rule before it drops on conditions stays dropped. The chain matches interface and
address both: an overlay address on the uplink is accepted for no device. It matches the devices' name prefix, so that
it is written once. It opens nothing that the fence closes: a drop in any table is final.

The rules are written through `iptables` and `ip6tables`, whichever kind (nft or legacy) the host uses for its own
rules, and through the other kind where that denies as well. Without iptables there is no such policy to override.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path
from typing import NamedTuple

from cni.errors import FenceFailed
from cni.host import iptables_rules, xtables
from cni.host.forward_rules import Flow, Position, denial, drops_before

CHAIN = "ZLAYER-CNI"
DEVICES = ("zl-+",)  # every bridge and WireGuard device of the overlay (contract 4.2)
_COMMENT = "zlayer-cni: containers of the overlay"
_OTHER_TABLES = ("raw", "mangle", "security")  # beside filter, and nat, which drops nothing
_PASSED = ("PREROUTING", "FORWARD", "POSTROUTING")  # what a container's packet passes, as far as a table has it
_WAIT = "5"  # seconds to wait for the lock that every iptables on the machine takes


class IptablesError(FenceFailed):
    """iptables refused; `details` is its message."""


class Opened(NamedTuple):
    """What `ensure_forward_accept` did: whether anything had to be written, and the chains that decide on forwarded
    packets: FORWARD, those that it leads to, and ours.
    """

    wrote: bool
    chains: frozenset[str]


def forward_rules(cluster: str, devices: Sequence[str] = DEVICES) -> list[str]:
    """The chain's rules for one family: packets that enter or leave the overlay's devices with an overlay address.

    `devices` in iptables' spelling: a `+` at the end matches any suffix. Pure.
    """
    cluster, rules = str(ip_network(cluster)), []
    for device in devices:
        rules.append(f"-A {CHAIN} -s {cluster} -i {device} -j ACCEPT")
        rules.append(f"-A {CHAIN} -d {cluster} -o {device} -j ACCEPT")
    return rules


def ensure_forward_accept(clusters: Iterable[str], devices: Sequence[str] = DEVICES) -> Opened:
    """Creates or corrects chain and jump, in each table of FORWARD that denies or has a jump.

    Idempotent; a host without iptables is left alone. Raises IptablesError.
    """
    wrote, chains = False, {"FORWARD", CHAIN}
    for cluster in clusters:
        accepting = forward_rules(cluster, devices)
        for tool in _tools(cluster):
            lines = rules(tool)
            chains |= iptables_rules.parse(lines).reached("FORWARD")
            if not _is_right(lines, accepting):
                _run(f"{tool}-restore", "--noflush", stdin=_correction(lines, accepting))
                wrote = True
    return Opened(wrote, frozenset(chains))


def remove_forward_accept() -> None:
    """Deletes jumps and chain, in both families. Idempotent. Raises IptablesError."""
    for tool in (*_tools("0.0.0.0/0"), *_tools("::/0")):
        lines = rules(tool)
        if f"-N {CHAIN}" in lines:
            text = [*_deletions(lines), f"-F {CHAIN}", f"-X {CHAIN}"]
            _run(f"{tool}-restore", "--noflush", stdin="\n".join(["*filter", *text, "COMMIT", ""]))


def forward_in_place(clusters: Iterable[str], devices: Sequence[str] = DEVICES) -> bool:
    """Whether `ensure_forward_accept` would have nothing to write. Raises IptablesError."""
    return all(
        _is_right(rules(tool), forward_rules(cluster, devices)) for cluster in clusters for tool in _tools(cluster)
    )


def forward_denies(clusters: Iterable[str]) -> bool:
    """Whether iptables' FORWARD drops every packet that no rule accepts, by policy or by a rule of whatever form, in a
    family of `clusters`.

    Raises IptablesError.
    """
    return any(_place(rules(tool))[1] for cluster in clusters for tool in _tools(cluster))


def forward_drops(clusters: Iterable[str], devices: Sequence[str] = DEVICES) -> list[str]:
    """The rules before our jump that may drop packets of containers, as `tool: rule`. They stay in force.

    Raises IptablesError.
    """
    dropping_rules: dict[str, None] = {}
    for cluster in clusters:
        for tool in _tools(cluster):
            table, (place, _) = _foreign(lines := rules(tool)), _place(lines)
            for device in devices:
                name = device.replace("+", "*")
                for flow in (Flow(iif=name, src=cluster), Flow(oif=name, dst=cluster)):
                    dropping = drops_before(table.rules_of, "FORWARD", flow, place)
                    dropping_rules.update(dict.fromkeys(f"{tool} {rule.text}" for rule in dropping))
    return list(dropping_rules)


def legacy_denials(clusters: Iterable[str]) -> dict[str, str]:
    """The chains of iptables-legacy's other tables that drop what containers send in a family of `clusters`: by table
    and chain, the rule, empty for the policy. Those of iptables-nft are native chains, which `nft_forward.py` reads.

    Raises IptablesError.
    """
    denials: dict[str, str] = {}
    for cluster in clusters:
        own, version = _tool(cluster), 6 if ":" in cluster else 4
        tool = own if "legacy" in _kind_of(own) else f"{own}-legacy"
        tables = [table for table in _OTHER_TABLES if xtables.exists(version, table)]
        for table in tables if shutil.which(tool) is not None else ():
            lines = rules(tool, table=table)
            chains, flow = iptables_rules.parse(lines), Flow(iif=DEVICES[0].replace("+", "*"), src=cluster)
            for chain in _PASSED:
                place = denial(chains.rules_of, chain, flow)
                at_end = place == Position(chain, len(chains.rules_of(chain)), None)
                if place.rule is not None or (at_end and f"-P {chain} DROP" in lines):
                    denials[f"{tool} {table} {place.chain}"] = place.rule.text if place.rule is not None else ""
    return denials


def describe_denial(chain: str, rule: str) -> str:
    """What drops, and what lets it through, of one of `legacy_denials`."""
    how = f"by its rule `{rule}`" if rule else "by policy"
    tool, table, name = chain.split()
    text = f"the chain {name} of the table {table} of {tool} drops what containers send, {how}"
    return f"{text}; accept the overlay's range in that chain before"


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


def filters() -> dict[str, list[str]]:
    """The output of `-S` of every kind of iptables that has a table filter, in both families; a command that fails is
    left out."""
    listed = {}
    for tool in (*_tools("0.0.0.0/0"), *_tools("::/0")):
        with contextlib.suppress(IptablesError):
            listed[tool] = rules(tool)
    return listed


def _foreign(lines: Sequence[str]) -> iptables_rules.Table:
    return iptables_rules.without(iptables_rules.parse(lines), CHAIN)


def _place(lines: Sequence[str]) -> tuple[Position, bool]:
    """Where our jump belongs, counted without it, and whether FORWARD denies."""
    table = _foreign(lines)
    place = denial(table.rules_of, "FORWARD", Flow(), table.is_only_forwards)
    at_end = place == Position("FORWARD", len(table.rules_of("FORWARD")), None)
    return place, place.rule is not None or (at_end and table.denies_by_policy)


def _is_right(lines: Sequence[str], accepting: Sequence[str]) -> bool:
    jumps = iptables_rules.places_of(iptables_rules.parse(lines), CHAIN)
    place, denies = _place(lines)
    if not jumps and not denies:
        return True
    present = [line for line in lines if line.startswith(f"-A {CHAIN} ")]
    return present == list(accepting) and [jump[:2] for jump in jumps] == [place[:2]]


def _correction(lines: Sequence[str], accepting: Sequence[str]) -> str:
    """Chain and jump as one transaction of iptables-restore."""
    place, _ = _place(lines)
    jump = f'-I {place.chain} {place.at + 1} -m comment --comment "{_COMMENT}" -j {CHAIN}'
    return "\n".join(["*filter", f":{CHAIN} - [0:0]", *accepting, *_deletions(lines), jump, "COMMIT", ""])


def _deletions(lines: Sequence[str]) -> list[str]:
    """What deletes our jumps."""
    jumps = iptables_rules.places_of(iptables_rules.parse(lines), CHAIN)
    return [jump.rule.text.replace("-A ", "-D ", 1) for jump in jumps if jump.rule is not None]


def _tools(cluster: str) -> list[str]:
    """The host's own tool for the family of `cluster`, and the other kind, if that has a FORWARD of its own."""
    own = _tool(cluster)
    kind = _kind_of(own)
    tools = [own] if kind else []
    legacy = "legacy" in kind
    if not legacy and xtables.present(6 if own == "ip6tables" else 4):
        tools.append(f"{own}-legacy")
    if legacy:
        tools.append(f"{own}-nft")
    return [tool for tool in tools if shutil.which(tool) is not None]


def _kind_of(tool: str) -> str:
    """The name of the program behind a tool, which tells its kind; empty without one."""
    path = shutil.which(tool)
    return Path(path).resolve().name if path is not None else ""


def _tool(cluster: str) -> str:
    return "ip6tables" if ":" in cluster else "iptables"


def _run(tool: str, *arguments: str, stdin: str = "") -> str:
    command = [tool, "-w", _WAIT, *arguments]
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise IptablesError(f"{tool} could not be run", str(error)) from error
    if done.returncode:
        raise IptablesError(f"{tool} refused", done.stderr.strip())
    return done.stdout
