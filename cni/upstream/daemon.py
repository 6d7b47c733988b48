"""Calls to ZLayer's overlayd, each with a time limit, and errors that name the remedy.

Every call has a part of the verb's time, because ZLayer's daemon has no time-outs of its own, and a wedged one never
answers again (contract 5.3/22, 7.5). A plugin never sets up the global overlay: that renames bridges and drops leases,
and is the task of the agent that runs the daemon (7.1).
"""

from __future__ import annotations

import socket as sockets
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar, cast

from cni import proc
from cni.errors import TryAgainLater
from cni.host.netns_holder import Process
from cni.netconf.intent import Intent
from cni.overlay import wire
from cni.overlay.client import Deadline
from cni.overlay.errors import DeadlinePassed, Refused, TransportError
from cni.overlay.manager import OverlayManager
from cni.overlay.state import Timeouts
from cni.peer_credentials import Peer

T = TypeVar("T")

OURS = "zlayer-cni/"
"""The prefix by which the status identifies our own daemon (contract 8)."""

_SHORTEST = 0.05  # seconds for a call if no time is left
_WEDGED = "if it stays so it is wedged, and only SIGKILL ends it; find it with: ss -xlp | grep {}"


class Daemon:
    """One overlayd, for the duration of one verb."""

    def __init__(self, socket: str, deadline: Deadline) -> None:
        self.socket = socket
        self._deadline = deadline
        self._manager = self._fresh()

    def _fresh(self) -> OverlayManager:
        return OverlayManager("", "", socket=self.socket)

    def hang_up(self) -> None:
        """Close the connection, so that a late answer is dropped. The next call connects again."""
        self._manager.close()
        self._manager = self._fresh()

    def status(self, keep: float = 0.0) -> wire.Status:
        """The daemon's status. Raises TryAgainLater, AttachFailed (as all calls do). `keep` seconds of the deadline are
        reserved for later steps."""
        return self._call(OverlayManager.status, keep)

    def is_ours(self, keep: float = 0.0) -> bool:
        """Whether the daemon is zlayer-cni's own, which enforces isolation networks."""
        return (self.status(keep).server or "").startswith(OURS)

    def set_up_service(self, service: str, mode: str, keep: float) -> str:
        """Ensure the service's bridge; returns its name as reported by the daemon."""
        kind = cast(wire.Mode, mode)  # the same four words in the configuration and on the wire
        return self._call(lambda manager: manager.setup_service_overlay(service, kind).name, keep)

    def attach(self, pid: int, wish: Intent, keep: float) -> str:
        """Attach the namespace of process `pid`; returns its address. Sets the service up again if the daemon has lost
        it.

        `no service bridge`: another client pruned it, or the last ephemeral member left. `link ... not found`: the
        bridge is gone but the daemon still has a record of it, which only a teardown removes (contract 7.1).
        """

        def attach(manager: OverlayManager) -> str:
            return manager.attach_container(
                pid, wish.service, ephemeral=wish.ephemeral, isolation_network=wish.isolation_network
            )

        for _ in range(2):
            try:
                return self._call(attach, keep)
            except Refused as refusal:
                if is_stale(refusal.message):
                    self._call(lambda manager: manager.teardown_service_overlay(wish.service), keep)
                elif not lacks_bridge(refusal.message):
                    raise
            self.set_up_service(wish.service, wish.mode, keep)
        return self._call(attach, keep)

    def detach(self, pid: int, seconds: float) -> None:
        """Undo an attach; an unknown PID is no error. Takes at most `seconds`."""
        self._call(lambda manager: manager.detach_container(pid), 0.0, seconds)

    def allocate(self, service: str, keep: float) -> str:
        """Lease an address of the service: the lowest free one (contract 6.4)."""
        return self._call(lambda manager: manager.allocate_ip(service), keep)

    def release(self, ip: str, keep: float) -> None:
        """Release a leased address."""
        self._call(lambda manager: manager.release_ip(ip), keep)

    def life(self) -> str:
        """The PID and start time of the process that listens: its leases date from its start. "" if unknown."""
        with suppress(OSError), sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as probe:
            probe.settimeout(max(_SHORTEST, min(1.0, self._deadline.left())))
            probe.connect(self.socket)
            pid = Peer(probe).pid
            listener = Process(pid, proc.alive_since(pid))
            return f"{listener.pid}:{listener.start_time}" if listener.start_time else ""
        return ""

    def _call(self, work: Callable[[OverlayManager], T], keep: float, most: float = 30.0) -> T:
        seconds = max(_SHORTEST, round(min(most, self._deadline.left() - keep), 1))
        self._manager.with_timeouts(Timeouts(call=seconds))
        try:
            return work(self._manager)
        except DeadlinePassed as error:
            words = error.msg.removeprefix("overlayd: ").removeprefix(self.socket).strip()
            raise Hung(f"the overlay daemon at {self.socket} {words}", _WEDGED.format(self.socket)) from error
        except TransportError as error:
            cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else None
            reason = cause or error.msg.removeprefix("overlayd: ").removeprefix("io error: ")
            msg = f"the overlay daemon at {self.socket} cannot be reached: {reason}"
            raise TryAgainLater(msg, error.details) from error


class Hung(TryAgainLater):
    """The daemon accepted the request and did not answer in time; it may still carry it out."""


def lacks_bridge(message: str) -> bool:
    """Whether a refusal means that the service has to be set up first (contract 6.8, step 1)."""
    return "no service bridge" in message or "no shared bridge" in message


def is_stale(message: str) -> bool:
    """Whether a refusal means that the bridge in the daemon's records is gone (contract 6.3)."""
    return "enslave" in message and "link '" in message and "not found" in message
