"""The path to a peer in words: what it is called, and why it is that one. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cni.daemon.model.peer_paths import RELAYED, RelayUse

PATHS = {"host": "direct", "outside": "hole-punched", "relay": "relayed", "turn": "relayed", "": "searching"}
DEPENDENT = ("address-dependent", "address-and-port-dependent")
SHOWN = 4  # places that a sentence names


@dataclass(frozen=True, slots=True)
class RelayView:
    """A relay that this node may use. `relayed`: this node's address there, "" if the relay is in a node's kernel;
    `seconds`: the last round trip, None without one; `fault`: why the relay cannot be used."""

    name: str
    relayed: str = ""
    seconds: float | None = None
    fault: str = ""


@dataclass(frozen=True, slots=True)
class PathView:
    """The path to one peer, for people. `kind`: "" while there is none; `seconds`: the last round trip; `tried`: the
    places that are probed; `own`, `theirs`: the mappings of this node's and of the peer's NAT; `relay`: its name;
    `use`: what the operator says about relays to this peer."""

    kind: str
    endpoint: str
    seconds: float | None
    tried: tuple[str, ...]
    own: str
    theirs: str
    relay: str = ""
    use: RelayUse = ""

    @property
    def path(self) -> str:
        """The word for the path; upstream's words where it has them."""
        return PATHS[self.kind]

    def why(self) -> str:
        """A sentence that says why it is this path."""
        if self.kind == "host":
            return f"{self.endpoint} is one of the peer's own addresses, and answers"
        if self.kind == "outside":
            return f"the peer's NAT lets datagrams in at {self.endpoint}"
        if self.kind in RELAYED:
            return f"by {self.relay} at {self.endpoint}: {self._obstacle()}"
        if self.use == "only":
            return "only relays may be used, and none leads to the peer"
        if not self.tried:
            return "the peer has named no address, and has not called"
        return self._obstacle()

    def _obstacle(self) -> str:
        """What stands against a direct path."""
        if self.use == "only":
            return "only relays may be used"
        own, theirs = self.own in DEPENDENT, self.theirs in DEPENDENT
        if own and theirs:
            return "both sides are symmetric: their NATs give each destination another port"
        if own or theirs:
            side = "this node" if own else "the peer"
            return f"{side} is symmetric, and the other side's NAT lets in only ports that it has sent to"
        more = f" and {len(self.tried) - SHOWN} more" if len(self.tried) > SHOWN else ""
        return f"no answer from {', '.join(self.tried[:SHOWN])}{more}"
