"""The events of the daemon: one type for each, published and subscribed to here.

The composition root (`app.py`) subscribes; the component in which something happened publishes. A handler runs in the
thread that publishes, which may hold locks. A handler therefore only notes the event (it sets a flag, or puts the event
into a queue), calls no other component, and never blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cni.daemon.model.records import Attachment
from cni.overlay import wire
from cni.problems import Problem

E = TypeVar("E", bound="Event")


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened."""


@dataclass(frozen=True, slots=True)
class AttachmentLive(Event):
    """An attach was committed, by either socket. `end`: the id of the container's namespace and the index of the
    container's end there; None if the kernel did not tell them."""

    attachment: Attachment
    end: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class AttachmentLeaves(Event):
    """The port of an attachment was removed; its addresses are about to be released."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class AttachmentGone(Event):
    """An attachment was removed, with its record."""

    attachment: Attachment


@dataclass(frozen=True, slots=True)
class GuestsChanged(Event):
    """A guest was added, or is about to give its address back."""


@dataclass(frozen=True, slots=True)
class NamesRegistered(Event):
    """An agent has registered or unregistered a DNS name."""


@dataclass(frozen=True, slots=True)
class NodeFactsChanged(Event):
    """What this node publishes of itself in a cluster may have changed: services, members of networks, keys."""


@dataclass(frozen=True, slots=True)
class PeerChanged(Event):
    """The health or the endpoint of a WireGuard peer changed; `message` is what agents are told."""

    message: wire.AnyEvent


@dataclass(frozen=True, slots=True)
class PeersChanged(Event):
    """The cluster's peers of this node changed, or where they can be reached."""


@dataclass(frozen=True, slots=True)
class PeerNamesResolved(Event):
    """The name of a peer resolves to other addresses than before."""


@dataclass(frozen=True, slots=True)
class PathsMeasured(Event):
    """The path to a peer was measured, and carries other sizes than before."""


@dataclass(frozen=True, slots=True)
class ProblemBegan(Event):
    """A problem of the registry exists that did not, or its text changed."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class ProblemEnded(Event):
    """A problem exists no more."""

    problem: Problem


@dataclass(frozen=True, slots=True)
class CallFailed(Event):
    """A call of a plugin failed. `facts`: what is known of the attachment, by key, as in the log's line."""

    verb: str
    facts: Mapping[str, str]
    code: int
    text: str


@dataclass(frozen=True, slots=True)
class AttachmentCollected(Event):
    """Garbage collection released an attachment, because `reason`."""

    attachment: Attachment
    reason: str


@dataclass(frozen=True, slots=True)
class Reconciled(Event):
    """A periodic comparison with the kernel ended; `complete`: every step of it could be carried out."""

    complete: bool


@dataclass(frozen=True, slots=True)
class KernelChanged(Event):
    """A link, an address or a route of the host was changed, by any program; addresses and routes that this daemon
    changes on the overlay's links are left out. Of those links themselves only deletions are announced, and those of
    ports are not.

    `link`: the link's name, "" for an address or a route of a link of the host; "link" and an index for what went with
    its link.
    `is_loss`: a link or an address was deleted, or the kernel has lost notifications."""

    link: str
    is_loss: bool


class Events:
    """Passes each event to the handlers of its type."""

    def __init__(self) -> None:
        self._handlers: dict[type[Event], list[Callable[[Any], None]]] = {}

    def subscribe(self, kind: type[E], handler: Callable[[E], None]) -> None:
        """Call `handler` with every event of the type `kind` from now on. Called before the daemon's threads start."""
        self._handlers.setdefault(kind, []).append(handler)

    def publish(self, event: Event) -> None:
        """Call the handlers of the event's type, in the order of their subscription. Thread-safe."""
        for handler in self._handlers.get(type(event), ()):
            handler(event)
