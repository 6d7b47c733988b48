"""One result type, and its seven JSON formats (CNI 0.1.0 to 1.1.0): reads, merges and writes them.

The output is one line of ASCII JSON, so that it fits a log line and does not depend on the locale.
"""

import json

from cni.errors import CniError, IncompatibleVersion, UndecodableContent
from cni.netconf.decode import Fields, as_object, wrong_type
from cni.netconf.types import (
    DNS,
    IP,
    Interface,
    Result,
    Route,
    read_dns,
    read_interface,
    read_ip,
    read_route,
)
from cni.netconf.versions import NEWEST, SUPPORTED, at_least

__all__ = ["DNS", "IP", "Interface", "Result", "Route", "merge", "parse_result", "render", "render_error"]

Json = dict[str, object]


def render(result: Result, version: str) -> str:
    """The result as JSON in the shape of `version`, which must be one of SUPPORTED.

    0.1.0 and 0.2.0 hold one address of each family; a result without an address cannot be written, and
    `IncompatibleVersion` is raised.
    """
    if not at_least(version, "0.3.0"):
        return _compact({"cniVersion": version, **_by_family(result), **_dns(result.dns)})
    newest = at_least(version, "1.1.0")
    document: Json = {
        "cniVersion": version,
        "interfaces": [_interface(interface, newest) for interface in result.interfaces],
        "ips": [_ip(ip, with_family=not at_least(version, "1.0.0")) for ip in result.ips],
        "routes": [_route(route, newest) for route in result.routes],
        **_dns(result.dns),
    }
    return _compact({key: value for key, value in document.items() if value})


def merge(previous: Result, ours: Result) -> Result:
    """An earlier plugin's result with ours appended; the interface indexes of ours are shifted.

    Nothing of theirs is dropped (CNI 1.1.0, section 2, ADD). Of DNS, lists are joined and the first domain
    stays.
    """
    base = len(previous.interfaces)
    ips = tuple(IP(ip.address, ip.gateway, None if ip.interface is None else ip.interface + base) for ip in ours.ips)
    dns = DNS(
        nameservers=_joined(previous.dns.nameservers, ours.dns.nameservers),
        domain=previous.dns.domain or ours.dns.domain,
        search=_joined(previous.dns.search, ours.dns.search),
        options=_joined(previous.dns.options, ours.dns.options),
    )
    return Result(
        interfaces=previous.interfaces + ours.interfaces,
        ips=previous.ips + ips,
        routes=previous.routes + tuple(route for route in ours.routes if route not in previous.routes),
        dns=dns,
    )


def parse_result(version: str, value: object, path: str = "prevResult") -> Result:
    """A decoded result in the shape of `version`.

    Raises `UndecodableContent` if it is not such a result, and `InvalidConfig` if an address names an interface that
    does not exist. A result of a version with other members is refused instead of read as empty: the interfaces of an
    earlier plugin would be lost.
    """
    fields = as_object(value, path)
    if fields is None:
        raise wrong_type(path, "an object", value)
    stated = fields.text("cniVersion")
    if stated and (stated not in SUPPORTED or at_least(stated, "0.3.0") != at_least(version, "0.3.0")):
        raise UndecodableContent(f'{fields.where("cniVersion")}: "{stated}" is no result of version {version}')
    dns = fields.inner("dns")
    read = _read_by_family if not at_least(version, "0.3.0") else _read_current
    return read(fields, read_dns(dns) if dns else DNS())


def render_error(error: CniError, version: str = NEWEST) -> str:
    """The error object (CNI 1.1.0, section 5); our newest version replaces an unsupported one."""
    spoken = version if version in SUPPORTED else NEWEST
    document: Json = {"cniVersion": spoken, "code": error.code, "msg": error.msg}
    if error.details:
        document["details"] = error.details
    return _compact(document)


def _compact(value: Json) -> str:
    return json.dumps(value, separators=(",", ":"))


def _joined(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    return first + tuple(value for value in second if value not in first)


def _is_v6(address: str) -> bool:
    return ":" in address


# --- writing ---


def _by_family(result: Result) -> Json:
    members: Json = {}
    for key, v6 in (("ip4", False), ("ip6", True)):
        first = next((ip for ip in result.ips if _is_v6(ip.address) == v6), None)
        if first is None:
            continue
        member: Json = {"ip": first.address}
        if first.gateway:
            member["gateway"] = first.gateway
        if routes := [_route(route, False) for route in result.routes if _is_v6(route.dst) == v6]:
            member["routes"] = routes
        members[key] = member
    if not members:
        raise IncompatibleVersion("cannot convert: no valid IP addresses")
    return members


def _interface(interface: Interface, newest: bool) -> Json:
    document: Json = {"name": interface.name, "mac": interface.mac}
    if newest:
        document |= {"mtu": interface.mtu}
    document |= {"sandbox": interface.sandbox}
    if newest:
        document |= {"socketPath": interface.socket_path, "pciID": interface.pci_id}
    return {key: value for key, value in document.items() if value or key == "name"}


def _ip(ip: IP, with_family: bool) -> Json:
    document: Json = {"version": "6" if _is_v6(ip.address) else "4"} if with_family else {}
    if ip.interface is not None:
        document["interface"] = ip.interface
    document["address"] = ip.address
    if ip.gateway:
        document["gateway"] = ip.gateway
    return document


def _route(route: Route, newest: bool) -> Json:
    document: Json = {"dst": route.dst}
    if route.gw:
        document["gw"] = route.gw
    if newest:
        numbers = {"mtu": route.mtu, "advmss": route.advmss, "priority": route.priority}
        document |= {key: value for key, value in numbers.items() if value}
        chosen = {"table": route.table, "scope": route.scope}
        document |= {key: value for key, value in chosen.items() if value is not None}
    return document


def _dns(dns: DNS) -> Json:
    document: Json = {
        "nameservers": dns.nameservers,
        "domain": dns.domain,
        "search": dns.search,
        "options": dns.options,
    }
    return {"dns": {key: value for key, value in document.items() if value}} if dns else {}


# --- reading ---


def _read_current(fields: Fields, dns: DNS) -> Result:
    interfaces = tuple(read_interface(interface) for interface in fields.objects("interfaces"))
    return Result(
        interfaces=interfaces,
        ips=tuple(read_ip(ip, len(interfaces)) for ip in fields.objects("ips")),
        routes=tuple(read_route(route, UndecodableContent) for route in fields.objects("routes")),
        dns=dns,
    )


def _read_by_family(fields: Fields, dns: DNS) -> Result:
    ips: list[IP] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        member = fields.inner(key)
        if member is None:
            continue
        raw: dict[str, object] = {"address": member.get("ip"), "gateway": member.get("gateway")}
        ips.append(read_ip(Fields(raw, member.path), interfaces=0))
        routes += [read_route(route, UndecodableContent) for route in member.objects("routes")]
    return Result((), tuple(ips), tuple(routes), dns)
