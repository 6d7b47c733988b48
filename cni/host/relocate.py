"""Moves an interface from one namespace into another, under another name."""

from __future__ import annotations

from dataclasses import dataclass

from cni.host import links
from cni.host import netlink as nl
from cni.host.netns import entered


def find_inside(netns_fd: int, ifname: str) -> links.Link | None:
    """The link of that name in the namespace, or None."""
    with entered(netns_fd):
        inner = nl.Netlink()
    with inner:
        return links.find_link(inner, ifname)


@dataclass(frozen=True)
class InterfaceConfig:
    """The properties of an interface after its move: its name, its MTU in bytes, its MAC ("": unchanged)."""

    ifname: str
    mtu: int
    mac: str = ""


def move(index: int, source_fd: int, target_fd: int, shape: InterfaceConfig) -> links.Link:
    """Move link `index` of one namespace into another, down, with the properties `shape`.

    The kernel drops its addresses and routes. The link is renamed before the move, so that no process in the container
    sees it under another name. Takes about 15 ms. Raises NetlinkError; EEXIST if the container has an interface of that
    name: then the link has not moved.
    """
    ifname = shape.ifname
    changes = nl.text(links.IFLA_IFNAME, ifname) + nl.u32(links.IFLA_MTU, shape.mtu)
    if shape.mac:
        changes += nl.attribute(links.IFLA_ADDRESS, links.mac_bytes(shape.mac))
    with entered(source_fd):
        source = nl.Netlink()
    with source:
        down = nl.Message(nl.RTM_SETLINK, 0, nl.ifinfo(index, 0, links.IFF_UP), f"bring down link {index}")
        source.send([down])
        source.send([nl.Message(nl.RTM_SETLINK, 0, nl.ifinfo(index) + changes, f"rename link {index} to {ifname}")])
        away = nl.u32(links.IFLA_NET_NS_FD, target_fd)
        source.send([nl.Message(nl.RTM_SETLINK, 0, nl.ifinfo(index) + away, f"move {ifname} to the container")])
    moved = find_inside(target_fd, ifname)
    if moved is None:
        raise nl.NetlinkError(19, f"move {ifname} to the container", "it did not arrive")
    return moved
