"""The IPVS services of the network namespace that the calling thread is in, as the kernel lists them."""

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
    """Where one service leads: the virtual address and port, the real ones, and whether by translation ("Masq"); else
    the address stays in the packet ("Route") or it goes into a tunnel ("Tunnel")."""

    protocol: str
    virtual: str
    virtual_port: int
    address: str
    port: int
    translated: bool


def real_servers() -> list[RealServer]:
    """Every real server that is given new connections; none where the kernel has no IPVS."""
    try:
        return parse(LIST.read_text())
    except OSError:
        return []


def parse(text: str) -> list[RealServer]:
    """What a listing says. A service by firewall mark has no address, and is left out."""
    found: list[RealServer] = []
    service: tuple[str, str, int] | None = None
    for line in text.splitlines():
        if match := _SERVICE.match(line):
            service = match[1].lower(), _address(match[2]), int(match[3], 16)
        elif not line.startswith(" "):
            service = None
        elif service is not None and (match := _SERVER.match(line)) and match[4] != "0":
            found.append(RealServer(*service, _address(match[1]), int(match[2], 16), match[3] in ("Masq", "Local")))
    return found


def _address(text: str) -> str:
    if text.startswith("["):
        return str(ipaddress.ip_address(text.strip("[]")))
    return str(ipaddress.ip_address(int(text, 16)))
