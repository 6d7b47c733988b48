"""Throwaway network namespaces, attached through the plugin itself, with a responder in each.

A namespace has no name and no process: it exists as long as this process has its descriptor. When this process is
killed, the kernel removes namespace and veth, and the daemon's garbage collection releases the attachment.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cni import defaults
from cni.cli import plugin_call
from cni.cli.connectivity.probes import PORT
from cni.cli.plugin_call import CallFailed
from cni.host import findings, netns
from cni.host.short_thread import in_thread, inside

T = TypeVar("T")
MOST = 8
NETWORK = "zlayer-connectivity"
IFNAME = "eth0"
SCARCE = "addresses-low"  # the problem with which no namespace is attached


@dataclass(frozen=True)
class Place:
    """The daemon whose plugin attaches the namespaces."""

    run_dir: str
    data_dir: str


@dataclass(frozen=True)
class Box:
    """One namespace. `addresses`: without prefix, IPv4 first; `servers`, `zone`: the resolvers and the
    first search domain of the ADD's result."""

    name: str
    service: str
    network: str | None
    fd: int
    addresses: tuple[str, ...]
    mtu: int
    servers: tuple[str, ...]
    zone: str


def portmap() -> str:
    """The program of the plugin portmap. Raises FileNotFoundError."""
    for directory in (defaults.BIN_DIR, "/usr/lib/cni", "/usr/libexec/cni"):
        path = f"{directory}/portmap"
        if os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(f"there is no plugin portmap in {defaults.BIN_DIR}")


def _new_namespace() -> int:
    """A descriptor of a new namespace. Raises OSError."""

    def body() -> int:
        netns.leave()
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    return in_thread(body)


class Boxes:
    """The namespaces of one test, at most MOST. `close` detaches and removes all of them."""

    def __init__(self, place: Place, tag: str) -> None:
        """`tag` makes the names of this test's services and containers its own."""
        self._place, self._tag = place, tag
        self._command = plugin_call.command(place.run_dir, place.data_dir)
        self._made: list[tuple[int, str, dict[str, object]]] = []
        self._results: dict[str, dict[str, Any]] = {}

    def add(self, name: str, service: str, network: str | None) -> Box:
        """Make and attach one. Raises CallFailed, OSError."""
        if len(self._made) >= MOST:
            raise CallFailed(0, f"{MOST} namespaces are the most of one test")
        conf: dict[str, object] = {
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "type": "zlayer-cni",
            "service": f"{service}-{self._tag}",
            "runDir": self._place.run_dir,
            "dataDir": self._place.data_dir,
            "autostart": False,
            "ephemeral": True,
        }
        if network is not None:
            conf["isolationNetwork"] = network
        fd = _new_namespace()
        container = f"connectivity-{self._tag}-{name}"
        self._made.append((fd, container, conf))
        result = self._results[container] = self._call("ADD", fd, container, conf)
        ips = [entry["address"].partition("/")[0] for entry in result.get("ips", ())]
        return Box(
            name=name,
            service=str(conf["service"]),
            network=network,
            fd=fd,
            addresses=tuple(sorted(ips, key=lambda address: ":" in address)),
            mtu=inside(fd, lambda: findings.mtu_of(IFNAME)),
            servers=tuple(result.get("dns", {}).get("nameservers", ())),
            zone=next(iter(result.get("dns", {}).get("search", ())), ""),
        )

    @contextlib.contextmanager
    def published(self, box: Box, number: int) -> Iterator[None]:
        """Meanwhile a port of the host leads to the namespace's PORT, by the plugin portmap as in a network list.
        Raises CallFailed, OSError, FileNotFoundError without portmap."""
        program = portmap()
        fd, container, _ = next(made for made in self._made if made[1].endswith(f"-{box.name}"))
        entry = {"hostPort": number, "containerPort": PORT, "protocol": "tcp"}
        conf: dict[str, object] = {
            "cniVersion": "1.0.0",
            "name": NETWORK,
            "type": "portmap",
            "runtimeConfig": {"portMappings": [entry]},
            "prevResult": self._results[container],
        }
        try:
            self._call("ADD", fd, container, conf, (program,))
            yield
        finally:
            with contextlib.suppress(CallFailed, OSError):
                self._call("DEL", fd, container, conf, (program,))

    def close(self) -> None:
        """Detach and remove all. Idempotent; a DEL that fails is left to the daemon's garbage collection."""
        while self._made:
            fd, container, conf = self._made.pop()
            with contextlib.suppress(CallFailed, OSError):
                self._call("DEL", fd, container, conf)
            os.close(fd)

    def _call(
        self, verb: str, fd: int, container: str, conf: dict[str, object], words: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        variables = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/proc/{os.getpid()}/fd/{fd}",
            "CNI_IFNAME": IFNAME,
        }
        return plugin_call.call(words or self._command, variables, conf)
