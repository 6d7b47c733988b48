"""The dialling that a manager's settings ask for, read at each new connection."""

from cni.overlay.client import Client, Deadline, OnEvent, dial
from cni.overlay.state import NodeState
from cni.overlay.transport import Connect


class SettingsDialer:
    """Dials the daemon that the settings name at that moment, as often as they say (`cni.overlay.session.Dialer`)."""

    def __init__(self, state: NodeState, on_event: OnEvent | None, connect: Connect) -> None:
        self._state = state
        self._on_event = on_event
        self._connect = connect

    @property
    def address(self) -> str:
        """The socket's path, or the pipe's name."""
        return self._state.settings.socket

    def dial(self, deadline: Deadline) -> Client:
        """A new connection. Raises TransportError."""
        return dial(self.address, deadline, self._state.settings.dialing, self._on_event, self._connect)
