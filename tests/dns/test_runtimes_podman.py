"""podman with nothing configured: it writes resolv.conf from the result, and containers find each other by name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dns.runtimes import GLIBC, WEB, ZONE, served_soon
from tests.runtimes.conftest import machine, plugin
from tests.runtimes.machine import Machine
from tests.runtimes.plugin import Plugin
from tests.runtimes.podman import Podman
from tests.runtimes.tools import needed

__all__ = ["machine", "plugin"]
pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def podman(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    needed("podman", "conmon", "crun", "busybox", "wget")
    capabilities = plugin.conflist["plugins"][0]["capabilities"] | {"aliases": True}
    conflists = [
        plugin.with_first(service="client", capabilities=capabilities),
        plugin.another(2, service="web", capabilities=capabilities),
        plugin.another(3, service="closed", mode="isolated"),
    ]
    made = Podman(machine, conflists, tmp_path_factory.mktemp("podman"))
    try:
        made.start("server", "--network", "zlt-2", "--cap-add", "NET_BIND_SERVICE", command=WEB)
        yield made
    finally:
        made.remove_all()


def test_wget_http_web(podman: Podman) -> None:
    with podman.running("client", *GLIBC) as client:
        resolv_conf = client.run("cat", "/etc/resolv.conf").stdout
        assert "nameserver 10.200.0.1" in resolv_conf
        assert f"search {ZONE}" in resolv_conf
        served_soon(client.run)
        served_soon(client.run, f"web.{ZONE}")


def test_podmans_name_of_a_container_is_an_alias_within_its_service(podman: Podman) -> None:
    with podman.running("neighbour", "--network", "zlt-2", *GLIBC) as neighbour:
        served_soon(neighbour.run, "server")
    with podman.running("stranger") as stranger:
        assert "NXDOMAIN" in stranger.run("busybox", "nslookup", f"server.{ZONE}").stdout


def test_who_may_not_reach_it_finds_no_name(podman: Podman) -> None:
    with podman.running("closed", "--network", "zlt-3") as closed:
        assert "NXDOMAIN" in closed.run("busybox", "nslookup", f"web.{ZONE}").stdout
