"""WireGuard devices: of the kernel if it has WireGuard, else of a userspace program on the machine.

`ensure` changes only what differs: an existing device is kept, never recreated, so the start of a daemon ends no
session. One object, created once, usable from any thread.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cni.host import addressing, links, netlink, sysctl, tunnel_routes, wg_engine, wg_kernel
from cni.host.tunnel_routes import RoutesInForce, TunnelRoute, UnderlayRoute
from cni.host.wg_kernel import KernelWireGuard
from cni.host.wg_types import DeviceSeen, NoEngine, PeerChange, Reading, raw
from cni.host.wg_uapi import Uapi

KERNEL = "kernel"
UAPI_DIR = "/var/run/wireguard"
DISCARD = 9
LOOSE = "2"  # rp_filter: an answer may arrive by another of our devices


@dataclass(frozen=True)
class Device:
    """The desired state of a device. `private_key` is base64 and never logged; `mtu` in bytes; `fragments`: whether the
    datagrams of a userspace engine may be fragmented (those of the kernel always may)."""

    name: str
    private_key: str = field(repr=False)
    port: int
    mtu: int
    addresses: tuple[links.Interface, ...] = ()
    fragments: bool = False


class Tunnels:
    """The WireGuard devices of the network namespace in which the daemon was started."""

    def __init__(self, log_dir: str, engine: str = "auto", uapi_dir: str = UAPI_DIR, hosted: bool = False) -> None:
        """`engine`: `auto`, `kernel`, the name of a program, or `none`; `log_dir`: directory of the programs' logs;
        `hosted`: an engine host starts the programs."""
        self._engine = engine
        self._lock = threading.RLock()
        self._uapi = Uapi(uapi_dir)
        self._engines = wg_engine.Engines(self._uapi, log_dir, hosted)
        self._net: netlink.Netlink | None = None
        self._wg: KernelWireGuard | None = None
        self._routed: dict[str, RoutesInForce | None] = {}

    @property
    def _socket(self) -> netlink.Netlink:
        if self._net is None:
            self._net = netlink.Netlink()
        return self._net

    @property
    def _kernel(self) -> KernelWireGuard:
        if self._wg is None:
            self._wg = KernelWireGuard()
        return self._wg

    def close(self) -> None:
        """Close the sockets; devices and engines keep running."""
        with self._lock:
            if self._net is not None:
                self._net.close()
            if self._wg is not None:
                self._wg.close()
            self._net = self._wg = None

    # --- devices -----------------------------------------------------------------------------------------------------

    def ensure(self, device: Device) -> DeviceSeen:
        """Ensure that the device exists, is up, and has the given key, port, MTU and addresses; peers are not changed.
        An address that cannot be set is in the `faults` of the result.

        Raises NoEngine if no WireGuard is available, TimeoutError if the engine does not answer, OSError if a step
        fails: EEXIST if another kind of link has the name, EADDRINUSE if the port is taken.
        """
        with self._lock:
            link = links.find_link(self._socket, device.name)
            reading = self._read(device.name, link)
            if link is None or reading is None:
                self._create(device.name, link)
                link = links.find_link(self._socket, device.name)
                reading = self._read(device.name, link)
            if link is None or reading is None:
                raise OSError(errno.ENODEV, f"the WireGuard device {device.name} vanished")
            again = self._correct(device, link, reading)
            faults = self._address(device, link)
            if again:
                reading = self._read(device.name, link)
            if reading is None:
                raise OSError(errno.ENODEV, f"the WireGuard device {device.name} vanished")
            seen = replace(self._seen(device.name, link, reading), faults=faults)
            if seen.pid:
                self._engines.tune(device.name, link.index, seen.port, device.fragments)
            return seen

    def _create(self, name: str, link: links.Link | None) -> None:
        """Create the device. An existing tunnel link without an engine is left over from an engine that ended, and is
        removed first."""
        if link is not None and link.kind not in ("tun", "wireguard"):
            kind = link.kind or "plain"
            raise netlink.NetlinkError(errno.EEXIST, f"create {name}", f"a {kind} link has that name")
        if self._engine == "none":
            raise NoEngine("WireGuard is switched off (wireguard_engine: none)")
        if link is not None:
            links.remove_link(self._socket, name)
        if self._engine in ("auto", KERNEL):
            if wg_kernel.create(self._socket, name):
                return
            if self._engine == KERNEL:
                raise NoEngine("this kernel has no WireGuard (wireguard_engine: kernel)")
        program = wg_engine.find("" if self._engine == "auto" else self._engine)
        if not program:
            what = "this kernel has no WireGuard and there is" if self._engine == "auto" else "there is"
            sought = " or ".join(wg_engine.PROGRAMS) if self._engine == "auto" else self._engine
            raise NoEngine(f"{what} no {sought} on this machine; install one: apt-get install wireguard-go")
        if self._engines.owner(name):
            self._engines.end(name)
        self._engines.start(program, name)

    def _correct(self, device: Device, link: links.Link, reading: Reading) -> bool:
        """Set the key, port, MTU and state that differ; returns whether the device must be read again."""
        key = raw(device.private_key)
        new_key = key if key != reading.private_key else None
        new_port = device.port if device.port != reading.port else None
        if new_key is not None or new_port is not None:
            self._write(device.name, link, new_key, new_port, ())
        if link.mtu != device.mtu:
            links.set_mtu(self._socket, link.index, device.mtu)
        sysctl.ensure(f"ipv4/conf/{device.name}/rp_filter", LOOSE)
        sysctl.forward(device.name, six=any(address.version == 6 for address in device.addresses))
        if not link.up:
            # The kernel binds the port when the device comes up, so EADDRINUSE is raised here.
            links.set_up(self._socket, link.index)
        return new_key is not None or new_port is not None or not link.up

    def probe(self, address: str) -> None:
        """Send one datagram to an address behind a tunnel, to the discard port (RFC 863). Never raises OSError."""
        six = ":" in address
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            sock.setblocking(False)
            sock.sendto(b"", (address, DISCARD))

    def _address(self, device: Device, link: links.Link) -> tuple[str, ...]:
        """Ensure the device's addresses and remove others; returns the errors, one for each failed step."""
        faults = []
        if any(address.version == 6 for address in device.addresses):
            try:  # only the overlay uses the device, so it has IPv6 also on a host that disables IPv6 for all links
                sysctl.ensure(f"ipv6/conf/{device.name}/disable_ipv6", "0")
            except OSError as error:
                faults.append(str(error))
        have = {address for _, address in addressing.list_addresses(self._socket, link.index)}
        wrong = {address for address in have - set(device.addresses) if not address.is_link_local}
        for act, addresses in (
            (addressing.remove_address, wrong),
            (addressing.ensure_address, set(device.addresses) - have),
        ):
            for address in addresses:
                try:
                    act(self._socket, link.index, address)
                except OSError as error:
                    faults.append(str(error))
        return tuple(faults)

    def read(self, name: str) -> DeviceSeen | None:
        """The device and its peers; None if there is no such device, or no engine runs it. Raises OSError."""
        with self._lock:
            link = links.find_link(self._socket, name)
            reading = self._read(name, link)
            return None if link is None or reading is None else self._seen(name, link, reading)

    def _seen(self, name: str, link: links.Link, reading: Reading) -> DeviceSeen:
        if link.kind == "wireguard":
            return DeviceSeen(name, KERNEL, reading.port, reading.peers, mark=reading.mark)
        pid = self._uapi.owner(name)
        return DeviceSeen(name, self._engines.program(pid), reading.port, reading.peers, pid, mark=reading.mark)

    def _read(self, name: str, link: links.Link | None) -> Reading | None:
        if link is None:
            return None
        if link.kind == "wireguard":
            return self._kernel.read(name)
        return self._uapi.read(name) if self._engines.owner(name) else None

    def _write(
        self,
        name: str,
        link: links.Link,
        private_key: bytes | None,
        port: int | None,
        changes: Sequence[PeerChange],
    ) -> None:
        backend = self._kernel if link.kind == "wireguard" else self._uapi
        backend.write(name, private_key, port, changes)

    def change(self, name: str, changes: Sequence[PeerChange]) -> None:
        """Carry out changes to peers, in order. Raises OSError; the changes before the failure have taken effect."""
        if not changes:
            return
        with self._lock:
            link = links.find_link(self._socket, name)
            if link is None:
                raise OSError(errno.ENODEV, f"there is no WireGuard device {name}")
            self._write(name, link, None, None, changes)

    def remove(self, name: str) -> None:
        """Remove the device and its engine. A link of that name that is not a tunnel is not touched. Idempotent."""
        with self._lock:
            link = links.find_link(self._socket, name)
            if link is not None and link.kind not in ("tun", "wireguard"):
                return
            if link is None or link.kind == "tun":
                self._engines.end(name)
            if link is not None:
                links.remove_link(self._socket, name)

    def kill_engine(self, name: str) -> None:
        """Kill the program that runs the device; the device ends with it. Idempotent. Raises OSError."""
        with self._lock:
            self._engines.kill(name)

    # --- routes ------------------------------------------------------------------------------------------------------

    def ensure_routes(self, name: str, desired: Mapping[links.Network, TunnelRoute]) -> dict[links.Network, int]:
        """Ensure exactly these routes into the device; returns the destinations that the kernel refused, with the error
        number: EEXIST if another device has a route.

        New routes are added before old ones are removed; unchanged routes stay. Nothing is read if the last call for
        the same object found all routes in place and no route of the namespace has changed since.
        """
        with self._lock:
            link = links.find_link(self._socket, name)
            if link is None:
                return {}
            # Read before the routes: a change in between is found by the next call.
            seen = RoutesInForce(desired, link.index, tunnel_routes.fingerprint(self._socket))
            before = self._routed.get(name)
            if before is not None and before.same(seen):
                return before.refused
            was_right, seen.refused = tunnel_routes.ensure_routes(self._socket, link.index, desired)
            self._routed[name] = seen if was_right else None
            return seen.refused

    def change_routes(
        self, name: str, gone: Iterable[TunnelRoute], fresh: Iterable[TunnelRoute]
    ) -> dict[links.Network, int]:
        """Remove routes, then add routes; returns the refused destinations as `ensure_routes` does."""
        with self._lock:
            index = self.link_index(name)
            tunnel_routes.remove_routes(self._socket, index, gone)
            return tunnel_routes.add_routes(self._socket, index, fresh)

    def ways_to(self, addresses: Iterable[links.Address]) -> dict[links.Address, UnderlayRoute | None]:
        """The routes of packets to many addresses; None for an address without a route."""
        with self._lock:
            return tunnel_routes.ways_to(self._socket, addresses)

    def way_to(self, address: links.Address) -> UnderlayRoute | None:
        """The route of packets to an address; None if there is none."""
        with self._lock:
            return tunnel_routes.way_to(self._socket, address)

    def link_index(self, name: str) -> int:
        """The index of a link; 0 if there is none."""
        with self._lock:
            link = links.find_link(self._socket, name)
            return 0 if link is None else link.index

    def sent(self, name: str) -> int:
        """The bytes that were sent into the device since it was created; 0 if there is no such device."""
        with self._lock:
            return links.sent_bytes(self._socket, name)

    def proxy(self, bridge: str, address: links.Address, on: bool = True) -> None:
        """Start or stop answering on a bridge for an address behind a tunnel."""
        with self._lock:
            index = self.link_index(bridge)
            if index:
                if on and address.version == 6:
                    sysctl.ensure(f"ipv6/conf/{bridge}/proxy_ndp", "1")
                act = tunnel_routes.ensure_proxy if on else tunnel_routes.remove_proxy
                act(self._socket, index, address)
