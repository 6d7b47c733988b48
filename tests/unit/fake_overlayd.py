"""A fake overlayd, for the client's tests: it keeps state, answers as contract 6 says, and records what it was asked.

A fake, because the faults a client must survive (an end of stream in the middle of a body, a late answer, a daemon
that wedges) cannot be asked of a real daemon. Without `server` it is ZLayer's, as far as peers go: a key set twice
on a device stops it for ever, and a peer has room for one CIDR (contract 5.3/22, 23). It runs in threads of the
test's process and touches nothing but its socket.
"""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cni import naming
from cni.overlay import wire
from cni.overlay.framing import Framer, frame

Answer = Callable[[socket.socket, int], None]


def reply(response: Any) -> Answer:
    """Answer with this."""
    return lambda sock, id_: sock.sendall(frame(wire.encode(wire.ResponseFrame(id_, response))))


def raw(data: bytes) -> Answer:
    """Send these bytes and hang up."""

    def answer(sock: socket.socket, _: int) -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_RDWR)

    return answer


def hang_up(sock: socket.socket, _: int) -> None:
    """Say nothing and close."""
    sock.shutdown(socket.SHUT_RDWR)


def silence(_sock: socket.socket, _id: int) -> None:
    """Say nothing and stay."""


def before(response: Any, *frames: wire.Frame) -> Answer:
    """Say these frames first, then answer."""

    def answer(sock: socket.socket, id_: int) -> None:
        for f in frames:
            sock.sendall(frame(wire.encode(f)))
        reply(response)(sock, id_)

    return answer


