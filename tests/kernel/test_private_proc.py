"""An instance of /proc of the daemon's own: the settings of the calling thread's namespace, and no descriptor left."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni.host import private_proc
from cni.host.private_proc import PrivateProc

from .conftest import Space

pytestmark = pytest.mark.root


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_directory_is_the_calling_threads_namespaces(container: Space) -> None:
    def written() -> None:
        fd = private_proc.open_directory("sys/net/ipv4/conf/lo")
        assert fd is not None
        file = os.open("arp_notify", os.O_WRONLY, dir_fd=fd)
        os.write(file, b"1")
        os.close(file)
        os.close(fd)

    before = Path("/proc/sys/net/ipv4/conf/lo/arp_notify").read_text()
    container.inside(written)
    assert container.sysctl("ipv4/conf/lo/arp_notify") == "1"
    assert Path("/proc/sys/net/ipv4/conf/lo/arp_notify").read_text() == before


def test_a_directory_that_is_none(container: Space) -> None:
    with pytest.raises(FileNotFoundError):
        private_proc.open_directory("sys/net/ipv4/conf/none")


def test_many_threads_have_one_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """And an instance is replaced after some lookups."""
    monkeypatch.setattr(private_proc, "_LOOKUPS", 3)
    before, proc = descriptors(), PrivateProc()

    def look() -> None:
        for _ in range(20):
            fd = proc.open_directory("sys/net/ipv4/conf/lo")
            assert fd is not None
            os.close(fd)

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(look) for _ in range(8)]:
            done.result()
    assert descriptors() == before + 1
    proc.close()
    assert descriptors() == before


def test_without_the_right_there_is_none() -> None:
    """And the settings are those of the host's /proc then."""
    code = (
        "from cni.host import private_proc, sysctl\n"
        "assert private_proc.open_directory('sys/net/ipv4/conf/lo') is None\n"
        "sysctl.put_all('ipv4/conf/lo', (('arp_notify', '1'),))\n"
        "print(sysctl.read('ipv4/conf/lo/arp_notify'))\n"
    )
    alone = ["unshare", "--net", "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    done = subprocess.run([*alone, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr
