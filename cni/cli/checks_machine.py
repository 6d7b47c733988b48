"""The doctor's checks of the machine: kernel, firewalls and routes. Pure: readings in, findings out.

The readings come from `cni/host/probe.py`, collected by `cni/cli/doctor.py`; `checks_install.py` checks the
installation. A finding that is not `ok` names the remedy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]

# Capabilities in the unit file (conf/zlayer-overlayd.service gives reasons): name, number (capabilities(7)), required?
CAPABILITIES = (
    ("CAP_NET_ADMIN", 12, True),
    ("CAP_SYS_ADMIN", 21, True),
    ("CAP_SYS_PTRACE", 19, False),
    ("CAP_DAC_OVERRIDE", 1, False),
    ("CAP_NET_RAW", 13, False),
)
_CHAIN = "add table {0} t\nadd chain {0} t c {{ type filter hook {1} priority -310; policy accept; }}\n"
_INET, _BRIDGE = _CHAIN.format("inet", "forward"), _CHAIN.format("bridge", "forward")
# The nftables features that the fence uses, each tried by itself: nft text, and the kernel option that it needs.
NFTABLES = {
    "nftables, family inet": (_INET, "CONFIG_NF_TABLES_INET (modprobe nf_tables)"),
    "nftables, family bridge": (_BRIDGE, "CONFIG_NF_TABLES_BRIDGE (modprobe nf_tables)"),
    "nftables, sets and verdict maps": (
        f"{_BRIDGE}add set bridge t s {{ type ifname . ether_addr . ipv4_addr; }}\n"
        "add map bridge t m { type ifname : verdict; }\n"
        "add rule bridge t c iifname . ether saddr . ip saddr != @s counter drop\n"
        "add rule bridge t c iifname vmap @m\n",
        "nftables of Linux 5.7 or later",
    ),
    "nftables, routing lookup (fib)": (f"{_INET}add rule inet t c fib daddr type local\n", "CONFIG_NFT_FIB_INET"),
    "nftables, connection tracking (ct)": (
        f"{_INET}add rule inet t c ct direction reply ct state established,related accept\n",
        "CONFIG_NF_CONNTRACK and CONFIG_NFT_CT (modprobe nf_conntrack nft_ct)",
    ),
    "nftables, masquerade": (
        "add table inet t\nadd chain inet t n { type nat hook postrouting priority 100; policy accept; }\n"
        "add rule inet t n masquerade\n",
        "CONFIG_NFT_NAT and CONFIG_NFT_MASQ (modprobe nft_chain_nat nft_masq)",
    ),
    "nftables, MSS clamping": (
        f"{_INET}add rule inet t c tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu\n",
        "nftables of Linux 4.14 or later",
    ),
}
# Features that the fence does without: nft text, the kernel option, and what is missing then.
OPTIONAL = {
    "nftables, matching a frame by its bridge": (
        "add table bridge t\nadd set bridge t b { type ifname; }\n"
        "add chain bridge t c { type filter hook prerouting priority -310; policy accept; }\n"
        "add rule bridge t c meta ibrname @b counter drop\n",
        "CONFIG_NFT_BRIDGE_META (modprobe nft_meta_bridge)",
        "a port that another program adds to an overlay bridge under a name that does not begin with zl- is closed to"
        " containers, and not to other such ports",
    ),
}
LINKS = {"bridge": "CONFIG_BRIDGE (modprobe bridge)", "veth": "CONFIG_VETH (modprobe veth)"}
_OPTIONS = LINKS | {name: option for name, (_, option) in NFTABLES.items()}
SHOWN = 8  # rules that are named each
OURS = ("zl-", "veth-")  # devices of ours (contract 4.2)

# Programs recognised by their tables and chains: (name, tables of the families, prefixes of chain names).
FIREWALLS = (
    ("firewalld", ("firewalld",), ("FWDI_", "FORWARD_direct")),
    ("ufw", (), ("ufw-", "ufw6-")),
    ("docker", ("docker-bridges",), ("DOCKER",)),
    ("kube-proxy", ("kube-proxy",), ("KUBE-",)),
    ("libvirt", ("libvirt_network",), ("LIBVIRT_",)),
)


class Finding(NamedTuple):
    """The result of one check: the check's name, `ok`, `warn` or `fail`, a sentence, and the remedy (or "")."""

    check: str
    level: Level
    text: str
    fix: str = ""


