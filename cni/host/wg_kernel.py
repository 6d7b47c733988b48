"""WireGuard in the kernel, by generic netlink (linux/wireguard.h). One `KernelWireGuard` belongs to one thread."""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Sequence

from cni.host import links
from cni.host import netlink as nl
from cni.host.wg_types import PeerChange, PeerSeen, Reading, join_endpoint, raw, split_endpoint, text

GENL_ID_CTRL, CTRL_GETFAMILY, CTRL_FAMILY_ID, CTRL_FAMILY_NAME = 16, 3, 1, 2
GET_DEVICE, SET_DEVICE = 0, 1
A_IFNAME, A_PRIVATE_KEY, A_LISTEN_PORT, A_FWMARK, A_PEERS = 2, 3, 6, 7, 8
P_PUBLIC_KEY, P_FLAGS, P_ENDPOINT, P_KEEPALIVE, P_HANDSHAKE, P_RX, P_TX, P_ALLOWED = 1, 3, 4, 5, 6, 7, 8, 9
F_REMOVE, F_REPLACE_ALLOWED = 1, 2
I_FAMILY, I_ADDRESS, I_MASK = 1, 2, 3
MOST = 24_000  # bytes of peers in one message: an attribute's length has 16 bits, and the socket's buffer its limit

_HEADER = struct.Struct("=BBH")
_U16, _U64 = struct.Struct("=H"), struct.Struct("=Q")
_TIME = struct.Struct("=qq")


def create(route_socket: nl.Netlink, name: str) -> bool:
    """Create a device; False if the kernel has no WireGuard. Idempotent. Raises NetlinkError."""
    info = nl.attribute(links.IFLA_LINKINFO, nl.text(1, "wireguard"))
    body = nl.ifinfo() + nl.text(links.IFLA_IFNAME, name) + info
    # A kernel without WireGuard answers EOPNOTSUPP for the kind of link (measured).
    ignored = frozenset({errno.EOPNOTSUPP, errno.EEXIST})
    flags = nl.F_CREATE | nl.F_EXCL
    done = route_socket.send([nl.Message(nl.RTM_NEWLINK, flags, body, f"create WireGuard device {name}", ignored)])
    return done.errors[0] != errno.EOPNOTSUPP


class KernelWireGuard:
    """Reads and writes the WireGuard devices of the namespace of the thread that created the object."""

    def __init__(self) -> None:
        self._socket = nl.Netlink(protocol=nl.GENERIC)
        self._family = 0

    def close(self) -> None:
        self._socket.close()

    def read(self, name: str) -> Reading | None:
        """The device; None if there is no such device, or it is not a WireGuard device. Raises OSError."""
        family = self._family_id()
        if family == 0:
            return None
        body = _HEADER.pack(GET_DEVICE, 1, 0) + nl.text(A_IFNAME, name)
        try:
            answers = self._socket.dump(nl.Message(family, 0, body, f"read WireGuard device {name}"))
        except nl.NetlinkError as error:
            if error.errno in (errno.ENODEV, errno.EOPNOTSUPP):
                return None
            raise
        private, port, mark = b"", 0, 0
        peers: dict[str, PeerSeen] = {}
        for answer in answers:
            attrs = nl.attributes(answer.body[4:])
            private = attrs.get(A_PRIVATE_KEY, private)
            port = _U16.unpack(attrs[A_LISTEN_PORT])[0] if A_LISTEN_PORT in attrs else port
            mark = links.number(attrs[A_FWMARK]) if A_FWMARK in attrs else mark
            for _, item in nl.items(attrs.get(A_PEERS, b"")):
                _add(peers, _peer(item))
        return Reading(private, port, peers, mark)

    def write(self, name: str, private_key: bytes | None, port: int | None, changes: Sequence[PeerChange]) -> None:
        """Set the given values; the others stay. Raises OSError; the messages before the failure have taken effect."""
        head = nl.text(A_IFNAME, name)
        first = nl.attribute(A_PRIVATE_KEY, private_key) if private_key is not None else b""
        first += nl.attribute(A_LISTEN_PORT, _U16.pack(port)) if port is not None else b""
        batches = list(_batches(changes))
        if first or not batches:
            self._set(name, head + first)
        for batch in batches:
            self._set(name, head + nl.nested(A_PEERS, batch))

    def _set(self, name: str, attributes: bytes) -> None:
        body = _HEADER.pack(SET_DEVICE, 1, 0) + attributes
        self._socket.send([nl.Message(self._family_id(), 0, body, f"configure WireGuard device {name}")])

    def _family_id(self) -> int:
        """The kernel's number of the family; 0 if there is none (the module may be loaded later)."""
        if self._family == 0:
            body = _HEADER.pack(CTRL_GETFAMILY, 1, 0) + nl.text(CTRL_FAMILY_NAME, "wireguard")
            none = frozenset({errno.ENOENT})
            done = self._socket.send([nl.Message(GENL_ID_CTRL, 0, body, "look for WireGuard", none)])
            for answer in done.answers:
                self._family = _U16.unpack(nl.attributes(answer.body[4:])[CTRL_FAMILY_ID])[0]
        return self._family


