"""Throwaway network namespaces, attached through the plugin itself, with a responder in each.

A namespace has no name and no process: it exists as long as this process has its descriptor. When this process is
killed, the kernel removes namespace and veth, and the daemon's garbage collection releases the attachment.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cni.host import findings, netns, program
from cni.plugin import autostart, client

T = TypeVar("T")
MOST = 8
NETWORK = "zlayer-connectivity"
IFNAME = "eth0"


class AttachFailed(Exception):
    """The plugin refused to attach a namespace: `code` is CNI's, the text the plugin's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Place:
    """The daemon whose plugin attaches the namespaces."""

    run_dir: str
    data_dir: str


@dataclass(frozen=True)
class Box:
    """One namespace. `addresses`: without prefix, IPv4 first; `servers`: the resolvers of the ADD's result."""

    name: str
    service: str
    network: str | None
    fd: int
    addresses: tuple[str, ...]
    mtu: int
    servers: tuple[str, ...]


def inside(fd: int, work: Callable[[], T]) -> T:
    """Run `work` in the namespace, in a thread that ends; a socket that it opens stays there. Raises what it raises."""
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            with netns.entered(fd):
                done.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def _new_namespace() -> int:
    """A descriptor of a new namespace. Raises OSError."""
    made: list[int] = []
    failed: list[OSError] = []

    def body() -> None:
        try:
            netns.leave()
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


class Boxes:
    """The namespaces of one test, at most MOST. `close` detaches and removes all of them."""

    def __init__(self, place: Place, tag: str) -> None:
        """`tag` makes the names of this test's services and containers its own."""
        self._place, self._tag = place, tag
        self._command = _command(place)
        self._made: list[tuple[int, str, dict[str, object]]] = []

    def add(self, name: str, service: str, network: str | None) -> Box:
        """Make and attach one. Raises AttachFailed, OSError."""
        if len(self._made) >= MOST:
            raise AttachFailed(0, f"{MOST} namespaces are the most of one test")
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
        result = self._call("ADD", fd, container, conf)
        ips = [entry["address"].partition("/")[0] for entry in result.get("ips", ())]
        return Box(
            name=name,
            service=str(conf["service"]),
            network=network,
            fd=fd,
            addresses=tuple(sorted(ips, key=lambda address: ":" in address)),
            mtu=inside(fd, lambda: findings.mtu_of(IFNAME)),
            servers=tuple(result.get("dns", {}).get("nameservers", ())),
        )

    def close(self) -> None:
        """Detach and remove all. Idempotent; a DEL that fails is left to the daemon's garbage collection."""
        while self._made:
            fd, container, conf = self._made.pop()
            with contextlib.suppress(AttachFailed, OSError):
                self._call("DEL", fd, container, conf)
            os.close(fd)

    def _call(self, verb: str, fd: int, container: str, conf: dict[str, object]) -> dict[str, Any]:
        env = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")} | {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": f"/proc/{os.getpid()}/fd/{fd}",
            "CNI_IFNAME": IFNAME,
            "CNI_PATH": "/opt/cni/bin",
        }
        code, out, err = program.run_once(list(self._command), env, json.dumps(conf).encode())
        try:
            answer = json.loads(out) if out.strip() else {}
        except ValueError:
            answer = {}
        if code:
            text = answer.get("msg") or err.decode("utf-8", "replace").strip() or f"the plugin ended with {code}"
            details = f": {answer['details']}" if answer.get("details") else ""
            raise AttachFailed(int(answer.get("code", 0)), f"{text}{details}")
        return answer


def _command(place: Place) -> Sequence[str]:
    """The plugin's command: this program."""
    location = client.Location()
    location.run_dir, location.data_dir = place.run_dir, place.data_dir
    words = autostart.program(location, client.Waiter(30))
    return tuple(words[: words.index("overlayd")])
