"""What the node's DNS server knows of the forwarding: one call for each question, which never waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

from cni.daemon.model.dns_upstreams import NameServer

Transport = Literal["udp", "tcp"]
Reply = Callable[[bytes], None]


class Forwarding(Protocol):
    """Answers of other servers. Safe from any thread."""

    def answer(
        self, query: bytes, transport: Transport, client: str, reply: Reply, asked: NameServer | None = None
    ) -> bytes | None:
        """The answer to a message that a client sent, if it is known now.

        None: `reply` is called with the answer, once and within `DEADLINE` seconds, in the forwarder's thread, so it
        must not wait; it is not called for a message that is no question (an answer, or shorter than a header). An
        answer over UDP has at most the size that the client's EDNS allows, and TC is set where it had more. `client`:
        the address that the message came from, by which the number of unanswered questions is limited. `asked`: the
        server that the client itself had asked, which then gets the question in place of the configured ones.

        Does not raise, and does not wait. Names of the overlay's own zone must not get here.
        """

    def counts(self) -> dict[str, int]:
        """What has been counted since the start, by name."""
