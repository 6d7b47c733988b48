"""What a result document must look like at each CNI version (conformance 7), and how to read it at any."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

Json = dict[str, Any]

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
OLD = ("0.1.0", "0.2.0")
MIDDLE = ("0.3.0", "0.3.1", "0.4.0")

TOP = {"cniVersion", "interfaces", "ips", "routes", "dns"}
LINK_KEYS = {"name", "mac", "sandbox"}
ROUTE_KEYS = {"dst", "gw"}


def _only(where: str, value: Any, allowed: set[str], required: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    assert isinstance(value, Mapping), f"{where} is no object: {value!r}"
    assert set(value) <= allowed, f"{where} has keys {sorted(set(value) - allowed)} which this version does not know"
    assert required <= set(value), f"{where} lacks {sorted(required - set(value))}"


def validate(result: Json, version: str) -> None:
    """Everything the specification says of the shape; raises AssertionError with the place."""
    assert result.get("cniVersion") == version, f"cniVersion is {result.get('cniVersion')!r}, asked for {version}"
    if version in OLD:
        _only("result", result, {"cniVersion", "ip4", "ip6", "dns"})
        assert "ip4" in result or "ip6" in result, "a result needs an address"
        for key, family in (("ip4", 4), ("ip6", 6)):
            if key in result:
                _old_ip(key, result[key], family)
    else:
        _only("result", result, TOP, {"ips"})
        _interfaces(result.get("interfaces", []), version)
        for number, item in enumerate(result["ips"]):
            _ip(f"ips[{number}]", item, version, len(result.get("interfaces", [])))
        for number, item in enumerate(result.get("routes", [])):
            _route(f"routes[{number}]", item, version)
    if "dns" in result:
        _only("dns", result["dns"], {"nameservers", "domain", "search", "options"})


def _old_ip(where: str, item: Any, family: int) -> None:
    _only(where, item, {"ip", "gateway", "routes"}, {"ip"})
    assert ipaddress.ip_interface(item["ip"]).version == family and "/" in item["ip"], f"{where}.ip: {item['ip']}"
    if "gateway" in item:
        assert ipaddress.ip_address(item["gateway"]).version == family
    for number, route in enumerate(item.get("routes", [])):
        _only(f"{where}.routes[{number}]", route, ROUTE_KEYS, {"dst"})
        assert ipaddress.ip_network(route["dst"]).version == family


def _interfaces(items: Any, version: str) -> None:
    extra = {"mtu", "socketPath", "pciID"} if version not in MIDDLE else set()
    for number, item in enumerate(items):
        where = f"interfaces[{number}]"
        _only(where, item, LINK_KEYS | extra, {"name"})
        assert isinstance(item["name"], str) and item["name"]
        if item.get("mac"):
            assert MAC.fullmatch(item["mac"]), f"{where}.mac {item['mac']!r} is not 17 characters of lower-case hex"
        if "mtu" in item:
            assert type(item["mtu"]) is int and item["mtu"] > 0, f"{where}.mtu {item['mtu']!r}"


def _ip(where: str, item: Any, version: str, interfaces: int) -> None:
    keys = {"address", "gateway", "interface"}
    _only(where, item, keys | ({"version"} if version in MIDDLE else set()), {"address"})
    address = ipaddress.ip_interface(item["address"])
    assert "/" in item["address"], f"{where}.address needs a prefix length"
    if version in MIDDLE:
        assert item.get("version") == str(address.version), f"{where}.version {item.get('version')!r}"
    if item.get("gateway"):
        assert ipaddress.ip_address(item["gateway"]).version == address.version
    if "interface" in item:
        assert type(item["interface"]) is int and 0 <= item["interface"] < interfaces, f"{where}.interface"


def _route(where: str, item: Any, version: str) -> None:
    extra = {"mtu", "advmss", "priority", "table", "scope"} if version not in {*MIDDLE, "1.0.0"} else set()
    _only(where, item, ROUTE_KEYS | extra, {"dst"})
    destination = ipaddress.ip_network(item["dst"])
    if item.get("gw"):
        assert ipaddress.ip_address(item["gw"]).version == destination.version


def addresses(result: Json) -> list[str]:
    """The container's addresses with their prefix length, whatever the version."""
    old = [result[key]["ip"] for key in ("ip4", "ip6") if key in result]
    return old or [item["address"] for item in result.get("ips", [])]


def gateways(result: Json) -> list[str]:
    items = [result[key] for key in ("ip4", "ip6") if key in result] or result.get("ips", [])
    return [item["gateway"] for item in items if item.get("gateway")]


def bare(result: Json) -> list[str]:
    """The addresses without prefix length."""
    return [address.split("/")[0] for address in addresses(result)]


def inside(result: Json) -> list[Json]:
    """The interfaces with a sandbox: the container's."""
    return [item for item in result.get("interfaces", []) if item.get("sandbox")]


def host_side(result: Json) -> list[Json]:
    return [item for item in result.get("interfaces", []) if not item.get("sandbox")]
