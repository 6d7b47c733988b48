"""The names of the overlay: which texts are labels, which names an attachment has, and what a question is about.

Pure. A name inside the overlay's zone is kept relative to it and in lower case: `web`, `web-1.web`, `alpha.node`. A
label has 1 to 63 letters, digits and hyphens, and neither begins nor ends with a hyphen (RFC 1123, 2.1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

NODE = "node"  # `<node>.node`
AGENT_KIND = "service"  # in the names of ZLayer's agent: `<name>.service`
SERVER = "ns"  # the name of the node's own server, in SOA and NS
ROOT_ZONE = "zlayer.local"  # the zone of ZLayer's agent, and of a deployment whose name is no label
AGENT_ZONES = ("overlay.local", ROOT_ZONE)
SHORT_ID = 12  # characters of a container's id that is 64 hexadecimal digits, as runtimes print it
LONGEST_NAME = 253  # characters of a name (RFC 1035, 3.1: 255 octets with the lengths)

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_LONG_ID = re.compile(r"(?:.*-)?([0-9a-f]{64})")


def label(text: str) -> str | None:
    """The label that `text` is in lower case; None if it is none."""
    low = text.lower()
    return low if text.isascii() and _LABEL.fullmatch(low) else None  # the Kelvin sign's lower case is a k


def dotted(text: str) -> str | None:
    """The name of one or more labels, in lower case, without a dot at its end; None if it is none."""
    low = text.lower().removesuffix(".")
    return (
        low
        if text.isascii() and len(low) <= LONGEST_NAME and all(_LABEL.fullmatch(part) for part in low.split("."))
        else None
    )


def container_name(pod: str, container: str) -> str:
    """What a container is called: its pod's name without the namespace, else its id, shortened as runtimes print it."""
    if pod:
        return pod.rpartition("/")[2]
    long = _LONG_ID.fullmatch(container)
    return long[1][:SHORT_ID] if long else container


def default_zone(deployment: str) -> str:
    """The zone of a deployment: `<deployment>.zlayer.local`."""
    own = label(deployment)
    return f"{own}.{ROOT_ZONE}" if own is not None else ROOT_ZONE


@dataclass(frozen=True, slots=True)
class Subject:
    """What a question is about. `zone`: the zone that answers it, as labels; `relative`: the name inside the overlay's
    zone, `address`: of a reverse name; neither is set for a name of which the zone has only names below. `bare`: the
    name has one label, and is served only where it exists."""

    zone: tuple[str, ...]
    relative: str | None = None
    address: str | None = None
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Zone:
    """The zone of one node. `name`: dotted; `deployment`: its label, "" if it is none; `agent`: whether a ZLayer agent
    drives the node, so that its families of names are served as well; `ranges`: the overlay's, whose reverse names are
    served."""

    name: str
    deployment: str = ""
    agent: bool = False
    ranges: tuple[str, ...] = ()

    def subject(self, labels: Sequence[str]) -> Subject | None:
        """What a name is about; None if it is not the overlay's. `labels`: of the question, in lower case."""
        for zone in self._zones():
            rest = len(labels) - len(zone)
            if rest >= 0 and tuple(labels[rest:]) == zone:
                return Subject(zone, relative=self._relative(labels[:rest]))
        if labels[-2:] == ["in-addr", "arpa"]:
            return self._reverse4(labels)
        if labels[-2:] == ["ip6", "arpa"]:
            return self._reverse6(labels)
        if len(labels) == 1:
            return Subject((labels[0],), relative=labels[0], bare=True)
        if self.agent and len(labels) <= 3 and labels[-2:] == [AGENT_KIND, "local"]:
            return Subject((AGENT_KIND, "local"), relative=".".join(labels[:-2]))
        return None

    def served(self) -> list[str]:
        """Every zone that the node answers for, dotted: names, then the reverse names of each range."""
        return [".".join(zone) for zone in self._zones()] + [
            zone for cidr in self.ranges for zone in _reverse_zones(ip_network(cidr))
        ]

    def _zones(self) -> list[tuple[str, ...]]:
        own = [tuple(self.name.split("."))]
        return own + [tuple(zone.split(".")) for zone in AGENT_ZONES if self.agent and zone != self.name]

    def _relative(self, labels: Sequence[str]) -> str:
        """The name inside the zone, with the families of ZLayer's names (`<name>.service`, `<name>.<deployment>`, and
        both in either order) led back to the plain name."""
        plain = list(labels)
        if self.agent:
            for _ in range(2):
                if len(plain) > 1 and plain[-1] in (AGENT_KIND, self.deployment):
                    plain.pop()
        return ".".join(plain)

    def _reverse4(self, labels: Sequence[str]) -> Subject | None:
        octets = labels[:-2]
        if len(octets) > 4 or not all(re.fullmatch(r"0|[1-9][0-9]{0,2}", o) and int(o) < 256 for o in octets):
            return None
        value = [int(octet) for octet in reversed(octets)]
        for network in self._networks(4):
            cut = -(-network.prefixlen // 8)  # octets that the zone's name has
            first = IPv4Address(bytes(value + [0] * (4 - len(value))))
            if len(value) >= cut and first in network:
                zone = tuple(labels[len(octets) - cut :])
                return Subject(zone, address=str(first) if len(value) == 4 else None)
        return None

    def _reverse6(self, labels: Sequence[str]) -> Subject | None:
        nibbles = labels[:-2]
        if len(nibbles) > 32 or not all(re.fullmatch(r"[0-9a-f]", nibble) for nibble in nibbles):
            return None
        text = "".join(reversed(nibbles))
        first = ip_address(int(text.ljust(32, "0"), 16).to_bytes(16, "big"))
        for network in self._networks(6):
            cut = -(-network.prefixlen // 4)
            if len(nibbles) >= cut and first in network:
                zone = tuple(labels[len(nibbles) - cut :])
                return Subject(zone, address=str(first) if len(nibbles) == 32 else None)
        return None

    def _networks(self, version: int) -> Iterable[IPv4Network | IPv6Network]:
        return [network for network in map(ip_network, self.ranges) if network.version == version]

    def search(self) -> tuple[str, ...]:
        """The search domains with which a bare name works."""
        return (self.name,)


def _reverse_zones(network: IPv4Network | IPv6Network) -> list[str]:
    """The zones of the reverse names of a range: 16 at most, because a zone ends at an octet or a half (RFC 1035, 3.5;
    RFC 3596, 2.5)."""
    step = 8 if network.version == 4 else 4
    cut = -(-network.prefixlen // step)
    if cut == 0 or cut * step - network.prefixlen > 4:
        return []  # such a range has too many zones to name
    parts = network.subnets(new_prefix=cut * step)
    return [".".join(part.network_address.reverse_pointer.split(".")[-2 - cut :]) for part in parts]