def privileges(who: str, euid: int, effective: int, *, contained: bool = False) -> Finding:
    """Whether a process has the daemon's capabilities; `effective` is CapEff of /proc/PID/status. `contained`: it is in
    a container, which has neither files of other users nor processes of containers, and needs no capability for them.
    """
    needless = ("CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE") if contained else ()
    missing = [
        (name, needed) for name, number, needed in CAPABILITIES if not effective >> number & 1 and name not in needless
    ]
    if not missing:
        return Finding("privileges", "ok", f"{who} has every capability it needs")
    names = ", ".join(name for name, _ in missing)
    if any(needed for _, needed in missing):
        fix = "run it as root; a container needs NET_ADMIN, NET_RAW and SYS_ADMIN added (docs/kubernetes.md)"
        return Finding("privileges", "fail", f"{who} (user {euid}) lacks {names}", fix)
    fix = "grant them (the unit's CapabilityBoundingSet): some containers, and iptables, cannot be handled without"
    return Finding("privileges", "warn", f"{who} lacks {names}", fix)


def kernel(tried: Mapping[str, str]) -> list[Finding]:
    """One finding for each tried feature; `tried` holds the kernel's error, or "" if the feature works."""
    needed = [
        Finding("kernel", "ok", f"{feature} works")
        if not error
        else Finding("kernel", "fail", f"{feature} does not work: {error}", f"the kernel needs {option}")
        for feature, option in _OPTIONS.items()
        if (error := tried.get(feature)) is not None
    ]
    optional = [
        Finding("kernel", "ok", f"{feature} works")
        if not error
        else Finding("kernel", "warn", f"{feature} does not work: {error}; {without}", f"the kernel needs {option}")
        for feature, (_, option, without) in OPTIONAL.items()
        if (error := tried.get(feature)) is not None
    ]
    return needed + optional


def wireguard(error: str | None, engines: Sequence[str]) -> list[Finding]:
    """Whether there can be tunnels: by the kernel (`error` is empty), or by a program; None: it could not be tried."""
    if error is None:
        return []
    if not error:
        return [Finding("wireguard", "ok", "the kernel has WireGuard")]
    if engines:
        text = f"the kernel has no WireGuard; {engines[0]} is there and stands in for it"
        return [Finding("wireguard", "ok", text)]
    fix = "install wireguard-go or boringtun-cli, or a kernel with CONFIG_WIREGUARD; one node alone needs neither"
    return [Finding("wireguard", "warn", f"no WireGuard: neither the kernel ({error}) nor a program has it", fix)]


# --- firewalls ------------------------------------------------------------------------------------------------------


def forward_policy(denies: bool, let_through: bool, error: str = "") -> Finding:
    """iptables' FORWARD: denying is fine when our jump is in it. `error`: why it could not be read."""
    if error:
        return Finding("forward", "warn", f"iptables' FORWARD cannot be read: {error}", "run `iptables -S FORWARD`")
    if not denies:
        return Finding("forward", "ok", "iptables' FORWARD does not deny")
    if let_through:
        return Finding("forward", "ok", "iptables' FORWARD denies, and our jump lets the overlay's containers through")
    fix = "start the daemon: it puts one jump to its chain ZLAYER-CNI into FORWARD, and puts it back within 10 s"
    return Finding("forward", "fail", "iptables' FORWARD denies, and containers are not let through", fix)


def conditional_drops(rules: Sequence[str]) -> list[Finding]:
    """The rules of iptables' FORWARD before our jump that may drop packets of containers. They stay in force."""
    fix = "nothing, if that is meant; else remove the rule, or accept the overlay's range before it"
    shown = [Finding("forward", "warn", f"`{rule}` drops what containers send or get", fix) for rule in rules[:SHOWN]]
    more = len(rules) - len(shown)
    rest = Finding("forward", "warn", f"{more} more rules of FORWARD drop what containers send or get", fix)
    return [*shown, *([rest] if more else [])]


def foreign_chains(forward: Sequence[str], of_host: Sequence[str]) -> list[Finding]:
    """Native nftables chains of other programs that drop: no other table can override a drop. `forward`: sentences
    about what containers send; `of_host`: the chains of the hooks input and output that drop by policy.
    """
    findings = [
        Finding("foreign firewall", "fail", sentence, "accept the overlay's range there, from the interfaces zl-*")
        for sentence in forward
    ]
    findings += [
        Finding(
            "foreign firewall",
            "warn",
            f"the nftables chain {chain} drops by policy what it does not know",
            "allow what the node gets from and sends to zl-* in it, if containers need the node or it asks them",
        )
        for chain in of_host
    ]
    return findings or [Finding("foreign firewall", "ok", "no nftables chain of others drops what containers send")]


