"""Links: ensure, remove and read them; and the types of what the kernel reports.

`ensure_*` ignores only "exists" errors, and then checks that the existing link is of the right kind. `remove_*` ignores
only "does not exist" errors. Every function takes the `Netlink` socket of the namespace that it works in.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cni import addresses
from cni.host import link_settings
from cni.host import netlink as nl

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_GROUP, IFLA_NET_NS_FD = 18, 27, 28
IFLA_PROTINFO = 12
IFLA_IFALIAS, IFLA_STATS64, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 20, 23, 29, 37
_LINK_ATTRIBUTES = frozenset(
    {IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER, IFLA_LINKINFO, IFLA_IFALIAS, IFLA_LINK_NETNSID}
)
_PORT_ATTRIBUTES = frozenset({IFLA_MASTER, IFLA_PROTINFO})
_WITHOUT_STATS = nl.u32(IFLA_EXT_MASK, 1 << 3)  # RTEXT_FILTER_SKIP_STATS: half of the answer, and of its cost
BRIDGE_PORTS = 1023  # of a bridge at most: BR_MAX_PORTS is 1,024, and port 0 is not used (net/bridge/br_private.h)
_TX_BYTES = slice(24, 32)  # of struct rtnl_link_stats64
IFF_UP, IFF_RUNNING = 1, 0x40
AF_UNSPEC, AF_INET, AF_INET6 = 0, 2, 10
RTN_UNICAST, RTN_LOCAL = 1, 2
BR_STP, BR_MULTI_BOOLOPT, BR_MCAST_SNOOPING, BR_FORWARD_DELAY = 5, 46, 23, 1
_SLAVE_KIND, _SLAVE_DATA, _HAIRPIN = 4, 5, 4  # IFLA_INFO_SLAVE_..., IFLA_BRPORT_MODE
_HAIRPINS = frozenset({_HAIRPIN})
BR_NO_LL_LEARN = 1
OUR_PROTO = 0x7A  # IFA_PROTO of the addresses that the daemon puts on lo; 1 to 3 are the kernel's own
LOOPBACK = 1  # the index of lo, in every namespace

GONE = frozenset({errno.ENODEV, errno.ENXIO})

Interface = addresses.Interface
Network = addresses.Network
Address = addresses.Address


@dataclass(frozen=True)
class Link:
    """A link as reported by the kernel. `mtu` in bytes; `peer` is the index of a veth's other end, `peer_netns` the
    id of that end's namespace (-1: none), `alias` the text that was attached to the link ("": none). `running`: up,
    with its carrier, so that a bridge forwards its frames. `hairpin`: whether its bridge sends frames back to the port
    that they came from."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    kind: str = ""
    master: int = 0
    peer: int = 0
    alias: str = ""
    hairpin: bool = False
    peer_netns: int = -1
    running: bool = False


@dataclass(frozen=True)
class Route:
    """A route of the main table: destination, gateway (None: on the link), index of its link, route type (RTN_*)."""

    dst: Network
    gateway: Address | None
    oif: int
    type: int = RTN_UNICAST


@dataclass(frozen=True)
class RoutePattern:
    """A route to look for: of its destination and, where these are given, with these properties. `gateway`, `table`,
    `scope`: None for any; `priority`, `mtu`, `advmss`: 0 for any."""

    dst: Network
    gateway: Address | None = None
    priority: int = 0
    mtu: int = 0
    advmss: int = 0
    table: int | None = None
    scope: int | None = None


def family_of(value: Interface | Network | Address) -> int:
    return AF_INET if value.version == 4 else AF_INET6


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def mac_text(raw: bytes) -> str:
    return raw.hex(":")


# --- links ------------------------------------------------------------------------------------------------------


def find_link(socket: nl.Netlink, name: str = "", index: int = 0) -> Link | None:
    """The link of that name or index, or None. The cost is independent of the number of links."""
    body = nl.ifinfo(index) + (nl.text(IFLA_IFNAME, name) if name else b"") + _WITHOUT_STATS
    ask = nl.Message(nl.RTM_GETLINK, 0, body, f"look for link {name or index}", GONE)
    answers = socket.send([ask]).answers
    return parsed(answers[0].body) if answers else None


