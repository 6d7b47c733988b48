"""`ctr run --cni` writes no resolv.conf: with the node's address in the image's own, and with `dns: {intercept: true}`
whatever server is in it, names work.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dns.runtimes import SERVED, served_soon
from tests.runtimes.conftest import machine, plugin
from tests.runtimes.containerd import Containerd
from tests.runtimes.ctr import ROOT, Ctr
from tests.runtimes.machine import Machine, told
from tests.runtimes.plugin import Plugin
from tests.runtimes.tools import needed

__all__ = ["machine", "plugin"]
pytestmark = pytest.mark.root
NODE, ELSEWHERE = "10.200.0.1", "192.0.2.53"
# The host's C library and wget, in place of the image's static busybox, which ends in a name lookup.
GLIBC = tuple(
    word
    for path in ("/usr", "/lib", "/lib64")
    for word in ("--mount", f"type=bind,src={path},dst={path},options=rbind:ro")
)


@pytest.fixture(scope="module")
def ctr(machine: Machine, plugin: Plugin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ctr]:
    """ctr with a server of the service `web`."""
    needed("containerd", "ctr", "runc", "busybox", "wget")
    machine.write("/etc/zlayer-cni/overlayd.yaml", "dns: {intercept: true}\n")
    scratch = tmp_path_factory.mktemp("ctr")
    Containerd(machine, {"runc": plugin.with_first(service="web")}, scratch / "containerd.log")
    made = Ctr(machine)
    machine.write(f"{ROOT}/index.html", f"{SERVED}\n")
    with made.running("server") as server:
        begun = server.run("/bin/busybox", "httpd", "-p", "80", "-h", "/")
        assert begun.returncode == 0, told(begun)
        yield made


@pytest.mark.parametrize("server", [NODE, ELSEWHERE], ids=["by-its-address", "by-interception"])
def test_wget_http_web(ctr: Ctr, machine: Machine, server: str) -> None:
    machine.write(f"{ROOT}/etc/resolv.conf", f"nameserver {server}\n")
    with ctr.running("asks", *GLIBC) as container:
        served_soon(container.run)