def input_policy(rules: Mapping[str, Sequence[str]]) -> Finding:
    """iptables' INPUT, as printed by `-S INPUT` of each command: whether it may deny containers the node address."""
    closed = [tool for tool, lines in rules.items() if _denies(lines)]
    if not closed:
        return Finding("input", "ok", "iptables' INPUT does not deny: containers reach the node address")
    text = f"INPUT of {' and '.join(closed)} denies by policy or by its last rule: unless another rule allows it, "
    text += "containers do not reach the node address (resolver, daemon)"
    return Finding("input", "warn", text, "allow what comes in by zl-* to the node address, if containers need it")


def _denies(lines: Sequence[str]) -> bool:
    policy = any(line in ("-P INPUT DROP", "-P INPUT REJECT") for line in lines)
    return policy or bool(lines and lines[-1].startswith(("-A INPUT -j DROP", "-A INPUT -j REJECT")))


def same_bridge_services(fault: str) -> list[Finding]:
    """What keeps containers from one another on one bridge by a service; nothing if `fault` is empty."""
    keys = "net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1"
    fix = f"`modprobe br_netfilter`, `sysctl -w {keys}`; to keep it, /etc/modules-load.d and /etc/sysctl.d"
    return [Finding("services", "warn", fault, fix)] if fault else []


def recognised(chains: Collection[tuple[str, str, str]]) -> list[Finding]:
    """The programs whose rules are on this machine, by (family, table, chain)."""
    names = [
        name
        for name, tables, beginnings in FIREWALLS
        if any(table in tables or chain.startswith(beginnings) for _, table, chain in chains)
    ]
    if not names:
        return []
    text = f"rules of {', '.join(names)} are loaded; the fence only takes away, so isolation holds beside them"
    return [Finding("foreign firewall", "ok", text)]


# --- forwarding and routes ------------------------------------------------------------------------------------------


def forwarding(values: Mapping[int, bool], closed: Collection[str], daemon: bool) -> list[Finding]:
    """Whether the node forwards each IP version of the overlay. The daemon enables forwarding when it starts. `closed`:
    the links of the overlay, and those to other networks, that forward no IPv4 packet though the node does."""
    findings = []
    for version, on in values.items():
        key = "net.ipv4.ip_forward" if version == 4 else "net.ipv6.conf.all.forwarding"
        shut = [f"net.ipv4.conf.{link}.forwarding" for link in closed] if version == 4 and on else []
        if on and not shut:
            findings.append(Finding("forwarding", "ok", f"{key} is 1"))
        elif daemon:
            keys = shut or [key]
            effect = "no packet that comes in there is forwarded" if shut else "containers reach only their own bridge"
            fix = f"sysctl -w {' '.join(f'{name}=1' for name in keys)}, and look for what turns it off (/etc/sysctl.d,"
            text = f"{', '.join(keys)} is 0: {effect}"
            findings.append(Finding("forwarding", "fail", text, f"{fix} a hardening tool)"))
        else:
            text = f"{', '.join(shut or [key])} is 0"
            fix = "the daemon turns it on for the node and the overlay's links; other links need it in /etc/sysctl.d"
            findings.append(Finding("forwarding", "warn", text, fix))
    return findings


def rp_filter(values: Mapping[str, int]) -> Finding:
    """Reverse path filtering of the uplinks and tunnels, by link; the larger value of `all` and the link applies."""
    everywhere = values.get("all", 0)
    strict = sorted(
        link for link, own in values.items() if link not in ("all", "default") and max(own, everywhere) == 1
    )
    tunnels = [link for link in strict if link.startswith("zl-")]
    if tunnels or len(strict) > 1:
        fix = "set net.ipv4.conf.all.rp_filter and each link's to 2 (loose), in /etc/sysctl.d"
        text = f"rp_filter is strict (1) on {', '.join(strict)}: what comes back by another of them is dropped"
        return Finding("rp_filter", "warn", text, fix)
    return Finding("rp_filter", "ok", "reverse path filtering does not stand in the way")


def overlaps(clusters: Iterable[str], sentences: Iterable[str]) -> list[Finding]:
    """Overlaps of the overlay's ranges with the host's networks; `sentences`: each overlap, as a sentence."""
    fix = "give the overlay another cluster_cidr (the same on every node), or that network another range"
    return [Finding("routes", "fail", sentence, fix) for sentence in sentences] or [
        Finding("routes", "ok", f"no network of the host overlaps {', '.join(clusters) or 'the overlay'}")
    ]