def _add(peers: dict[str, PeerSeen], peer: PeerSeen) -> None:
    """Add a peer, or the further addresses of a peer that did not fit one message."""
    before = peers.get(peer.public_key)
    if before is not None:
        allowed = before.allowed_ips | peer.allowed_ips
        peer = PeerSeen(
            before.public_key,
            before.endpoint,
            allowed,
            before.keepalive,
            before.last_handshake,
            before.received,
            before.sent,
        )
    peers[peer.public_key] = peer


def _peer(data: bytes) -> PeerSeen:
    attrs = nl.attributes(data)
    return PeerSeen(
        public_key=text(attrs[P_PUBLIC_KEY]),
        endpoint=_endpoint(attrs.get(P_ENDPOINT, b"")),
        allowed_ips=frozenset(_network(item) for _, item in nl.items(attrs.get(P_ALLOWED, b""))),
        keepalive=_U16.unpack(attrs[P_KEEPALIVE])[0] if P_KEEPALIVE in attrs else 0,
        last_handshake=_TIME.unpack(attrs[P_HANDSHAKE])[0] if P_HANDSHAKE in attrs else 0,
        received=_U64.unpack(attrs[P_RX])[0] if P_RX in attrs else 0,
        sent=_U64.unpack(attrs[P_TX])[0] if P_TX in attrs else 0,
    )


def _network(data: bytes) -> str:
    attrs = nl.attributes(data)
    return str(ipaddress.ip_network((attrs[I_ADDRESS], attrs[I_MASK][0])))


def _endpoint(data: bytes) -> str:
    if len(data) < 16:
        return ""
    family, port = _U16.unpack_from(data)[0], int.from_bytes(data[2:4], "big")
    if family == socket.AF_INET:
        return join_endpoint(ipaddress.ip_address(data[4:8]), port)
    return join_endpoint(ipaddress.ip_address(data[8:24]), port) if len(data) >= 28 else ""


def _pack_endpoint(endpoint: str) -> bytes:
    address, port = split_endpoint(endpoint)
    if address.version == 4:
        return _U16.pack(socket.AF_INET) + port.to_bytes(2, "big") + address.packed + bytes(8)
    return _U16.pack(socket.AF_INET6) + port.to_bytes(2, "big") + bytes(4) + address.packed + bytes(4)


def _batches(changes: Sequence[PeerChange]) -> Iterator[bytes]:
    batch = b""
    for entry in (entry for change in changes for entry in _entries(change)):
        if batch and len(batch) + len(entry) > MOST:
            yield batch
            batch = b""
        batch += entry
    if batch:
        yield batch


def _entries(change: PeerChange) -> Iterator[bytes]:
    """A change as list entries; more than one if its addresses do not fit one entry."""
    key = nl.attribute(P_PUBLIC_KEY, raw(change.public_key))
    if change.remove:
        yield nl.nested(0, key + nl.u32(P_FLAGS, F_REMOVE))
        return
    head = key + (nl.u32(P_FLAGS, F_REPLACE_ALLOWED) if change.replace else b"")
    if change.endpoint:
        head += nl.attribute(P_ENDPOINT, _pack_endpoint(change.endpoint))
    if change.keepalive is not None:
        head += nl.attribute(P_KEEPALIVE, _U16.pack(change.keepalive))
    addresses = b""
    for cidr in change.allowed_ips:
        if len(head) + len(addresses) > MOST - 100:
            yield nl.nested(0, head + nl.nested(P_ALLOWED, addresses))
            head, addresses = key, b""
        addresses += _pack_network(cidr)
    yield nl.nested(0, head + (nl.nested(P_ALLOWED, addresses) if addresses else b""))


def _pack_network(cidr: str) -> bytes:
    network = ipaddress.ip_network(cidr)
    family = socket.AF_INET if network.version == 4 else socket.AF_INET6
    body = nl.attribute(I_FAMILY, _U16.pack(family)) + nl.attribute(I_ADDRESS, network.network_address.packed)
    return nl.nested(0, body + nl.u8(I_MASK, network.prefixlen))