def sent_bytes(socket: nl.Netlink, name: str) -> int:
    """The bytes that a link has sent; 0 if there is no such link."""
    ask = nl.Message(nl.RTM_GETLINK, 0, nl.ifinfo() + nl.text(IFLA_IFNAME, name), f"look for link {name}", GONE)
    answers = socket.send([ask]).answers
    counters = nl.attributes(answers[0].body[16:]).get(IFLA_STATS64, b"") if answers else b""
    return int.from_bytes(counters[_TX_BYTES], nl.BYTE_ORDER)


def list_links(socket: nl.Netlink, tries: int = nl.DUMP_TRIES) -> list[Link]:
    """Every link of the namespace: O(links), for start-up and resync only. `tries`: see `Netlink.dump`."""
    ask = nl.Message(nl.RTM_GETLINK, 0, nl.ifinfo() + _WITHOUT_STATS, "list links")
    return [_seen_link(answer.body) for answer in socket.dump(ask, tries)]


def has_kind(socket: nl.Netlink, kinds: frozenset[str], most: int) -> bool | None:
    """Whether the namespace has a link of one of these kinds; None if it has more than `most` links and the first
    `most` are of other kinds. The socket cannot serve another request after an answer other than False."""
    is_of_kind = False

    def take(body: bytes) -> bool:
        nonlocal is_of_kind
        info = nl.attributes(nl.attributes(body[16:]).get(IFLA_LINKINFO, b""))
        is_of_kind = _string(info.get(1, b"")) in kinds
        return is_of_kind

    whole = socket.scan(nl.Message(nl.RTM_GETLINK, 0, nl.ifinfo(), "list links"), most, take)
    return is_of_kind if whole else None


