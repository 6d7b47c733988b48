"""A world is one pretended machine: a host namespace with an uplink, directories of its own, containers.

The plugin runs in the host namespace; a daemon that it starts lives there too, and is ended with the world.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.blackbox import snapshot as snapshots
from tests.blackbox.snapshot import Snapshot

from . import netns
from .calls import BARE_ENV, PATIENCE, Answer, call
from .probes import PROBES
from .session import Session
from .template import Json, Template, fill, merge

NETWORK = "zlt-net"
OUTSIDE = "198.51.100.1"  # what lies outside the overlay: the far end of the host's uplink
HOST = "198.51.100.2"


@dataclass(repr=False)
class World:
    """The machine that one group of tests runs on. `conf` is the network's configuration of this world."""

    session: Session
    command: Sequence[str]
    template: Template
    variant: str
    cni_path: str
    containers: list[Container] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.dir = self.session.directory("w")
        self.run_dir, self.data_dir = self.dir / "run", self.dir / "data"
        self.run_dir.mkdir()
        self.data_dir.mkdir()
        self.places = {"RUN_DIR": str(self.run_dir), "DATA_DIR": str(self.data_dir)}
        for name, lines in fill(self.template.files_of(self.variant), self.places).items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text("".join(f"{line}\n" for line in lines))
        self.host = self.session.namespace("h")
        self.outside = self.session.namespace("o")
        self._uplink()

    def _uplink(self) -> None:
        """eth0 to the outside, a default route; a real machine's first interface, which no plugin may touch."""
        self.sh(
            "ip link set lo up",
            f"ip link add eth0 type veth peer name up0 netns {self.outside.name}",
            "ip link set eth0 addrgenmode none",
            f"ip addr add {HOST}/24 dev eth0; ip addr add 2001:db8:51::2/64 dev eth0 nodad; ip link set eth0 up",
            f"ip route add default via {OUTSIDE}; ip -6 route add default via 2001:db8:51::1",
        )
        self.sh(
            "ip link set up0 addrgenmode none",
            f"ip addr add {OUTSIDE}/24 dev up0; ip addr add 2001:db8:51::1/64 dev up0 nodad",
            "ip link set up0 up; ip link set lo up",
            where=self.outside,
        )

    # --- what it can be asked -------------------------------------------------------------------------------

    def sh(self, *lines: str, where: Path | None = None, check: bool = True) -> str:
        """Shell lines in the host namespace (or `where`); their output."""
        script = "\n".join(lines)
        done = netns.inside(
            where or self.host,
            lambda: subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=False),
        )
        assert not check or done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout

    def ip(self, *words: str, where: Path | None = None) -> Any:
        """`ip -d -j words`, parsed; [] where ip says that there is no such thing."""
        out = self.sh(f"ip -d -j {' '.join(words)} 2>/dev/null || true", where=where)
        return [item for item in json.loads(out or "[]") if item]

    def links(self, where: Path | None = None) -> set[str]:
        return {link["ifname"] for link in self.ip("link", where=where)}

    def conf(self, version: str, /, patch: Json | None = None, variant: str | None = None, **keys: Any) -> Json:
        """The configuration at CNI `version`, changed by `patch` (a merge patch) and `keys` (set as they are)."""
        if variant and not self.template.has(variant):
            pytest.skip(f"the template has no variant {variant!r}")
        base = fill(self.template.conf_of(variant or self.variant), self.places)
        merged = merge({"cniVersion": version, "name": NETWORK, **base}, patch or {})
        return {**merged, **keys}

    def call(  # every argument is one thing a runtime chooses
        self,
        verb: str | None,
        conf: Json | bytes | int | None,
        *,
        cid: str | None = None,
        path: str | None = None,
        ifname: str | None = None,
        args: str | None = None,
        env: Mapping[str, str | None] | None = None,
        command: Sequence[str] | None = None,
        cwd: str = "/",
        patience: float = PATIENCE,
    ) -> Answer:
        """One call of the plugin in the host namespace. None leaves a variable out, in `env` too."""
        full: dict[str, str | None] = {**BARE_ENV, "CNI_COMMAND": verb, "CNI_CONTAINERID": cid, "CNI_NETNS": path}
        full |= {"CNI_IFNAME": ifname, "CNI_ARGS": args, "CNI_PATH": self.cni_path, **(env or {})}
        given = {key: value for key, value in full.items() if value is not None}
        stdin = json.dumps(conf).encode() if isinstance(conf, dict) else conf
        return netns.inside(self.host, lambda: call(command or self.command, given, stdin, cwd=cwd, patience=patience))

    def container(self, cid: str | None = None) -> Container:
        """A container with nothing in it but a namespace."""
        path = self.session.namespace("c")
        box = Container(self, cid or path.name, path)
        self.containers.append(box)
        return box

    def snapshot(self, **options: Any) -> Snapshot:
        """All of the host namespace, and the files of this world."""
        return snapshots.take(self.host, files=[self.run_dir, self.data_dir], **options)

    def assert_baseline(self, before: Snapshot, patience: float = 10.0, **options: Any) -> None:
        """The world looks as in `before`, or soon does. Old neighbours may go by themselves meanwhile."""

        def again() -> Snapshot:
            now = self.snapshot(**options)
            gone = {key: value for key, value in before["neighbours"].items() if key not in now["neighbours"]}
            return {**now, "neighbours": {**now["neighbours"], **gone}}

        self.assert_same(before, again, patience)

    @staticmethod
    def assert_same(before: Snapshot, again: Callable[[], Snapshot], patience: float = 10.0) -> None:
        """What `again` sees is `before`, or soon is."""
        left = snapshots.settle(before, again, patience)
        assert not left, "left behind:\n" + "\n".join(line[:300] for line in left[:60])

    @staticmethod
    def look(path: Path) -> Snapshot:
        """What is to be seen in the namespace at `path`."""
        return snapshots.take(path, processes=False)

    def spawn(self, env: Mapping[str, str], stdin: bytes, stdout: int) -> subprocess.CompletedProcess[bytes]:
        """The plugin with a stdout of the caller's choosing, in the calling thread's namespace."""
        return subprocess.run(
            self.command, env={**env}, input=stdin, stdout=stdout, stderr=subprocess.PIPE, check=False, timeout=PATIENCE
        )

    def reserved(self, network: str = NETWORK) -> set[str]:
        """The addresses that the plugin holds reserved for the network."""
        if self.template.reservations is None:
            pytest.skip("the template does not say how to read reservations")
        return PROBES[self.template.reservations](self, network)

    def daemon(self) -> int:
        """The pid of the daemon that the plugin started, as it wrote it down; it runs in the host namespace."""
        pid = int((self.run_dir / "overlayd.pid").read_text().split()[0])
        assert pid in netns.processes_in(self.host), f"{pid} is not in the host namespace"
        return pid

    def stop_daemon(self, number: int = signal.SIGTERM) -> None:
        """End the daemon; returns when it is gone."""
        pid = self.daemon()
        os.kill(pid, number)
        deadline = time.monotonic() + 30
        while pid in netns.processes_in(self.host):
            assert time.monotonic() < deadline, f"the daemon did not end on signal {number}"
            time.sleep(0.02)

    def in_time(self, verb: str, conf: Json, **how: Any) -> Answer:
        """A call whose answer is not that the time was too short for one: of a STATUS that a busy machine made late,
        the next is heard."""
        for _ in range(10):
            answer = self.call(verb, conf, **how)
            if verb != "STATUS" or answer.rc == 0 or b"did not answer within" not in answer.out:
                break
        return answer

    def ready(self, conf: Json, patience: float = 30.0) -> None:
        """STATUS says so, soon: its two seconds may be too few for a daemon's start on a busy machine, and the
        next one, a runtime's too, finds it started."""
        deadline = time.monotonic() + patience
        while (answer := self.call("STATUS", conf)).rc != 0 and time.monotonic() < deadline:
            answer.failed(50)
        answer.ok()

    def warm(self, conf: Json) -> None:
        """One attachment made and removed: bridge, directories and daemon exist from here on.

        The first time, wait for the bridge's IPv6 addresses: their routes come after duplicate detection.
        """
        box = self.container()
        result = box.add(conf).ok()
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and self._unsettled():
            time.sleep(0.1)
        box.delete(conf, prev=result).ok()
        box.remove()

    def _unsettled(self) -> bool:
        """A bridge with ports whose own IPv6 addresses the kernel has not finished with."""
        bridges = {link["ifname"]: link for link in self.ip("link", "show", "type", "bridge")}
        with_ports = {link.get("master") for link in self.ip("link", "show", "type", "veth")}
        for name in with_ports & set(bridges):
            if bridges[name].get("inet6_addr_gen_mode") == "none":
                continue
            infos = [info for link in self.ip("-6", "addr", "show", "dev", name) for info in link["addr_info"]]
            if any(info.get("tentative") for info in infos) or not any(info["scope"] == "link" for info in infos):
                return self.sh(f"cat /proc/sys/net/ipv6/conf/{name}/disable_ipv6").strip() == "0"
        return False

    # --- the end --------------------------------------------------------------------------------------------

    def clear(self, kept: bool = False) -> None:
        """Detach and remove every container that a test made and did not remove; `kept` ones if asked to."""
        for box in list(self.containers):
            if kept or not box.keep:
                box.remove(detach=True)

    def close(self) -> list[str]:
        """The end of this machine; returns the processes that did not end when asked."""
        self.clear(kept=True)
        killed = netns.end_processes([self.host, self.outside])
        for path in (self.host, self.outside):
            netns.delete(path)
        shutil.rmtree(self.dir, ignore_errors=True)
        return killed


