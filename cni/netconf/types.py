"""The members of a result, as in CNI 1.1.0, and their readers from JSON.

Addresses stay text: they are passed to the daemon and to the runtime as text, and those of a chained plugin must be
written as they were read.
"""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from cni.errors import CniError, InvalidConfig, UndecodableContent
from cni.netconf.addresses import parse_cidr, parse_ip, parse_network
from cni.netconf.decode import Fields, fold, show

T = TypeVar("T")


class Interface(msgspec.Struct, frozen=True):
    """One network device. `sandbox` is empty on the host, and CNI_NETNS as given inside the container."""

    name: str
    mac: str = ""
    sandbox: str = ""
    mtu: int = 0  # bytes; 0 is unknown
    socket_path: str = ""
    pci_id: str = ""


class IP(msgspec.Struct, frozen=True):
    """One address. `interface` is an index from 0 into the result's interfaces; None is unknown."""

    address: str  # with its prefix length and its host bits: 10.1.2.3/24
    gateway: str = ""
    interface: int | None = None


class Route(msgspec.Struct, frozen=True):
    """One route inside the container. Without `gw` the gateway of the address applies."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None  # 0 is a value here, absence is absence
    scope: int | None = None


class DNS(msgspec.Struct, frozen=True):
    """DNS settings that the runtime may write into resolv.conf."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != DNS()


class Result(msgspec.Struct, frozen=True):
    """The result of an ADD, independent of the version in which it is written."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IP, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()


DNS_KEYS = fold("nameservers", "domain", "search", "options")
ROUTE_KEYS = fold("dst", "gw", "mtu", "advmss", "priority", "table", "scope")


def parsed(parse: Callable[[str], T], text: str, where: str, error: type[CniError] = InvalidConfig) -> T:
    """`parse(text)`; its `ValueError` becomes `error`, naming the key and the value."""
    try:
        return parse(text)
    except ValueError as reason:
        raise error(f"{where}: {show(text)}: {reason}") from None


def read_dns(fields: Fields) -> DNS:
    """The `dns` of a configuration or a result; code 6 for a wrong type."""
    return DNS(
        nameservers=fields.texts("nameservers") or (),
        domain=fields.text("domain") or "",
        search=fields.texts("search") or (),
        options=fields.texts("options") or (),
    )


def read_route(fields: Fields, error: type[CniError] = InvalidConfig) -> Route:
    """One route: a destination without host bits, a gateway of the same family, and numbers from 0 up.

    Raises `UndecodableContent` for a wrong type and `error` for a wrong value.
    """
    dst = fields.text("dst")
    if not dst:
        raise error(f"{fields.where('dst')}: a route needs a destination")
    gw = fields.text("gw") or ""
    # A route of a chained plugin is not validated; one of ours must be acceptable to the kernel.
    network = parsed(parse_network if error is InvalidConfig else parse_cidr, dst, fields.where("dst"), error)
    if gw and parsed(parse_ip, gw, fields.where("gw"), error).version != network.version:
        raise error(f"{fields.where('gw')}: {show(gw)} is not of the family of {dst}")
    return Route(
        dst=dst,
        gw=gw,
        mtu=_count(fields, "mtu", error) or 0,
        advmss=_count(fields, "advmss", error) or 0,
        priority=_count(fields, "priority", error) or 0,
        table=_count(fields, "table", error),
        scope=_count(fields, "scope", error, 255),
    )


def read_interface(fields: Fields) -> Interface:
    """One interface of a previous result; code 6 for a wrong type."""
    return Interface(
        name=fields.text("name") or "",
        mac=fields.text("mac") or "",
        sandbox=fields.text("sandbox") or "",
        mtu=fields.integer("mtu") or 0,
        socket_path=fields.text("socketPath") or "",
        pci_id=fields.text("pciID") or "",
    )


def read_ip(fields: Fields, interfaces: int) -> IP:
    """One address of a previous result that has that many interfaces. Raises UndecodableContent (6) for a wrong type or
    address, InvalidConfig for an interface that is not in the result."""
    address = fields.text("address") or ""
    parsed(parse_cidr, address, fields.where("address"), UndecodableContent)
    gateway = fields.text("gateway") or ""
    if gateway:
        parsed(parse_ip, gateway, fields.where("gateway"), UndecodableContent)
    index = fields.integer("interface")
    if index is not None and not 0 <= index < interfaces:
        # Appending our interfaces would make it point at one of ours.
        raise InvalidConfig(f"{fields.where('interface')}: {index} is not one of the {interfaces} interfaces")
    return IP(address, gateway, index)


def _count(fields: Fields, key: str, error: type[CniError], limit: int = 0xFFFFFFFF) -> int | None:
    number = fields.integer(key)
    if number is not None and not 0 <= number <= limit:
        raise error(f"{fields.where(key)}: {number} is not between 0 and {limit}")
    return number