def parsed(body: bytes) -> Link:
    """The link in the body of an RTM_NEWLINK message."""
    _, _, index, flags, _ = nl.IFINFO.unpack_from(body)
    attrs = nl.chosen(body, _LINK_ATTRIBUTES, 16)
    info = nl.attributes(attrs.get(IFLA_LINKINFO, b""))
    slave = info.get(_SLAVE_DATA, b"")
    return Link(
        index=index,
        name=_string(attrs.get(IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP),
        mtu=number(attrs.get(IFLA_MTU)),
        mac=mac_text(attrs.get(IFLA_ADDRESS, b"")),
        kind=_string(info.get(1, b"")),
        master=number(attrs.get(IFLA_MASTER)),
        peer=number(attrs.get(IFLA_LINK)),
        alias=_string(attrs.get(IFLA_IFALIAS, b"")),
        hairpin=any(nl.chosen(slave, _HAIRPINS).get(_HAIRPIN, b"")),
        peer_netns=int.from_bytes(attrs.get(IFLA_LINK_NETNSID, b"\xff\xff\xff\xff"), nl.BYTE_ORDER, signed=True),
        running=bool(flags & IFF_RUNNING),
    )


@functools.lru_cache(2048)
def _seen_link(body: bytes) -> Link:
    """`parsed`, for lists: from one list to the next nearly all links of a full node are the same."""
    return parsed(body)


def port_state(body: bytes) -> tuple[int, bool] | None:
    """The bridge's index and hairpin mode of a port, from a message of the bridge about it (AF_BRIDGE); None if it has
    neither."""
    attrs = nl.chosen(body, _PORT_ATTRIBUTES, 16)
    if len(attrs) < len(_PORT_ATTRIBUTES):
        return None
    return number(attrs[IFLA_MASTER]), any(nl.chosen(attrs[IFLA_PROTINFO], _HAIRPINS).get(_HAIRPIN, b""))


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def number(raw: bytes | None) -> int:
    """The 32-bit number in an attribute in the host's byte order; 0 if the attribute is absent."""
    return struct.unpack_from("=I", raw)[0] if raw else 0


def ensure_bridge(socket: nl.Netlink, name: str, mac: str, mtu: int) -> Link:
    """`name` is a bridge and up, without STP, with a MAC that does not follow its ports.

    Raises NetlinkError(EEXIST) when a link of that name is something else: it is not adopted.
    """
    # No learning from link-local frames: they pass before any hook, and would teach the bridge a forged MAC.
    options = nl.attribute(BR_MULTI_BOOLOPT, struct.pack("=II", BR_NO_LL_LEARN, BR_NO_LL_LEARN))
    options += nl.u32(BR_STP, 0) + nl.u8(BR_MCAST_SNOOPING, 0)
    kind = nl.attribute(IFLA_LINKINFO, nl.text(1, "bridge") + nl.attribute(2, options))
    create = nl.ifinfo() + nl.text(IFLA_IFNAME, name) + nl.attribute(IFLA_ADDRESS, mac_bytes(mac)) + kind
    flags = nl.F_CREATE | nl.F_EXCL
    exists = frozenset({errno.EEXIST})
    made = socket.send([nl.Message(nl.RTM_NEWLINK, flags, create, f"create bridge {name}", exists)]).errors == [0]
    link = find_link(socket, name)
    if link is None:
        raise nl.NetlinkError(errno.ENODEV, f"create bridge {name}")
    if link.kind != "bridge":
        raise nl.NetlinkError(errno.EEXIST, f"create bridge {name}", f"a {link.kind or 'plain'} link has that name")
    # Also sent to an existing bridge: it may have earlier settings, or another program may have created it.
    right = [kind] if not made else []
    right.append(nl.attribute(IFLA_LINKINFO, nl.text(1, "bridge") + nl.attribute(2, nl.u32(BR_FORWARD_DELAY, 0))))
    if link.mac != mac:
        right.append(nl.attribute(IFLA_ADDRESS, mac_bytes(mac)))
    if made and link.mtu == mtu:
        right.append(nl.u32(IFLA_MTU, mtu - 1))  # only a changed MTU is fixed; otherwise it follows the smallest port
    right.append(nl.u32(IFLA_MTU, mtu))
    what = f"put bridge {name} right"
    socket.send(
        nl.Message(nl.RTM_NEWLINK, 0, nl.ifinfo(link.index, IFF_UP, IFF_UP) + attribute, what) for attribute in right
    )
    return replace(link, up=True, mac=mac, mtu=mtu)


def set_master(socket: nl.Netlink, index: int, master: int) -> None:
    """Make the link a port of the bridge `master`."""
    body = nl.ifinfo(index) + nl.u32(IFLA_MASTER, master)
    socket.send([nl.Message(nl.RTM_SETLINK, 0, body, f"put link {index} on bridge {master}")])


def set_mtu(socket: nl.Netlink, index: int, mtu: int) -> None:
    """Set the MTU, in bytes. Raises NetlinkError: ENODEV if the link is gone, EINVAL for an MTU that it cannot have."""
    body = nl.ifinfo(index) + nl.u32(IFLA_MTU, mtu)
    socket.send([nl.Message(nl.RTM_NEWLINK, 0, body, f"set the MTU of link {index} to {mtu}")])


def set_up(socket: nl.Netlink, index: int) -> None:
    socket.send([up_message(index)])


def up_message(index: int) -> nl.Message:
    return nl.Message(nl.RTM_NEWLINK, 0, nl.ifinfo(index, IFF_UP, IFF_UP), f"bring up link {index}")


def rename_link(socket: nl.Netlink, index: int, name: str) -> None:
    """Rename the link, and bring it up. It is down meanwhile, because older kernels rename only a link that is down."""
    what = f"rename link {index} to {name}"
    down = nl.Message(nl.RTM_NEWLINK, 0, nl.ifinfo(index, 0, IFF_UP), f"bring down link {index}")
    rename = nl.Message(nl.RTM_NEWLINK, 0, nl.ifinfo(index) + nl.text(IFLA_IFNAME, name), what)
    socket.send([down, rename, up_message(index)])


def remove_link(socket: nl.Netlink, name: str = "", index: int = 0) -> None:
    """Remove the link of that name (or index); safe to repeat. Blocks 15 to 19 ms in the kernel: see
    cni/host/link_deleter.py. Raises OSError."""
    body = nl.ifinfo(index) + (nl.text(IFLA_IFNAME, name) if name else b"")
    socket.send([nl.Message(nl.RTM_DELLINK, 0, body, f"delete link {name or index}", GONE)])


def set_group(socket: nl.Netlink, indexes: Sequence[int], group: int) -> None:
    """Put links into a group, down and off their bridge, so that one message can delete all of them."""
    socket.send(
        nl.Message(
            nl.RTM_NEWLINK,
            0,
            nl.ifinfo(index, 0, IFF_UP) + nl.u32(IFLA_MASTER, 0) + nl.u32(IFLA_GROUP, group),
            f"group link {index}",
            GONE,
        )
        for index in indexes
    )


def remove_group(socket: nl.Netlink, group: int) -> None:
    """Delete every link of `group` with one wait in the kernel instead of one each."""
    body = nl.ifinfo() + nl.u32(IFLA_GROUP, group)
    socket.send([nl.Message(nl.RTM_DELLINK, 0, body, f"delete link group {group:#x}", GONE)])


@dataclass(frozen=True)
class Port:
    """The parameters of `create_port`: a veth whose host end is on a bridge (`bridge`: its index; 0 for none) and whose
    other end is in a container."""

    name: str
    mac: str
    bridge: int
    mtu: int
    peer_name: str
    peer_mac: str


class PortEnds(NamedTuple):
    """The ends of a new veth: the index of the host end, the index of the container's end, and the id that the host's
    namespace has for the container's (-1: not known)."""

    host: int
    inside: int
    netns_id: int


def create_port(socket: nl.Netlink, port: Port, netns_fd: int) -> PortEnds:
    """Create the veth with its peer inside the namespace `netns_fd` (a later move takes 15 ms). Both ends stay down.

    Raises NetlinkError: EEXIST if either name is taken, EXFULL if the bridge has BRIDGE_PORTS ports.
    """
    peer = (
        nl.ifinfo()
        + nl.text(IFLA_IFNAME, port.peer_name)
        + nl.u32(IFLA_MTU, port.mtu)
        + nl.attribute(IFLA_ADDRESS, mac_bytes(port.peer_mac))
        + nl.u32(IFLA_NET_NS_FD, netns_fd)
    )
    body = (
        nl.ifinfo()
        + nl.text(IFLA_IFNAME, port.name)
        + nl.u32(IFLA_MTU, port.mtu)
        + nl.attribute(IFLA_ADDRESS, mac_bytes(port.mac))
        + (nl.u32(IFLA_MASTER, port.bridge) if port.bridge else b"")
        + nl.attribute(IFLA_LINKINFO, nl.text(1, "veth") + nl.attribute(2, nl.attribute(1, peer)))
    )
    flags = nl.F_CREATE | nl.F_EXCL | nl.F_ECHO
    what = f"create veth {port.name}"
    try:
        answers = socket.send([nl.Message(nl.RTM_NEWLINK, flags, body, what)]).answers
    except nl.NetlinkError as error:
        if error.errno != errno.EXFULL:
            raise
        limit = f"its bridge has {BRIDGE_PORTS} ports, the kernel's limit: attach further containers to another service"
        raise nl.NetlinkError(errno.EXFULL, what, limit) from error
    for answer in answers:
        if answer.type == nl.RTM_NEWLINK:
            made = parsed(answer.body)
            return PortEnds(made.index, made.peer, made.peer_netns)
    host_end = find_link(socket, port.name)  # Linux before 6.2 does not return the new link
    if host_end is None or not host_end.peer:
        raise nl.NetlinkError(errno.EPROTO, f"create veth {port.name}", "it cannot be found")
    return PortEnds(host_end.index, host_end.peer, host_end.peer_netns)


def mark(socket: nl.Netlink, index: int, owner: str) -> None:
    """Set the link's alias to `owner` (at most 255 bytes)."""
    body = nl.ifinfo(index) + nl.text(IFLA_IFALIAS, owner)
    socket.send([nl.Message(nl.RTM_SETLINK, 0, body, f"mark link {index}")])


def raise_port(socket: nl.Netlink, index: int, owner: str = "") -> None:
    """Bring the host end up without an IPv6 address: with one, each new port sends MLD and DAD packets to all ports.

    The bridge sends frames back to it (hairpin): a container reaches itself by a service's address or a host port,
    which br_netfilter translates on the bridge. `owner` becomes its alias ("": the alias stays as it is).
    """
    marked = nl.text(IFLA_IFALIAS, owner) if owner else b""
    port = nl.text(_SLAVE_KIND, "bridge") + nl.attribute(_SLAVE_DATA, nl.u8(_HAIRPIN, 1))
    marked += nl.attribute(IFLA_LINKINFO, port)
    socket.send(
        [
            link_settings.gen_mode_message(index, link_settings.GEN_MODE_NONE),
            nl.Message(nl.RTM_NEWLINK, 0, nl.ifinfo(index, IFF_UP, IFF_UP) + marked, f"bring up link {index}"),
        ]
    )
