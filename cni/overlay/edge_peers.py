"""`OverlayManager`'s methods for edge peers: machines outside that reach into the overlay for a limited time."""

from collections.abc import Iterable

from cni.overlay import wire
from cni.overlay.channel import Channel


class EdgePeers:
    """Edge peers of one daemon."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def mint_edge_peer(
        self, name: str, ttl_secs: int, node_endpoint: str, allow: Iterable[str] = ()
    ) -> wire.EdgeConfig:
        """Make a peer for a machine outside, for so many seconds, that reaches `allow` (empty: everything).

        `node_endpoint` is the `host:port` at which it finds this node; `allow` are CIDRs, addresses, or
        services of this node. The answer holds its private key, which cannot be asked for again;
        `cni.overlay.edge` makes one line of it. Raises OverlaydError: Refused for a name that is live.
        """
        request = wire.MintEdgePeer(name=name, ttl_secs=ttl_secs, allow=tuple(allow), node_endpoint=node_endpoint)
        return self._channel.ask(request, wire.EdgeConfig)

    def revoke_edge_peer(self, name: str) -> None:
        """End an edge peer; an unknown one is fine. Raises OverlaydError."""
        self._channel.ask(wire.RevokeEdgePeer(name), wire.Ok)

    def list_edge_peers(self) -> list[wire.EdgePeer]:
        """The live edge peers. Raises OverlaydError."""
        return list(self._channel.ask(wire.ListEdgePeers(), wire.EdgePeers).peers)
