"""What is wrong with the forwarding, as problems: no server is named, none answers, a question comes back."""

from __future__ import annotations

from collections.abc import Sequence

from cni.daemon.dns.forward.upstreams import Upstreams
from cni.daemon.model.dns_upstreams import NameServer
from cni.daemon.problem_board import ProblemBoard

UNANSWERED = 3  # questions in a row that no server of a zone has answered: one alone may be the name's own fault
LOOP = 60.0  # seconds without a returned question after which the loop counts as ended
CHECK = 10.0  # seconds between two looks for servers that are this node itself


class Conditions:
    """The problems of the forwarding. Used by the forwarder's thread."""

    def __init__(self, upstreams: Upstreams, board: ProblemBoard) -> None:
        self._upstreams, self._board = upstreams, board
        self._unanswered: dict[tuple[NameServer, ...], int] = {}
        self._loops, self._looped = 0, float("-inf")
        self._checked = float("-inf")

    def named(self, servers: Sequence[NameServer]) -> None:
        """The servers that a question goes to, which may be none."""
        wanted = not servers and not self._upstreams.refuses
        self._board.set(
            "dns-no-upstream", "", "a container asked for a name outside the overlay, and no server is named" * wanted
        )

    def answered(self, server: NameServer) -> None:
        """A server has sent a message."""
        for servers in [each for each in self._unanswered if server in each]:
            del self._unanswered[servers]
            self._board.clear("dns-upstreams-silent", _list(servers))

    def unanswered(self, servers: tuple[NameServer, ...]) -> None:
        """None of these servers has answered a question in its time."""
        self._unanswered[servers] = self._unanswered.get(servers, 0) + 1
        if self._unanswered[servers] >= UNANSWERED:
            text = f"no answer from {_list(servers)} to the questions of containers"
            self._board.note("dns-upstreams-silent", _list(servers), text)

    def changed(self) -> None:
        """The servers are others now."""
        self._unanswered.clear()
        self._board.set_all("dns-upstreams-silent", {})

    def settle(self, loops: int, now: float) -> None:
        """Note or clear what is seen over time. `loops`: the questions that have come back, since the start; `now`: the
        monotonic clock, in seconds."""
        if now - self._checked < CHECK and loops == self._loops:
            return
        if loops != self._loops:
            self._loops, self._looped = loops, now
        self._checked = now
        own = self._upstreams.own_named()
        self._board.set(
            "dns-forward-loop",
            "own",
            f"the servers for other names include this node itself: {', '.join(own)}" if own else "",
        )
        text = "a question that was forwarded has come back: a server that is asked asks this node"
        self._board.set("dns-forward-loop", "returned", text if now - self._looped < LOOP else "")


def _list(servers: Sequence[NameServer]) -> str:
    return ", ".join(map(str, servers))
