"""The nftables table that leads containers' DNS questions to the node's server (`dns: {intercept: true}`). Pure.

A table of its own: the fence's tables only take reachability away. What is led elsewhere still passes the fence: the
sender's identity is checked before this hook, and the node's address is open to every container.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping, Sequence

TABLE = "zlayer_cni_dns"
FAMILY = "inet"
MARKER = "rules_"
# Before the usual DNAT (-100): a cluster's DNS service is asked by the node's server, as the address that was asked.
_HOOK = "type nat hook prerouting priority -105; policy accept;"
# A daemon that starts again has no socket for a moment. "Port unreachable" would end a resolver's question at once;
# without it, the resolver asks again.
_QUIET = "type filter hook output priority -150; policy accept;"
_REFUSED_PORT = {  # of the datagram that the ICMP error quotes: behind the error's header and the inner IP header
    4: "icmp type 3 icmp code 3 @th,240,16",
    6: "icmpv6 type 1 icmpv6 code 4 @th,400,16",
}
_LINKS = '"zl-*"'  # bridges of services, and ports without a bridge


def ruleset(ranges: Sequence[str], ports: Mapping[str, int]) -> str:
    """The table's text, which replaces an earlier one. `ranges`: the overlay's, at most one of each family; `ports`:
    the port of the intercepting socket by its address.

    Questions to an address inside the overlay, or of the host itself, go their way: the fence decides on them.
    Protocols are numbers: a minimal host has no /etc/protocols.
    """
    rules, quiet = [], []
    for cidr in ranges:
        network = ipaddress.ip_network(cidr)
        ip = "ip" if network.version == 4 else "ip6"
        for address, port in ports.items():
            if ipaddress.ip_address(address).version == network.version:
                to = f"{address}:{port}" if network.version == 4 else f"[{address}]:{port}"
                rules.append(
                    f"iifname {_LINKS} {ip} saddr {network} {ip} daddr != {network} fib daddr type unicast "
                    f"meta l4proto {{ 6, 17 }} th dport 53 dnat {ip} to {to}"
                )
                quiet.append(f"{ip} saddr {address} {_REFUSED_PORT[network.version]} {port} drop")
                break
    lines = [f"add rule {FAMILY} {TABLE} prerouting {rule}" for rule in rules]
    body = "\n".join([*lines, *(f"add rule {FAMILY} {TABLE} output {rule}" for rule in quiet)])
    marker = MARKER + hashlib.sha256(body.encode()).hexdigest()[:8]
    return (
        f"{removal()}add table {FAMILY} {TABLE}\n"
        f"add chain {FAMILY} {TABLE} {marker}\n"
        f"add chain {FAMILY} {TABLE} prerouting {{ {_HOOK} }}\n"
        f"add chain {FAMILY} {TABLE} output {{ {_QUIET} }}\n{body}\n"
    )


def removal() -> str:
    """Deletes the table. Idempotent."""
    return f"add table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n"


def is_in_force(text: str, listing: Mapping[str, object] | None) -> bool:
    """Whether the kernel's listing of the table, in libnftables' JSON, has the chains and the number of rules of the
    text."""
    if listing is None:
        return False
    entries = listing.get("nftables")
    if not isinstance(entries, list):
        return False
    chains = {entry["chain"]["name"] for entry in entries if "chain" in entry}
    rules = sum("rule" in entry for entry in entries)
    wanted = {line.split()[4] for line in text.splitlines() if line.startswith("add chain")}
    return chains == wanted and rules == sum(line.startswith("add rule") for line in text.splitlines())
