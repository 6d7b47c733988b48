"""What passes on the underlay, recorded: between nodes there is WireGuard and the store's TCP, and nothing else."""

from __future__ import annotations

import ipaddress
import socket
import struct
import threading
from collections.abc import Iterable
from types import TracebackType

from .fleet import PORT, inside

STORE = 2379  # etcd's port
ETH_IP, ETH_ARP, ETH_IP6 = 0x0800, 0x0806, 0x86DD
ETH_P_ALL = 3
SO_RCVBUFFORCE = 33
UNDERLAY, UNDERLAY6 = ipaddress.ip_network("198.51.100.0/24"), ipaddress.ip_network("2001:db8:51::/64")
DISCOVERY = frozenset({133, 134, 135, 136, 137, 143})  # neighbour discovery and multicast reports


class Capture:
    """A recording of every frame in the underlay's namespace, from its beginning to its end; a context manager."""

    def __init__(self, path: str, ports: Iterable[int] = (PORT, STORE)) -> None:
        """`path`: of the underlay's namespace; `ports`: those that WireGuard and the store use."""
        self._ports = frozenset(ports)
        self._socket = inside(path, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 25)
        self._socket.settimeout(0.1)
        self._strange: dict[str, int] = {}
        self.expected = 0
        """Frames of WireGuard and the store."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)

    def __enter__(self) -> Capture:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)
        self._socket.close()

    def strange(self) -> dict[str, int]:
        """What was neither WireGuard nor the store, with the number of frames, by what it was."""
        return dict(self._strange)

    def _run(self) -> None:
        while True:
            try:
                frame = self._socket.recv(1 << 16)
            except TimeoutError:
                if self._stop.is_set():
                    return
                continue
            what = unexpected(frame, self._ports)
            if what is None:
                self.expected += 1
            elif what:
                self._strange[what] = self._strange.get(what, 0) + 1


def unexpected(frame: bytes, ports: frozenset[int] = frozenset((PORT, STORE))) -> str | None:
    """What a frame is, if it is not one of the expected; None for WireGuard and the store, "" for what links need
    themselves (ARP and neighbour discovery of the underlay's own addresses, errors about the expected)."""
    (kind,) = struct.unpack_from("!H", frame, 12)
    body = frame[14:]
    if kind == ETH_ARP:
        target = ipaddress.ip_address(body[24:28])
        return "" if target in UNDERLAY else f"ARP for {target}"
    if kind == ETH_IP:
        return _ipv4(body, ports)
    if kind == ETH_IP6:
        src, dst = ipaddress.ip_address(body[8:24]), ipaddress.ip_address(body[24:40])
        here = all(a.is_link_local or a.is_multicast or a.is_unspecified or a in UNDERLAY6 for a in (src, dst))
        discovery = body[6] == 58 and body[40] in DISCOVERY and not _asks_for_another(body[40:])
        if here and (discovery or body[6] == 0):
            return ""
        return None if _has_port(body[6], body[40:], ports) else f"IPv6 {src} > {dst} protocol {body[6]}"
    return f"EtherType {kind:#06x}"


def _asks_for_another(message: bytes) -> bool:
    """Whether a solicitation or an advertisement is about an address that is not of the underlay."""
    if message[0] not in (135, 136):
        return False
    target = ipaddress.ip_address(message[8:24])
    return not (target.is_link_local or target in UNDERLAY6)


def _ipv4(body: bytes, ports: frozenset[int]) -> str | None:
    src, dst = ipaddress.ip_address(body[12:16]), ipaddress.ip_address(body[16:20])
    payload, protocol = body[(body[0] & 15) * 4 :], body[9]
    if src in UNDERLAY and dst in UNDERLAY:
        if _has_port(protocol, payload, ports):
            return None
        if protocol == 1 and payload[:1] == b"\x03" and _ipv4(payload[8:], ports) is None:
            return ""  # a port of an engine that has just died is unreachable
    return f"IPv4 {src} > {dst} protocol {protocol}"


def _has_port(protocol: int, payload: bytes, ports: frozenset[int]) -> bool:
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP) or len(payload) < 4:
        return False
    return bool(ports.intersection(struct.unpack_from("!HH", payload)))
