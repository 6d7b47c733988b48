"""`isolation.reach` and `isolation.from` of the settings and of network lists: what every container may reach, and
what may reach every member of an isolation network. Pure.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import msgspec

PROTOCOLS = ("tcp", "udp", "sctp")
NODES = "nodes"  # in `from`: the overlay address of every node
_SERVICE = "service/"
_PORT = re.compile(r"(.*):(\d{1,5})/([a-z]+)", re.DOTALL)
LONGEST_SERVICE = 253
MOST = 256  # entries of one list


class ListedOpenings(msgspec.Struct, frozen=True, kw_only=True):
    """The entries of one network list, as texts; each is valid."""

    reach: tuple[str, ...] = ()
    from_: tuple[str, ...] = msgspec.field(name="from", default=())

    def __bool__(self) -> bool:
        return bool(self.reach or self.from_)


NOTHING = ListedOpenings()


@dataclass(frozen=True, slots=True, order=True)
class Opening:
    """A destination: an address, and a port with its protocol; port 0 is every port and protocol."""

    address: str
    protocol: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Reach:
    """One entry of `reach`: an address, or the containers of a service of the overlay."""

    address: str = ""
    service: str = ""
    protocol: str = ""
    port: int = 0

    def at(self, address: str) -> Opening:
        """The entry, for one address."""
        return Opening(address, self.protocol, self.port)


@dataclass(frozen=True, slots=True)
class Sender:
    """One entry of `from`: a CIDR, the containers of a service, or (both empty) the nodes."""

    cidr: str = ""
    service: str = ""


@dataclass(frozen=True, slots=True)
class Openings:
    """Parsed entries: of the settings, of a network list, or of both together."""

    reach: tuple[Reach, ...] = ()
    senders: tuple[Sender, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reach or self.senders)

    def services(self) -> frozenset[str]:
        """The services that entries name."""
        named = (*(entry.service for entry in self.reach), *(entry.service for entry in self.senders))
        return frozenset(filter(None, named))


def parse_reach(text: str) -> Reach:
    """`ADDRESS`, `ADDRESS:PORT/PROTOCOL` (an IPv6 address in brackets), `service/NAME` or `service/NAME:PORT/PROTOCOL`.
    Raises ValueError with a sentence that names the fault.
    """
    if is_bare(text):
        return Reach(address=str(ip_address(text)))
    name, port, protocol = text, 0, ""
    if match := _PORT.fullmatch(text):
        name, port, protocol = match[1], int(match[2]), match[3]
        if not 1 <= port <= 65535:
            raise ValueError(f"the port {port} is not between 1 and 65535")
        if protocol not in PROTOCOLS:
            raise ValueError(f"the protocol {protocol} is none of {', '.join(PROTOCOLS)}")
    elif not text.startswith(_SERVICE) and re.search(r":\d+$", text):
        raise ValueError("the protocol is missing: ADDRESS:PORT/udp, for example")
    if name.startswith(_SERVICE):
        return Reach(service=_service(name), protocol=protocol, port=port)
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    if not is_bare(bare) or (":" in bare) is (bare == name):
        raise ValueError("neither an address, ADDRESS:PORT/PROTOCOL nor service/NAME")
    return Reach(address=str(ip_address(bare)), protocol=protocol, port=port)


def parse_sender(text: str) -> Sender:
    """`ADDRESS`, `CIDR`, `service/NAME` or `nodes`. Raises ValueError with a sentence that names the fault."""
    if text == NODES:
        return Sender()
    if text.startswith(_SERVICE):
        return Sender(service=_service(text))
    try:
        network = ip_network(text)
    except ValueError as error:
        raise ValueError(f"neither an address, a CIDR, service/NAME nor {NODES} ({error})") from error
    if network.prefixlen == 0:
        raise ValueError("everything: that would open every isolation network")
    return Sender(cidr=str(network))


def read(reach: Iterable[str], senders: Iterable[str]) -> Openings:
    """The entries of both lists. Raises ValueError."""
    return Openings(tuple(map(parse_reach, reach)), tuple(map(parse_sender, senders)))


@functools.lru_cache(1024)
def of_list(listed: ListedOpenings) -> Openings:
    """The entries of a network list."""
    return read(listed.reach, listed.from_)


def together(parts: Iterable[Openings]) -> Openings:
    """The entries of all parts, each once, in their order."""
    parts = list(parts)
    return Openings(
        tuple(dict.fromkeys(entry for part in parts for entry in part.reach)),
        tuple(dict.fromkeys(entry for part in parts for entry in part.senders)),
    )


def is_bare(text: str) -> bool:
    """Whether the text is a unicast address and nothing else."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return not (address.is_multicast or address.is_unspecified or "%" in text)


def _service(text: str) -> str:
    name = text.removeprefix(_SERVICE)
    if not name or len(name) > LONGEST_SERVICE or not name.isprintable():
        raise ValueError("the name of the service is empty, too long or not printable")
    return name