class FakeOverlayd:
    """Listens at `path` from `start` to `stop`. `script` holds answers to give instead of its own, in turn."""

    def __init__(self, path: Path, server: str | None = None, windows: bool = True) -> None:
        self.path, self.server, self.windows = str(path), server, windows
        self.asked: list[Any] = []
        self.script: list[tuple[type, Answer]] = []
        self.accepted = 0
        self._threads: list[threading.Thread] = []
        self._socks: list[socket.socket] = []
        self.forget()

    def forget(self) -> None:
        """What a restart does to it."""
        self.interface: str | None = None
        self.deployment, self.instance = "", ""
        self.services: dict[str, str] = {}
        self.dedicated: set[str] = set()
        self.attached: dict[Any, str] = {}
        self.peers: dict[tuple[str | None, str], list[str]] = {}
        self.edges: dict[str, wire.EdgePeer] = {}
        self.leases = 1
        self.wedged = False

    def start(self) -> "FakeOverlayd":
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(16)
        self._spawn(self._accept, self._listener)
        return self

    def stop(self) -> None:
        for sock in [self._listener, *self._socks]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        for sock in [self._listener, *self._socks]:
            sock.close()
        self._threads, self._socks = [], []
        Path(self.path).unlink(missing_ok=True)

    def restart(self) -> None:
        self.stop()
        self.forget()
        self.start()

    def ops(self) -> list[str]:
        """What it was asked, as operation names; asking empties the list."""
        asked, self.asked = self.asked, []
        return [type(request).__struct_config__.tag for request in asked]

    def next(self, kind: type, answer: Answer) -> None:
        """The next request of that kind that no earlier script line takes gets this answer."""
        self.script.append((kind, answer))

    def _spawn(self, work: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=work, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._socks.append(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        framer = Framer()
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                framer.feed(data)
                while (body := framer.next_frame()) is not None:
                    got = wire.decode_request_frame(body)
                    assert got is not None
                    self.asked.append(got.request)
                    if not self.wedged:
                        self._answer(got.request)(sock, got.id)

    def _answer(self, request: Any) -> Answer:
        for line in self.script:
            if isinstance(request, line[0]):
                self.script.remove(line)
                return line[1]
        response = self._do(request)
        return silence if self.wedged else reply(response)

    def _do(self, request: Any) -> Any:  # noqa: PLR0911
        match request:
            case wire.SetupGlobalOverlay():
                self.deployment, self.instance = request.deployment, request.instance_id
                self.interface = f"zl-{request.deployment}-{request.instance_id}-g"
                return wire.BridgeName(self.interface)
            case wire.TeardownGlobalOverlay():
                self.interface = None
            case wire.SetupServiceOverlay():
                mode = "auto" if request.mode == "isolated" else request.mode
                self.services[request.service] = naming.service_bridge(self.deployment, self.instance, request.service)
                (self.dedicated.add if mode == "dedicated" else self.dedicated.discard)(request.service)
                return wire.ServiceOverlay(self.services[request.service], mode)
            case wire.TeardownServiceOverlay():
                self.services.pop(request.service, None)
                self.dedicated.discard(request.service)
            case wire.AllocateIp():
                return wire.IpReply(self._lease())
            case wire.AttachContainer():
                return self._attach(request)
            case wire.DetachContainer():
                self.attached.pop(request.handle, None)
            case wire.AddPeer() | wire.RemovePeer() | wire.AddAllowedIp() | wire.RemoveAllowedIp():
                return self._peer(request)
            case wire.MintEdgePeer():
                config = wire.EdgeConfig(
                    version=1, name=request.name, overlay_ip=self._lease(), prefix_len=28, private_key="s",
                    public_key="p", peers=(), expires_at_unix=request.ttl_secs,
                )  # fmt: skip
                edge = wire.EdgePeer(request.name, config.overlay_ip, "p", 0, request.ttl_secs)
                self.edges[request.name] = edge
                return config
            case wire.RevokeEdgePeer():
                self.edges.pop(request.name, None)
            case wire.ListEdgePeers():
                return wire.EdgePeers(tuple(self.edges.values()))
            case wire.PruneOrphanBridges():
                idle = [b for b in self.services.values() if b not in request.live_bridge_names]
                self.services = {s: b for s, b in self.services.items() if b not in idle}
                return wire.PrunedBridges(tuple(idle))
            case wire.StatusRequest():
                return self._status()
            case wire.NatStatusRequest():
                return wire.NatStatus()
            case wire.WriteScopedResolver() | wire.RemoveScopedResolver():
                return wire.Err("overlay engine error: scoped resolver is macOS-only")
        return wire.Ok()

    def _lease(self) -> str:
        self.leases += 1
        return f"10.200.5.{self.leases}"

    def _status(self) -> wire.Status:
        up = self.interface is not None
        return wire.Status(
            interface=self.interface,
            node_ip="10.200.0.17" if up else None,
            overlay_cidr="10.200.0.0/16",
            slice_cidr="10.200.0.16/28" if up else None,
            peer_count=len(self.peers),
            service_count=len(self.services),
            server=self.server,
        )

    def _attach(self, request: wire.AttachContainer) -> Any:
        if isinstance(request.handle, wire.GuestManaged):
            return wire.GuestConfig(
                overlay_ip=self._lease(), prefix_len=26, private_key="s", public_key="p", listen_port=51420,
                peers=(), dns_server=request.dns_server, dns_domain=request.dns_domain,
            )  # fmt: skip
        if request.service not in self.services:
            return wire.Err(f"no service bridge for service {request.service}; call setup_service_overlay() first")
        if isinstance(request.handle, wire.WindowsContainer) and not self.windows:
            return wire.Err("WindowsContainer attach is only supported on Windows")
        self.attached.setdefault(request.handle, self._lease())
        guid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0" if isinstance(request.handle, wire.WindowsContainer) else None
        return wire.Attached(self.attached[request.handle], guid)

    def _peer(self, request: Any) -> Any:  # noqa: PLR0911
        service = getattr(request.scope, "service", None)
        key = (service, request.public_key if isinstance(request, wire.AddPeer) else request.pubkey)
        if service is not None and service not in self.dedicated:
            return wire.Err(f"no dedicated overlay for service {service}")
        if isinstance(request, wire.RemovePeer):
            self.peers.pop(key, None)
            return wire.Ok()
        if self.server is None and key in self.peers:
            self.wedged = True
            return None
        if isinstance(request, wire.AddPeer):
            cidrs = request.allowed_ips.split(",")
            if self.server is None and len(cidrs) > 1:
                return wire.Err("overlay engine error: add_peer failed: UAPI set failed: errno=22")
            self.peers[key] = cidrs
            return wire.Ok()
        if key not in self.peers:
            return wire.Err(f"overlay engine error: cannot add allowed_ip {request.cidr} to unknown peer {key[1]}")
        held = self.peers[key]
        held.append(request.cidr) if isinstance(request, wire.AddAllowedIp) else held.remove(request.cidr)
        return wire.Ok()

    def routed(self, key: str, service: str | None = None) -> list[str]:
        """What a peer is routed, folded, as the device would show it."""
        networks: list[Any] = [ipaddress.ip_network(cidr) for cidr in self.peers[service, key]]
        return [str(network) for network in ipaddress.collapse_addresses(networks)]