@dataclass(repr=False)
class Container:
    """A container id and a namespace; `attached` remembers what a DEL is owed for.

    `keep` ones outlive the test: a wider fixture made them and removes them.
    """

    world: World
    cid: str
    path: Path
    keep: bool = False
    attached: dict[tuple[str, str], Json] = field(default_factory=dict)

    def add(self, conf: Json, ifname: str = "eth0", *, path: str | None = None, **more: Any) -> Answer:
        self.attached[conf.get("name", ""), ifname] = conf
        return self.world.call("ADD", conf, cid=self.cid, path=path or str(self.path), ifname=ifname, **more)

    def attach(self, conf: Json, ifname: str = "eth0", **more: Any) -> Json:
        """ADD that must succeed; its result."""
        return self.add(conf, ifname, **more).ok()

    def delete(
        self, conf: Json, ifname: str = "eth0", *, prev: Json | None = None, path: str | None = None, **more: Any
    ) -> Answer:
        """DEL as a runtime makes it: with the ADD's result from 0.4.0 on, if it has one."""
        self.attached.pop((conf.get("name", ""), ifname), None)
        where = str(self.path) if path is None else path
        return self.world.call("DEL", with_prev(conf, prev), cid=self.cid, path=where, ifname=ifname, **more)

    def check(self, conf: Json, prev: Json | None, ifname: str = "eth0", **more: Any) -> Answer:
        conf = {**conf, "prevResult": prev} if prev is not None else conf
        return self.world.call("CHECK", conf, cid=self.cid, path=str(self.path), ifname=ifname, **more)

    def sh(self, *lines: str, check: bool = True) -> str:
        return self.world.sh(*lines, where=self.path, check=check)

    def ip(self, *words: str) -> Any:
        return self.world.ip(*words, where=self.path)

    def link(self, ifname: str = "eth0") -> Json | None:
        """The link of that name as `ip -d -j` tells it, or None."""
        found = self.ip("link", "show", "dev", ifname)
        return found[0] if found else None

    def addresses(self, ifname: str = "eth0") -> set[str]:
        """The global addresses of the interface, with their prefix length."""
        found = self.ip("addr", "show", "dev", ifname)
        infos = [info for link in found for info in link["addr_info"] if info["scope"] == "global"]
        return {f"{info['local']}/{info['prefixlen']}" for info in infos}

    def ping(self, target: str, patience: int = 10) -> bool:
        """One answer within `patience` seconds: a bridge's own IPv6 address is not usable before that."""
        line = f"ping -n -q -i 0.2 -c 1 -w {patience} {target} >/dev/null 2>&1 && echo yes || true"
        return self.sh(line).strip() == "yes"

    def vanish(self) -> None:
        """The namespace goes as after a power cut: no DEL, no path. Returns when the host's ends are gone too."""
        if not self.path.exists():
            return
        peers = {link.get("link_index") for link in self.ip("link", "show", "type", "veth")}
        self._drop()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and peers & {link["ifindex"] for link in self.world.ip("link")}:
            time.sleep(0.02)

    def _drop(self) -> None:
        netns.end_processes([self.path])
        netns.delete(self.path)

    def remove(self, detach: bool = False) -> None:
        """The end of the container, with the DELs it is still owed if `detach`."""
        for (_, ifname), conf in list(self.attached.items()) if detach else []:
            self.delete(conf, ifname)
        if self.path.exists():
            self._drop()
        if self in self.world.containers:
            self.world.containers.remove(self)


def with_prev(conf: Json, prev: Json | None) -> Json:
    """`conf` with `prev` as a runtime adds it to DEL: not before 0.4.0 (conformance PR3)."""
    if prev is None or conf.get("cniVersion", "0.1.0") in {"0.1.0", "0.2.0", "0.3.0", "0.3.1"}:
        return conf
    return {**conf, "prevResult": prev}


def running_as_root() -> bool:
    return os.geteuid() == 0
