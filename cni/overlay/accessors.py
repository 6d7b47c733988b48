"""`OverlayManager`'s accessors: what is configured and cached. Nothing is asked."""

import os

from cni.overlay.address import network
from cni.overlay.state import DEFAULT_CLUSTER_CIDR, NodeState


class Accessors:
    """The values of one manager."""

    def __init__(self, state: NodeState) -> None:
        self._state = state

    def deployment(self) -> str:
        """The deployment's name."""
        return self._state.settings.deployment

    def overlay_port(self) -> int:
        """The UDP port of the global device."""
        return self._state.settings.overlay_port

    def cluster_cidr(self) -> str:
        """The cluster's range, as the daemon last said it, else as configured."""
        return self._state.cached.cluster_cidr

    def overlay_cidr(self) -> str:
        """The same range, and the default one where the manager was built with an empty text."""
        return self._state.cached.cluster_cidr or DEFAULT_CLUSTER_CIDR

    def slice_cidr(self) -> str | None:
        """This node's slice of it, as the daemon last said it, else as configured."""
        return self._state.cached.slice_cidr

    def node_ip(self) -> str | None:
        """This node's address on the global overlay, once a setup has told it."""
        return self._state.cached.node_ip

    def global_interface(self) -> str | None:
        """The global device's name, from the setup until `cleanup`."""
        return self._state.cached.interface

    def has_global_transport(self) -> bool:
        """Whether the global overlay is up, as far as this object knows."""
        return self._state.cached.interface is not None

    def dns_server_addr(self) -> str | None:
        """The resolver, as it was given."""
        return self._state.settings.dns_server_addr

    def dns_domain(self) -> str | None:
        """The search domains, separated by spaces."""
        return self._state.settings.dns_domain

    def ip_alloc_stats(self) -> tuple[int, str]:
        """(0, the cluster's network address): the daemon keeps the leases and reports no count to a client.

        The address is 0.0.0.0 where the cluster's range cannot be parsed.
        """
        try:
            return 0, str(network(self._state.cached.cluster_cidr).network_address)
        except ValueError:
            return 0, "0.0.0.0"

    def persist_ipam_state(self, path: str | os.PathLike[str]) -> None:
        """Nothing is written to `path`: the daemon keeps the leases."""

    def restore_ipam_state(self, path: str | os.PathLike[str]) -> None:
        """Nothing is read from `path`: the daemon keeps the leases."""
