"""`OverlayManager`'s methods for NAT traversal. Where it is switched off nothing is sent."""

from cni.overlay import wire
from cni.overlay.channel import Channel, log
from cni.overlay.errors import OverlaydError
from cni.overlay.nat import NatSettings, NatSnapshot
from cni.overlay.state import NodeState


class NatTraversal:
    """NAT traversal of the daemon's global device."""

    def __init__(self, channel: Channel, state: NodeState) -> None:
        self._channel = channel
        self._state = state

    def nat_config(self) -> NatSettings | None:
        """The configuration as it was given, or None. Nothing is asked."""
        return self._state.settings.nat

    def nat_enabled(self) -> bool:
        """Whether NAT traversal is on: as configured, and on if nothing was configured. Nothing is asked."""
        nat = self._state.settings.nat
        return nat is None or nat.enabled

    def start_nat_traversal(self) -> bool:
        """`nat_enabled()`; the daemon starts traversal at its first tick. Sends nothing, never fails."""
        return self.nat_enabled()

    def nat_maintenance_tick(self) -> None:
        """Have the daemon do one round of NAT maintenance; nothing if NAT is off. Raises OverlaydError.

        It has a deadline of its own (`Timeouts.nat_tick`): ZLayer's daemon asks STUN servers, and answers no other
        request meanwhile.
        """
        if self.nat_enabled():
            self._channel.call(wire.NatTick())

    def nat_status_snapshot(self) -> NatSnapshot:
        """The state of NAT traversal; empty if NAT is off, and empty and logged if the daemon gives none.

        Candidates of an unknown type, or whose address is no `ip:port`, are left out.
        """
        if not self.nat_enabled():
            return NatSnapshot()
        try:
            return NatSnapshot.of(self._channel.ask(wire.NatStatusRequest(), wire.NatStatus))
        except OverlaydError as e:
            log.warning("nat_status: %s", e)
            return NatSnapshot()
