"""Reads links, addresses and routes with pyroute2: a second reader beside our own netlink code, for the doctor alone.

An error in our own reader would otherwise hide itself: the daemon compares the kernel with what that reader says.
pyroute2 takes some 0.3 s to import, so only this function imports it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cni.host import links
from cni.host.netlink import Netlink


@dataclass(frozen=True, slots=True)
class LinkSeen:
    """A link: its kind ("" for hardware), whether it is up, its MTU in bytes, and the name of its bridge ("" for
    none)."""

    kind: str
    up: bool
    mtu: int
    master: str


@dataclass(frozen=True, slots=True)
class KernelSeen:
    """Links by name, the addresses of each link by name, and the destinations of the routes of each link."""

    links: dict[str, LinkSeen]
    addresses: dict[str, frozenset[str]] = field(default_factory=dict)
    routes: dict[str, frozenset[str]] = field(default_factory=dict)


def by_pyroute2() -> KernelSeen:
    """The kernel as pyroute2 reads it. Raises OSError."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as ipr:
            raw = [(link["index"], link.get("ifname"), link) for link in ipr.get_links()]
            addresses = [(each["index"], f"{each.get('address')}") for each in ipr.get_addr()]
            routes = [(r.get("oif"), f"{r.get('dst')}/{r['dst_len']}") for r in ipr.get_routes() if r.get("dst")]
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
    names = {index: name for index, name, _ in raw}
    return KernelSeen(
        links={
            name: LinkSeen(
                kind=link.get(("linkinfo", "kind")) or "",
                up=bool(link["flags"] & 1),  # IFF_UP
                mtu=link.get("mtu") or 0,
                master=names.get(link.get("master"), ""),
            )
            for _, name, link in raw
        },
        addresses=_by_name(addresses, names),
        routes=_by_name(routes, names),
    )


def _by_name(found: list[tuple[int, str]], names: dict[int, str]) -> dict[str, frozenset[str]]:
    by_name: dict[str, set[str]] = {}
    for index, text in found:
        by_name.setdefault(names.get(index, ""), set()).add(text)
    return {name: frozenset(texts) for name, texts in by_name.items()}


def by_ourselves() -> dict[str, LinkSeen]:
    """The links as our own netlink code reads them. Raises OSError."""
    with Netlink() as sock:
        found = links.list_links(sock)
    names = {link.index: link.name for link in found}
    return {link.name: LinkSeen(link.kind, link.up, link.mtu, names.get(link.master, "")) for link in found}
