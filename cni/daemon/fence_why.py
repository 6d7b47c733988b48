"""May one address reach another, and which rule says so: the fence's answer, from what it should be.

It follows the chains (fence_bridge, fence_inet) by their meaning and names the rule that decides, so that an operator
finds it in `nft list ruleset`. The matrix tests hold it to what packets do. It speaks for the fence alone: another
firewall may close what it leaves open.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from cni.daemon.fence_compare import Wanted
from cni.daemon.fence_values import TABLE, Port, chain_of


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a new flow may be opened, the rule that decides (`family table chain: name`), and why, in words."""

    may: bool
    rule: str
    why: str


@dataclass(frozen=True, slots=True)
class _End:
    """What the fence knows of an address: a container's port here, a member elsewhere, the node's, unknown, outside."""

    kind: str  # "port", "remote", "host", "unknown", "outside"
    network: str | None = None
    port: Port | None = None

    @property
    def named(self) -> str:
        """Its network, for people."""
        return "no network (the flat mesh)" if self.network is None else f"network {self.network!r}"


def why(wanted: Wanted, source: str, target: str, host: frozenset[str] = frozenset()) -> Verdict:
    """Whether `source` may open a flow to `target`; `host` are all of the host's own addresses.

    Addresses without prefix. Raises ValueError for what is no address, or two of different families.
    """
    src, dst = ip_address(source), ip_address(target)
    if src.version != dst.version:
        raise ValueError(f"{source} and {target} are of different families")
    a, b = _end(wanted, src, host), _end(wanted, dst, host)
    if a.kind == "host":
        return Verdict(True, "none", "the node reaches every container, and gets its replies")
    if b.kind == "host":
        return _to_host(wanted, a, dst)
    if a.kind in ("port", "remote"):
        return _from_member(a, b, dst.version)
    if a.kind == "unknown":
        return Verdict(False, _at("inet", f"to_overlay{dst.version}", "unknown overlay source"), _unheard(source))
    return _from_outside(b, target, dst.version)


def _end(wanted: Wanted, address: IPv4Address | IPv6Address, host: frozenset[str]) -> _End:
    text = str(address)
    if text in host or text in wanted.node.addresses or address.is_loopback:
        return _End("host")
    for port in wanted.ports:
        if text in port.addresses:
            return _End("port", port.network, port)
    for remote in wanted.remotes:
        if text in remote.addresses:
            return _End("remote", remote.network)
    inside = any(address in ip_network(c) for c in wanted.node.clusters if ip_network(c).version == address.version)
    return _End("unknown" if inside else "outside")


def _to_host(wanted: Wanted, a: _End, dst: IPv4Address | IPv6Address) -> Verdict:
    if a.kind in ("outside", "remote"):
        return Verdict(True, "none", "the fence does not stand between the host and what is not a container here")
    if a.kind == "unknown":
        return Verdict(False, _at("inet", "from_container", f"unknown IPv{dst.version} source"), "it was not admitted")
    if dst.is_loopback:
        return Verdict(
            False, _at("inet", "to_host", "loopback of the host"), "no container reaches the host's loopback"
        )
    six = ", IPv6" if dst.version == 6 else ""
    if a.network is None:
        rule = _at("inet", "to_host", f"flat mesh to the host{six}")
        return Verdict(True, rule, "a container of no network reaches the host")
    if str(dst) in wanted.node.addresses:
        return Verdict(True, _at("inet", "to_host", f"node address{six}"), "a member reaches the node address")
    return Verdict(
        False, _at("inet", "to_host", "host address"), "of the host's addresses a member reaches the node's only"
    )


def _from_member(a: _End, b: _End, version: int) -> Verdict:
    if b.kind == "outside":
        return Verdict(True, "none", "what lies outside the overlay is open to every container")
    chain = chain_of(a.network)
    same_bridge = a.port is not None and b.port is not None and a.port.bridge == b.port.bridge is not None
    family = "bridge" if same_bridge else "inet"
    if b.kind != "unknown" and a.network == b.network:
        name = "same network" + (", IPv6" if version == 6 and family == "inet" else "")
        return Verdict(True, _at(family, chain, name), f"both are of {a.named}")
    said = "it is not known" if b.kind == "unknown" else f"it is of {b.named}"
    return Verdict(
        False, _at(family, chain, "between networks"), f"the source is of {a.named}, and of the target {said}"
    )


def _from_outside(b: _End, target: str, version: int) -> Verdict:
    chain = f"to_overlay{version}"
    if b.kind == "outside":
        return Verdict(True, "none", "neither is on the overlay")
    if b.kind == "unknown":
        return Verdict(False, _at("inet", chain, "to an unknown overlay address"), _unheard(target))
    if b.network is None:
        return Verdict(True, _at("inet", chain, "to the flat mesh"), "a container of no network is open to the outside")
    name = "stranger to a member" if b.kind == "port" else "to an unknown overlay address"
    why_not = f"only its own network opens flows to a member of {b.named}; a published port is the exception"
    return Verdict(False, _at("inet", chain, name), why_not)


def _at(family: str, chain: str, name: str) -> str:
    return f"{family} {TABLE} {chain}: {name}"


def _unheard(address: str) -> str:
    return f"the fence has not heard of {address}: closed until known"
