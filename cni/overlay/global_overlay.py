"""`OverlayManager`'s methods for the node's global overlay, and its setup after a reconnect (contract 3.3 and 3.4)."""

from dataclasses import replace

from cni.overlay import wire
from cni.overlay.channel import Channel, log
from cni.overlay.client import Client, Deadline, op_name
from cni.overlay.errors import CodecError, OverlaydError
from cni.overlay.hcn import HcnAttachments
from cni.overlay.state import NodeState


def identity_requests(state: NodeState) -> list[wire.AnyRequest]:
    """What the daemon is told of this node before a setup: its number, and its key if it is known."""
    settings = state.settings
    requests: list[wire.AnyRequest] = [wire.SetLocalNodeId(settings.node_id)]
    if settings.wg_pubkey is not None:
        requests.append(wire.SetLocalWgPubkey(settings.wg_pubkey))
    return requests


def setup_request(state: NodeState) -> wire.SetupGlobalOverlay:
    """The setup that the current settings and the cached ranges ask for."""
    settings, cached = state.settings, state.cached
    return wire.SetupGlobalOverlay(
        deployment=settings.deployment,
        instance_id=settings.instance_id,
        cluster_cidr=cached.cluster_cidr,
        slice_cidr=cached.slice_cidr,
        wg_port=settings.overlay_port,
        host_adapter_mandatory=settings.host_adapter_mandatory,
        nat=None if settings.nat is None else settings.nat.to_wire(settings.relay_credential),
    )


def reestablish(state: NodeState, conn: Client, deadline: Deadline) -> None:
    """Tell the daemon on a new connection what this node is, if a setup has succeeded before (contract 3.3).

    Built from the settings as they are now. A failure of a step is logged and the next step is done; each is sent
    straight on the connection, so that it cannot begin another reconnect. The answers change nothing that is cached.
    Services, attachments, peers, names and fences are not given again.
    """
    if state.cached.interface is None:
        return
    for request in [*identity_requests(state), setup_request(state)]:
        try:
            conn.round_trip(request, deadline)
        except (OverlaydError, CodecError) as e:
            log.warning("%s after reconnecting: %s", op_name(request), e)
        else:
            log.info("%s done again after reconnecting", op_name(request))


class GlobalOverlay:
    """The node's global overlay, and the daemon as a whole."""

    def __init__(self, channel: Channel, state: NodeState, hcn: HcnAttachments) -> None:
        self._channel = channel
        self._state = state
        self._hcn = hcn

    def set_local_wg_pubkey(self, pubkey: str) -> None:
        """Remember this node's WireGuard public key (base64) and tell the daemon; a failure of that is logged.

        Both daemons remember it, and use a key of their own.
        """
        self._state.change(lambda settings: replace(settings, wg_pubkey=pubkey))
        self._channel.attempt(wire.SetLocalWgPubkey(pubkey))

    def setup_global_overlay(self) -> None:
        """Bring up the node's global overlay; with a daemon of ours, again is harmless.

        For the program that owns the node's overlay, not for a plugin: with ZLayer's daemon it forgets the leases and
        renames later bridges (contract 7.1). Raises OverlaydError if the daemon cannot be reached or refuses. The
        node's number and key are sent before and the status is asked after; a failure of these is logged.
        """
        deadline = self._channel.deadline()
        self._channel.connect(deadline)
        for request in identity_requests(self._state):
            self._channel.attempt(request, deadline)
        reply = self._channel.call(setup_request(self._state), deadline)
        if isinstance(reply, wire.BridgeName):
            self._state.name_interface(reply.name)
        else:
            log.warning("setup_global_overlay was answered by %r, which names no interface", reply)
        status = self._channel.attempt(wire.StatusRequest(), deadline)
        if isinstance(status, wire.Status):
            self._state.refresh(status)

    def cleanup(self) -> None:
        """Take the global overlay down; forget its interface and the list of `hcn_attachments()`.

        Idempotent. Node address and ranges stay cached. What came over the daemon's overlay socket is cut off; with
        ZLayer's daemon every container is (contract 6.3). Raises OverlaydError, and then forgets nothing.
        """
        self._channel.call(wire.TeardownGlobalOverlay())
        self._state.forget_interface()
        self._hcn.clear()

    def status(self) -> wire.Status:
        """What the daemon says of itself: its global device, ranges, peers, services. Raises OverlaydError."""
        return self._channel.ask(wire.StatusRequest(), wire.Status)

    def shutdown(self) -> None:
        """End the daemon. Our containers go on without it, those of ZLayer's are cut off. Raises OverlaydError."""

        def work(conn: Client) -> None:
            conn.round_trip(wire.Shutdown(), deadline)
            conn.close()

        deadline = self._channel.deadline()
        self._channel.run(work, deadline)
