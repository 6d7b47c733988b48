"""A container's network, looked at from outside the container."""

from __future__ import annotations

import json
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any

from .machine import Machine


@dataclass
class Network:
    """A container's network namespace, by a path in the machine."""

    machine: Machine
    path: str

    def run(self, *command: str) -> CompletedProcess[str]:
        """Run a program of the machine in this network."""
        return self.machine.run("nsenter", f"--net={self.path}", *command)

    def _json(self, *words: str) -> list[dict[str, Any]]:
        return json.loads(self.machine.must("nsenter", f"--net={self.path}", "ip", "-json", *words) or "[]")  # type: ignore[no-any-return]

    @property
    def links(self) -> dict[str, dict[str, Any]]:
        """Its links by name, with addresses."""
        return {link["ifname"]: link for link in self._json("address", "show") if link}

    @property
    def addresses(self) -> list[str]:
        """The IPv4 addresses of eth0, with their prefix length."""
        found = [a for a in self.links["eth0"]["addr_info"] if a["family"] == "inet"]
        return [f"{a['local']}/{a['prefixlen']}" for a in found]

    @property
    def address(self) -> str:
        """The first IPv4 address of eth0."""
        return self.addresses[0].partition("/")[0]

    @property
    def gateway(self) -> str:
        """The next hop of the IPv4 default route."""
        (route,) = self._json("-4", "route", "show", "default")
        return str(route["gateway"])

    @property
    def segment(self) -> str:
        """The machine's bridge that the other end of eth0 is a port of; without a bridge, the gateway."""
        index = self.links["eth0"]["link_index"]
        (port,) = [link for link in self.machine.links().values() if link["ifindex"] == index]
        return str(port.get("master", self.gateway))

    def reaches(self, address: str, seconds: int = 10) -> CompletedProcess[str]:
        """One ping, from here; it ends with 1 when no answer came within `seconds`."""
        return self.run("ping", "-c", "1", "-W", str(seconds), address)
