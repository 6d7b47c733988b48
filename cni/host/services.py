"""The programs that translate virtual addresses of services on this host, and whether they see bridged packets. Read
only.

A service may lead to a container on the client's own bridge. The answer is bridged, and has its source translated back
only if br_netfilter hands bridged packets to connection tracking (bridge-nf-call-*); else the client drops it.
"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from cni.errors import FenceFailed
from cni.host import ipvs, sysctl, xtables
from cni.host.nft import Nft

_SETTINGS = {4: "bridge/bridge-nf-call-iptables", 6: "bridge/bridge-nf-call-ip6tables"}
_VERSIONS = {"ip": (4,), "ip6": (6,), "inet": (4, 6)}
_IPTABLES, _NFTABLES = ("nat", "KUBE-SERVICES"), "kube-proxy"  # kube-proxy's chain, and its table in its mode nftables


def unanswered(versions: Iterable[int], nft: Nft) -> str:
    """Why containers of the overlay do not reach a container on their own bridge by a service; empty if they do, or if
    no program translates services here. Raises NftError, OSError.
    """
    values = {version: sysctl.read(_SETTINGS[version]) for version in versions}
    passed = {version: value for version, value in values.items() if value != "1"}
    if not passed:
        return ""
    legacy = [version for version in passed if xtables.has_chain(version, *_IPTABLES)]
    virtual = [server.virtual for server in ipvs.real_servers()]
    return describe(passed, translators(nft.list_base_chains(), legacy, virtual))


def tracks_bridged() -> frozenset[int]:
    """The IP versions of which connection tracking sees bridged packets."""
    return frozenset(version for version, key in _SETTINGS.items() if sysctl.read(key) == "1")


def unanswered_now(versions: Iterable[int]) -> str:
    """`unanswered`, by an own context; empty if nftables cannot be read."""
    with contextlib.suppress(FenceFailed, OSError), contextlib.closing(Nft()) as nft:
        return unanswered(versions, nft)
    return ""


def translators(listing: Mapping[str, Any], legacy: Iterable[int], virtual: Iterable[str]) -> dict[int, set[str]]:
    """The programs that translate services, by IP version. `listing`: every nftables chain; `legacy`: the versions in
    which iptables-legacy has kube-proxy's chain; `virtual`: IPVS's virtual addresses. Pure.
    """
    names: dict[int, set[str]] = {4: set(), 6: set()}
    for item in listing.get("nftables", ()):
        chain = item.get("chain", {})
        for version in _VERSIONS.get(chain.get("family", ""), ()):
            if chain["table"] == _NFTABLES or (chain["table"], chain["name"]) == _IPTABLES:
                names[version].add("kube-proxy")
    for version in legacy:
        names[version].add("kube-proxy")
    for address in virtual:
        names[ipaddress.ip_address(address).version].add("IPVS")
    return names


def describe(values: Mapping[int, str | None], names: Mapping[int, set[str]]) -> str:
    """The sentence about the settings that are not 1 (`values`: None where br_netfilter is not loaded) while a program
    translates services of that version; empty if none does. Pure.
    """
    concerned = [version for version in sorted(values) if names[version]]
    if not concerned:
        return ""
    programs = " and ".join(sorted(set().union(*(names[version] for version in concerned))))
    keys = [f"net.{_SETTINGS[version].replace('/', '.')}" for version in concerned]
    loaded = [key for key, version in zip(keys, concerned, strict=True) if values[version] is not None]
    why = f"{' and '.join(loaded)} is 0" if loaded else "br_netfilter is not loaded"
    return (
        f"{why}, and {programs} translates services: a container does not reach a container on its own bridge by a"
        " service's virtual address"
    )
