"""`OverlayManager`'s methods for DNS names, and for the resolver files of macOS."""

from cni.overlay import wire
from cni.overlay.channel import Channel


class Names:
    """Names that the daemon keeps."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def register_dns(self, name: str, ip: str) -> None:
        """Give a name to an address; a later call replaces the address. Raises OverlaydError.

        ZLayer's daemon keeps the table and serves no DNS from it (contract 6.13).
        """
        self._channel.call(wire.RegisterDns(name, ip))

    def unregister_dns(self, name: str) -> None:
        """Forget a name; an unknown one is fine. Raises OverlaydError."""
        self._channel.call(wire.UnregisterDns(name))

    def write_scoped_resolver(self, zone: str, node_ip: str, port: int | None = None) -> None:
        """macOS: resolve `zone` at that address and port (None: 53). Raises OverlaydError, always on Linux."""
        self._channel.call(wire.WriteScopedResolver(zone, node_ip, port))

    def remove_scoped_resolver(self, zone: str) -> None:
        """macOS: undo that. Raises OverlaydError, always on Linux."""
        self._channel.call(wire.RemoveScopedResolver(zone))
