"""What the whole attach costs: real containers beside 10 to 2,000 members, and beside ZLayer's own daemon where it is.

Run by `python -m tests.kernel.fence.cost`. The members are ports admitted through the daemon's own fence; the
containers that come and go are real, and so is everything done for them. The sizes take turns, so that a noisy machine
is as noisy for each.
"""

from __future__ import annotations

import contextlib
import ctypes
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cni import naming
from cni.daemon import parts
from cni.daemon.attachments.request import AttachRequest
from cni.daemon.model.records import AssignedAddress, Attachment
from cni.daemon.settings import Settings
from cni.daemon.state.store import Store
from cni.host import netns
from cni.host.kernel import Kernel
from cni.host.worker import Crew
from tests.interop.daemons import UPSTREAM, Daemon, Ours, Upstream
from tests.interop.machine import Machine

from .spaces import CLONE_NEWNET, Space

SIZES = ((10, 1), (200, 1), (2000, 1), (2000, 200))  # members, networks
ROUNDS = 60
MEMBERS, CALLS = (5, 10, 25, 50), 12  # of the daemons; 50 members cost ZLayer's half a second a call
FLAT = 1.3  # issue 5: how much dearer the dearest size may be
CLUSTER4, CLUSTER6 = "10.200.0.0/16", "fd00:200::/48"


class Scene:
    """An overlay service of ours in a namespace of its own, its fence populated, and one container's namespace."""

    def __init__(self, members: int, networks: int, attach: str = "") -> None:
        self.members, self.networks, self.attach = members, networks, attach
        self._made = 0
        self._home = tempfile.TemporaryDirectory(prefix="zlt-")
        self.host, self.box = Space("host"), Space("box")
        libc = ctypes.CDLL(None)
        # Every call comes from this one thread, as from one of the daemon's workers.
        self._thread = ThreadPoolExecutor(1, initializer=lambda: libc.setns(self.host.fd, CLONE_NEWNET))
        self._thread.submit(self._build).result()

    def _build(self) -> None:
        home = self._home.name
        ranges = {"cluster_cidr": CLUSTER4, "cluster_cidr6": CLUSTER6}
        settings = Settings(**ranges, run_dir=home, data_dir=home, address_cooldown=0)  # type: ignore[arg-type]
        self._store = Store(Path(home, "state.db"))
        self._kernel = Kernel()
        base = parts.build_base(settings, self._store, self._kernel, Crew(), lambda: True)
        node, members = parts.build_node(base, None, lambda: ((), ())), base.fence.members
        self._attacher = node.attacher
        node.data_path.start()
        if said := base.fence.status.trouble():
            raise RuntimeError(said)
        first = self._request()
        found = self._attacher.attach(first)
        self._attacher.detach(first.key)
        # Not where the real containers' addresses come from.
        high = 64 if int(found.ips[0].split(".")[2]) >= 128 else 192
        for number in range(self.members):
            members.add_port(self._member(found, number, high))

    def _member(self, like: Attachment, number: int, high: int) -> Attachment:
        four = AssignedAddress(f"10.200.{high + number // 250}.{number % 250 + 2}/26", "")
        values = {field: getattr(like, field) for field in like.__struct_fields__}
        values |= {"host_veth": f"zl-{number:010x}-v", "mac": "02:00:" + number.to_bytes(4, "big").hex(":")}
        values |= {"container": f"member{number}", "isolation": f"n{number % self.networks}"}
        values |= {"addresses": (four, AssignedAddress(f"fd00:200:0:fffe::{number + 2:x}/64", ""))}
        return Attachment(**values)

    def add(self, fd: int, identity: netns.NetnsId, ifname: str) -> None:
        """Attach an interface of a container that stays."""

        def work() -> None:
            request = replace(self._request(), netns_fd=fd, netns=identity, ifname=ifname)
            self._attacher.attach(request)

        self._thread.submit(work).result()

    def _request(self) -> AttachRequest:
        self._made += 1
        name = f"c{self._made}"
        return AttachRequest(
            network="net",
            container=name,
            ifname="eth0",
            netns_fd=self.box.fd,
            netns=netns.identify(self.box.fd),
            sandbox="/zlt",
            service="web",
            mode="auto",
            host_veth=naming.attachment_veth("net", name, "eth0"),
            isolation="n0",
            attach=self.attach,
        )

    def once(self) -> tuple[float, float]:
        """Milliseconds of one attach and of its detach."""
        return self._thread.submit(self._once).result()

    def _once(self) -> tuple[float, float]:
        request = self._request()
        start = time.perf_counter()
        self._attacher.attach(request)
        middle = time.perf_counter()
        self._attacher.detach(request.key)
        return (middle - start) * 1000, (time.perf_counter() - middle) * 1000

    def close(self) -> None:
        self._thread.submit(self._kernel.close).result()
        self._thread.submit(self._store.close).result()
        self._thread.shutdown()
        self.host.close()
        self.box.close()
        self._home.cleanup()


