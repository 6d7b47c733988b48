"""Namespaces of the test's own on the real kernel: one that plays the host, one that plays the container.

They are called zlt-k<pid>-<n>, are removed after the test, and those of a test run that died are removed when the next
one begins. Nothing here touches the namespace the tests were started in. A test enters a namespace in a thread that
dies afterwards, because a thread that came back would keep sockets of the other side (docs/architecture.md).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pyroute2 import IPRoute

from cni.host import netns as host_netns
from cni.host.netlink import Netlink

T = TypeVar("T")
PLACE = Path("/run/netns")
PREFIX = "zlt-k"
FEATURES = {  # what we may need, and what `ip link add` wants to hear to make one
    "bridge": [],
    "veth": ["peer", "name", "zlt-peer"],
    "dummy": [],
    "vlan": ["link", "lo", "id", "7"],
    "vxlan": ["id", "7", "dstport", "4789"],
    "wireguard": [],
}
_counter = itertools.count()


def ip(*words: str) -> str:
    """Run `ip`; its stdout. Raises RuntimeError with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


class Space:
    """One named network namespace, for as long as a test lasts."""

    def __init__(self) -> None:
        self.name = f"{PREFIX}{os.getpid()}-{next(_counter)}"
        ip("netns", "add", self.name)
        self.path = str(PLACE / self.name)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(RuntimeError):
            ip("netns", "del", self.name)

    def ip(self, *lines: str) -> None:
        """`ip` commands inside, one after the other."""
        for line in lines:
            ip("-n", self.name, *line.split())

    def inside(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread in this namespace; a handle opened there keeps belonging there."""
        box: list[Any] = []

        def body() -> None:
            try:
                with host_netns.entered(self.fd):
                    box.extend((True, work()))
            except BaseException as error:  # noqa: BLE001 - handed to the caller
                box.extend((False, error))

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        good, value = box
        if not good:
            raise value
        return value

    def netlink(self) -> Netlink:
        """Our own socket in this namespace."""
        return self.inside(Netlink)

    def read(self, work: Callable[[IPRoute], T]) -> T:
        """What another reader of the kernel sees; `work` returns plain values."""

        def look() -> T:
            with IPRoute() as ipr:
                return work(ipr)

        return self.inside(look)

    def link(self, name: str) -> dict[str, Any] | None:
        """The link of that name as the other reader sees it, its linkinfo data under "data"; None if there is none."""

        def look(ipr: IPRoute) -> dict[str, Any] | None:
            for found in ipr.get_links():
                if found.get("ifname") == name:
                    info = found.get("linkinfo")
                    plain = {key: found[key] for key in ("index", "state")}
                    plain |= {key.lower().removeprefix("ifla_"): value for key, value in found["attrs"]}
                    plain["kind"] = info.get("kind") if info else ""
                    data = info.get("data") if info else None
                    attrs = data.get("attrs", []) if data is not None and hasattr(data, "get") else []
                    plain["data"] = {key.lower(): value for key, value in attrs}
                    return plain
            return None

        return self.read(look)

    def links(self) -> set[str]:
        """The names of all links but lo."""
        return self.read(lambda ipr: {link.get("ifname") for link in ipr.get_links()}) - {"lo"}

    def addresses(self, name: str) -> set[str]:
        """Addresses with their prefix, of one link."""
        return {text for text, _ in self.address_flags(name)}

    def address_flags(self, name: str) -> set[tuple[str, int]]:
        """Addresses with their flags, of one link."""

        def look(ipr: IPRoute) -> set[tuple[str, int]]:
            (index,) = ipr.link_lookup(ifname=name)
            found = ipr.get_addr(index=index)
            return {(f"{a.get('address')}/{a['prefixlen']}", a.get("flags")) for a in found}

        return self.read(look)

    def routes(self, family: int = 2) -> set[tuple[str, str | None]]:
        """(destination, gateway) of the main table's routes; of IPv6 only those by a gateway."""

        def look(ipr: IPRoute) -> set[tuple[str, str | None]]:
            found = ipr.get_routes(family=family, table=254)
            said = {(f"{r.get('dst') or 'default'}/{r['dst_len']}", r.get("gateway")) for r in found}
            return said if family == 2 else {each for each in said if each[1]}

        return self.read(look)

    def sysctl(self, path: str, value: str | None = None) -> str:
        """A setting below /proc/sys/net; written first if `value` is given."""

        def work() -> str:
            file = Path("/proc/sys/net", path)
            if value is not None:
                file.write_text(value)
            return file.read_text().strip()

        return self.inside(work)


@pytest.fixture
def spaces() -> Iterator[Callable[[], Space]]:
    """Makes namespaces, and removes them."""
    made: list[Space] = []

    def make() -> Space:
        made.append(Space())
        return made[-1]

    yield make
    for space in made:
        space.close()


@pytest.fixture
def host(spaces: Callable[[], Space]) -> Space:
    """A namespace that plays the host."""
    return spaces()


@pytest.fixture
def container(spaces: Callable[[], Space]) -> Space:
    """A namespace that plays the container."""
    return spaces()


@pytest.fixture
def netlink(host: Space) -> Iterator[Netlink]:
    """Our socket in the host's namespace."""
    with host.netlink() as sock:
        yield sock


# --- the session ----------------------------------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def sweep() -> None:
    """Remove the namespaces of test runs that are no more: this suite's, and those of its two kinds of daemon."""
    for path in PLACE.glob("zlt-*") if PLACE.is_dir() else ():
        named = re.fullmatch(rf"(?:{PREFIX}|zlt-tool|zlt-door-)(\d+)-.+", path.name)
        if named and not Path("/proc", named[1]).exists():
            subprocess.run(["ip", "netns", "del", path.name], capture_output=True, timeout=30, check=False)


def features() -> dict[str, bool]:
    """Which of FEATURES this kernel has, tried out in a namespace of its own."""
    space = Space()
    found = {}
    try:
        for kind, words in FEATURES.items():
            try:
                ip("-n", space.name, "link", "add", "zlt-try", "type", kind, *words)
                ip("-n", space.name, "link", "del", "zlt-try")
                found[kind] = True
            except RuntimeError:
                found[kind] = False
        found["ipv6"] = space.inside(lambda: Path("/proc/sys/net/ipv6").is_dir())
        found["br_netfilter"] = space.inside(lambda: Path("/proc/sys/net/bridge").is_dir())
    finally:
        space.close()
    return found


def pytest_report_header() -> str:
    if os.geteuid() != 0:
        return "kernel: not root, nothing to be tried"
    sweep()
    found = features()
    have = ", ".join(kind for kind, there in found.items() if there)
    lack = ", ".join(kind for kind, there in found.items() if not there)
    return f"kernel {os.uname().release}: {have}; missing: {lack or 'nothing'}"


@pytest.fixture(scope="session", autouse=True)
def _swept() -> None:
    """Also where the header was not asked for, because the session began above this folder."""
    if os.geteuid() == 0:
        sweep()
