"""What the daemon and its forwarder tell each other, over a Unix socket that keeps the bounds of messages.

The daemon says all that it wants in each message, and the forwarder all that there is: so a daemon that starts, or one
of another version, takes a running forwarder over by saying what it wants.
"""

from __future__ import annotations

import msgspec

NAME = "forwarder.sock"  # in the run directory
LARGEST = 1 << 17  # bytes of a message


class WantedRelay(msgspec.Struct, frozen=True, kw_only=True):
    """A relay to be used. `id`: as the daemon calls it; `transport`: udp, tcp or tls; `place`: the server's,
    `address:port`; `host`: its name in certificates. The password is in no log."""

    id: str
    kind: str
    transport: str
    place: str
    host: str
    username: str
    password: str
    ca_file: str = ""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon wants. `port`: WireGuard's; `mark`: the firewall mark of what is sent outside; `remotes`: the
    places to be reached through every relay, `address:port`; `end`: the forwarder is to end."""

    port: int = 0
    mark: int = 0
    relays: tuple[WantedRelay, ...] = ()
    remotes: tuple[str, ...] = ()
    end: bool = False


class SeenRelay(msgspec.Struct, frozen=True, kw_only=True):
    """A relay in use. `relayed`: this node's address there, "" while there is none; `mapped`: from where the relay sees
    this node; `seconds`: the last round trip; `channels`: by remote place, the local port that leads there."""

    id: str
    relayed: str = ""
    mapped: str = ""
    fault: str = ""
    seconds: float = 0.0
    channels: dict[str, int] = {}


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What there is."""

    relays: tuple[SeenRelay, ...] = ()