@contextlib.contextmanager
def scenes() -> Iterator[list[Scene]]:
    """One of every size."""
    made: list[Scene] = []
    try:
        for size in SIZES:
            made.append(Scene(*size))  # noqa: PERF401 - those made before one that fails are closed
        yield made
    finally:
        for scene in made:
            scene.close()


def of_ours() -> bool:
    """Print the table; whether it is flat."""
    say = sys.stdout.write
    with scenes() as made:
        seen: list[list[tuple[float, float]]] = [[] for _ in made]
        for _ in range(ROUNDS):
            for scene, row in zip(made, seen, strict=True):
                row.append(scene.once())
    medians = [[statistics.median(column) for column in zip(*row, strict=True)] for row in seen]
    say(f"\nthe whole attach, medians of {ROUNDS} in ms, and how many times the smallest size's\n")
    say(" ".join(f"{word:>8}" for word in ("members", "networks", "attach", "times", "detach", "times")) + "\n")
    worst = 0.0
    for (members, networks), (attach, detach) in zip(SIZES, medians, strict=True):
        ratios = attach / medians[0][0], detach / medians[0][1]
        worst = max(worst, *ratios)
        say(f"{members:>8} {networks:>8} {attach:8.2f} {ratios[0]:8.2f} {detach:8.2f} {ratios[1]:8.2f}\n")
    flat = worst <= FLAT
    say(f"{'flat' if flat else 'NOT flat'} within {FLAT}: the dearest is {worst:.2f} times the smallest\n")
    return flat


def of_daemons() -> None:
    """Print the same attach through ZLayer's daemon and ours, by the protocol both speak."""
    say = sys.stdout.write
    say(f"\nthe same attach through daemons, medians of {CALLS} in ms\n")
    say(f"{'members':>20} " + " ".join(f"{n:>8}" for n in MEMBERS) + "\n")
    for kind in (Upstream, Ours):
        if kind is Upstream and not UPSTREAM.exists():
            say(f"{kind.name:>20} skipped: {UPSTREAM} does not exist (scripts/interop builds it)\n")
            continue
        machine = Machine()
        try:
            say(f"{kind.name:>20} " + " ".join(f"{ms:8.1f}" for ms in _series(kind(machine))) + "\n")
        finally:
            machine.close()


def _series(daemon: Daemon) -> list[float]:
    daemon.start()
    manager = daemon.manager(30)
    manager.setup_global_overlay()
    services = ("web", "db")
    for service in services:
        manager.setup_service_overlay(service)
    found, members = [], 0
    guest = daemon.machine.container()
    for size in MEMBERS:
        while members < size:
            manager.attach_container(daemon.machine.container(), services[members % 2], isolation_network="red")
            members += 1
        times = []
        for _ in range(CALLS):
            start = time.perf_counter()
            manager.attach_container(guest, services[0], isolation_network="red")
            times.append((time.perf_counter() - start) * 1000)
            manager.detach_container(guest)
        found.append(statistics.median(times))
    return found
