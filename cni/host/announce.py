"""Announces the addresses of a container's interface to its neighbours, which may know them with another MAC.

For each address an ARP announcement (RFC 5227, 3) or an unsolicited neighbour advertisement (RFC 4861, 7.2.6) is sent
inside the container: so the fence judges it like any frame of the container, and only the members of its network hear
it. The kernel's own announcements (arp_notify, ndisc_notify) come too early: the host end is still down, or the fence
does not admit the MAC yet.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import struct
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from cni.host import links, netlink
from cni.host.interface_ioctl import InterfaceLookup
from cni.host.netns import entered
from cni.host.worker import IDLE, Crew, beat

log = logging.getLogger(__name__)

SOL_PACKET, QDISC_BYPASS = 263, 20
ETH_ARP, ETH_IPV6, ICMPV6 = 0x0806, 0x86DD, 58
BROADCAST = b"\xff" * 6
ALL_NODES = IPv6Address("ff02::1").packed
PATIENCE = 0.5  # seconds that an announcement waits for the bridge to forward the port's frames
STEP = 0.005  # seconds between two looks at the host end meanwhile
MOST_WAITING = 4096  # announcements; further ones are dropped, and the neighbours learn a new MAC from traffic


def frame(mac: str, address: links.Address) -> bytes:
    """The Ethernet frame that announces `address` with `mac`. Pure."""
    own = links.mac_bytes(mac)
    if isinstance(address, IPv4Address):
        arp = struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1) + own + address.packed + bytes(6) + address.packed
        return BROADCAST + own + ETH_ARP.to_bytes(2, "big") + arp
    override, target_mac = 0x20000000, 2  # the flag O; the option "target link-layer address"
    body = struct.pack(">BBHI", 136, 0, 0, override) + address.packed + bytes([target_mac, 1]) + own
    pseudo = address.packed + ALL_NODES + struct.pack(">II", len(body), ICMPV6)
    body = body[:2] + _checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    header = struct.pack(">IHBB", 6 << 28, len(body), ICMPV6, 255) + address.packed + ALL_NODES
    return b"\x33\x33\x00\x00\x00\x01" + own + ETH_IPV6.to_bytes(2, "big") + header + body


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return 0xFFFF - total


def send(netns_fd: int, ifname: str, mac: str, addresses: Collection[links.Address]) -> socket.socket:
    """Announce the addresses by the interface `ifname` of the namespace. Returns the socket for the caller to close,
    which takes 10 ms in the kernel. Raises OSError."""
    with entered(netns_fd):
        mouth = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        mouth.setsockopt(SOL_PACKET, QDISC_BYPASS, 1)  # the queue of a link that has just come up drops silently
        mouth.bind((ifname, 0))
        for address in addresses:
            mouth.send(frame(mac, address))
    except BaseException:
        mouth.close()
        raise
    return mouth


@dataclass(frozen=True)
class Announcement:
    """Addresses to announce by an interface of a namespace. `host`: the index of its host end; `netns`: a descriptor of
    the namespace, closed afterwards; `until`: the end of the wait for the host end, on the monotonic clock."""

    host: int
    netns: int
    ifname: str
    mac: str
    addresses: tuple[links.Address, ...]
    until: float


class Announcer:
    """Announces in its own thread, in the network namespace it was constructed in, so that an ADD does not wait."""

    def __init__(self, crew: Crew | None = None) -> None:
        self._queue: queue.Queue[Announcement | None] = queue.Queue(MOST_WAITING)
        self._spent: list[socket.socket] = []
        self._own = InterfaceLookup()
        self._worker = (crew or Crew()).worker("announcer", self._work)
        self._worker.start()

    def announce(self, host: int, netns_fd: int, ifname: str, mac: str, addresses: Collection[links.Address]) -> None:
        """Announce the addresses as soon as the bridge forwards the port's frames. The caller may close `netns_fd` at
        once. Never raises: without an announcement the neighbours learn a new MAC later."""
        try:
            fd = os.dup(netns_fd)
        except OSError as error:
            log.warning("%s is not announced: %s", ", ".join(map(str, addresses)), error)
            return
        try:
            self._queue.put_nowait(
                Announcement(host, fd, ifname, mac, tuple(addresses), time.monotonic() + PATIENCE),
            )
        except queue.Full:
            os.close(fd)

    def close(self) -> None:
        """End the thread; what waits is announced now."""
        self._worker.retire()
        self._queue.put(None)
        self._worker.join(5.0)
        self._own.close()

    def _work(self) -> None:
        waiting: list[Announcement] = []
        ended = False
        while not ended:
            beat(IDLE)
            with suppress(queue.Empty):
                item = self._queue.get(timeout=STEP if waiting else 0 if self._spent else IDLE)
                ended = item is None
                waiting += [item] if item is not None else []
            beat()
            waiting = [announcement for announcement in waiting if not self._sent(announcement, at_once=ended)]
            while self._spent and self._queue.empty():
                self._spent.pop().close()

    def _sent(self, announcement: Announcement, at_once: bool) -> bool:
        """Send the announcement unless the host end is still coming up; False if it has to wait."""
        try:
            running = self._own.is_running(announcement.host)
            if running is False and not (at_once or time.monotonic() > announcement.until):
                return False
            if running is not None:
                self._spent.append(
                    send(announcement.netns, announcement.ifname, announcement.mac, announcement.addresses)
                )
        except OSError as error:
            log.info(
                "%s of %s is not announced: %s", ", ".join(map(str, announcement.addresses)), announcement.ifname, error
            )
        os.close(announcement.netns)
        return True


def send_now(host: int, netns_fd: int, ifname: str, mac: str, addresses: Collection[links.Address]) -> None:
    """Announce in the calling thread: waits for the bridge to forward the port's frames. For a process that ends soon.
    Raises OSError."""
    end = time.monotonic() + PATIENCE
    with netlink.Netlink() as own:
        while time.monotonic() < end:
            link = links.find_link(own, index=host)
            if link is None or link.running:
                break
            time.sleep(STEP)
    send(netns_fd, ifname, mac, addresses).close()
