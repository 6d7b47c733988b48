"""nerdctl writes resolv.conf before the network exists: with --dns, and with `dns: {intercept: true}`, names work."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dns.runtimes import GLIBC, WEB, served_soon
from tests.runtimes.conftest import machine, plugin
from tests.runtimes.containerd import Containerd
from tests.runtimes.machine import Machine
from tests.runtimes.nerdctl import Nerdctl
from tests.runtimes.plugin import Plugin
from tests.runtimes.tools import needed, nerdctl

__all__ = ["machine", "plugin"]
pytestmark = pytest.mark.root
NODE = "10.200.0.1"


@pytest.fixture(scope="module")
def client(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nerdctl]:
    needed("containerd", "ctr", "runc", "busybox", "wget")
    program = nerdctl()
    machine.write("/etc/zlayer-cni/overlayd.yaml", "dns: {intercept: true}\n")
    machine.write("/etc/resolv.conf", "nameserver 192.0.2.53\n")
    scratch = tmp_path_factory.mktemp("nerdctl")
    conflist = plugin.with_first(service="web")
    Containerd(machine, {"runc": conflist}, scratch / "containerd.log")
    made = Nerdctl(machine, program, scratch)
    try:
        made.start("server", plugin.network, command=WEB)
        yield made
    finally:
        made.remove_all()


def test_wget_http_web_by_the_option(client: Nerdctl, plugin: Plugin) -> None:
    container = client.start("asks", plugin.network, "--dns", NODE, *GLIBC)
    assert f"nameserver {NODE}" in container.run("cat", "/etc/resolv.conf").stdout
    served_soon(container.run)


def test_wget_http_web_by_interception(client: Nerdctl, plugin: Plugin) -> None:
    container = client.start("plain", plugin.network, *GLIBC)
    resolv_conf = container.run("cat", "/etc/resolv.conf").stdout
    assert "nameserver" in resolv_conf
    assert NODE not in resolv_conf
    served_soon(container.run)
