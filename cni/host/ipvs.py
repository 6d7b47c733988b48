"""The IPVS services in the network namespace of the calling thread, as listed by the kernel."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

LIST = Path("/proc/thread-self/net/ip_vs")
_SERVICE = re.compile(r"(TCP|UDP|SCTP) +(\S+):([0-9A-F]{4}) ")
_SERVER = re.compile(r" +-> +(\S+):([0-9A-F]{4}) +(\w+) +(\d+) ")


@dataclass(frozen=True, slots=True)
class RealServer:
    """One destination of a service: the virtual address and port, and the real ones. `translated`: IPVS rewrites the
    address ("Masq"); otherwise it leaves the address in the packet ("Route") or sends it by a tunnel ("Tunnel")."""

    protocol: str
    virtual: str
    virtual_port: int
    address: str
    port: int
    translated: bool


def real_servers() -> list[RealServer]:
    """Every real server that receives new connections; empty if the kernel has no IPVS."""
    try:
        return parse(LIST.read_text())
    except OSError:
        return []


def parse(text: str) -> list[RealServer]:
    """The real servers in a listing. A service by firewall mark has no address and is left out."""
    servers: list[RealServer] = []
    service: tuple[str, str, int] | None = None
    for line in text.splitlines():
        if match := _SERVICE.match(line):
            service = match[1].lower(), _address(match[2]), int(match[3], 16)
        elif not line.startswith(" "):
            service = None
        elif service is not None and (match := _SERVER.match(line)) and match[4] != "0":
            servers.append(RealServer(*service, _address(match[1]), int(match[2], 16), match[3] in ("Masq", "Local")))
    return servers


def _address(text: str) -> str:
    if text.startswith("["):
        return str(ipaddress.ip_address(text.strip("[]")))
    return str(ipaddress.ip_address(int(text, 16)))
