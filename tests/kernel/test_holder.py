"""Holder processes, and moving an interface on into the container: what a foreign daemon needs of the kernel."""

import errno
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cni import proc
from cni.host import links, netns_holder, relocate
from cni.host.netlink import Netlink, NetlinkError
from cni.host.netns import open_path

pytestmark = pytest.mark.root

TITLE = "zlayer-cni: holds zlt0 of a test"


@pytest.fixture
def held():
    """A holder, ended after the test."""
    process = netns_holder.start(TITLE, lambda _: None)
    yield process
    netns_holder.end(process)


def test_a_holder_has_a_namespace_of_its_own(held):
    assert netns_holder.is_alive(held)
    namespaces = [Path(f"/proc/{pid}/ns/net").readlink() for pid in ("self", held.pid)]
    assert namespaces[0] != namespaces[1]
    assert Path(f"/proc/{held.pid}/cmdline").read_text().rstrip("\0") == TITLE


@pytest.mark.skipif(
    platform.machine() not in netns_holder._CODE, reason="no program for this machine: it stays a Python"
)
def test_a_holder_is_a_few_instructions_without_privileges(held):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{held.pid}/status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 100  # kB
    assert {status[name].strip() for name in ("CapPrm", "CapEff", "CapBnd")} == {"0" * 16}


def test_nor_does_it_keep_any_where_the_bounding_set_cannot_be_lowered():
    """A runtime's unit may have no CAP_SETPCAP, which it takes to lower it."""
    script = f"from cni.host import netns_holder; print(netns_holder.start({TITLE!r}, lambda _: None).pid)"
    words = ["setpriv", "--bounding-set", "-setpcap", sys.executable, "-c", script]
    pid = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert {status[name].strip() for name in ("CapPrm", "CapEff")} == {"0" * 16}
        assert status["CapBnd"].strip() != "0" * 16, "else this shows nothing"
    finally:
        os.kill(pid, signal.SIGKILL)


def test_ending_twice(held):
    assert netns_holder.end(held)
    assert not netns_holder.end(held)
    assert not netns_holder.is_alive(held)


def test_another_process_with_the_number_is_left_alone(held):
    assert not netns_holder.end(netns_holder.Process(held.pid, held.start_time + 1))
    assert netns_holder.is_alive(held)


def test_a_process_that_is_a_zombie_is_dead():
    process = subprocess.Popen(["true"])
    end = time.monotonic() + 30
    while proc.alive_since(process.pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not netns_holder.is_alive(netns_holder.Process(process.pid, proc.alive_since(process.pid)))
    assert not netns_holder.end(netns_holder.Process(process.pid, 1))
    process.wait()


def test_it_ends_when_it_cannot_be_written_down():
    made = []

    def refuse(process):
        made.append(process)
        raise OSError(errno.ENOSPC, "no space")

    with pytest.raises(OSError, match="no space"):
        netns_holder.start(TITLE, refuse)
    assert not netns_holder.is_alive(made[0])


MAKE_ONE = """
import os, sys
from cni.host import netns_holder
def save(process):
    print(process.pid, process.start_time, flush=True)
    if sys.argv[1] == "die":
        os.kill(os.getpid(), 9)
netns_holder.start("zlayer-cni: holds zlt0 of a test", save)
"""


def make_one(how: str, first: str = "") -> netns_holder.Process:
    """A holder that another process made and outlived, or not. Returns when its pipes are closed."""
    done = subprocess.run(
        [sys.executable, "-c", first + MAKE_ONE, how], capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, check=False,
    )  # fmt: skip
    return netns_holder.Process(*map(int, done.stdout.split()))


def descriptors(process: netns_holder.Process) -> dict[str, str]:
    """What a process has open."""
    return {path.name: str(path.readlink()) for path in Path(f"/proc/{process.pid}/fd").iterdir()}


def test_it_outlives_its_maker_and_holds_none_of_its_pipes():
    process = make_one("live")  # would wait for ever if the holder had our pipes
    try:
        assert netns_holder.is_alive(process)
        assert descriptors(process) == {"0": "/dev/null", "1": "/dev/null", "2": "/dev/null"}
        assert os.getsid(process.pid) == process.pid
    finally:
        assert netns_holder.end(process)


def control_groups(pid: int | str) -> dict[str, str]:
    """Tree to group of a process, in the trees that service managers use."""
    lines = (line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines())
    return {tree: group for _, tree, group in lines if tree in ("", "name=systemd")}


@pytest.fixture
def service_group():
    """A control group such as a service manager makes for a runtime, in whichever tree there is."""
    for tree in ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        group = Path(tree, f"zlt-{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / "cgroup.procs").exists():
            yield group
            group.rmdir()
            return
        group.rmdir()
    pytest.skip("no control groups here that we may make one in")


def test_it_leaves_the_control_group_of_the_runtime(service_group):
    enter = f"open('{service_group}/cgroup.procs', 'w').write('0')\n"
    process = make_one("live", enter)
    try:
        assert service_group.name not in str(control_groups(process.pid))
        assert (service_group / "cgroup.procs").read_text() == ""
    finally:
        assert netns_holder.end(process)


def test_it_ends_with_a_maker_that_is_killed_before_it_let_it_go():
    process = make_one("die")
    end = time.monotonic() + 30
    while netns_holder.is_alive(process):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_on_a_machine_we_have_no_program_for_it_stays_a_python(monkeypatch):
    monkeypatch.setattr(netns_holder, "_CODE", {})
    process = netns_holder.start(TITLE, lambda _: None)
    try:
        assert set(descriptors(process).values()) == {"/dev/null"}
        assert netns_holder.is_alive(process)
    finally:
        assert netns_holder.end(process)


def test_signals_that_end_a_program_end_it(held):
    os.kill(held.pid, signal.SIGTERM)
    os.waitpid(held.pid, 0)
    assert not netns_holder.is_alive(held)


# --- moving -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scratch(host, held):
    """The holder's namespace, with one end of a veth as eth0 in it, the other on the host."""
    fd = open_path(netns_holder.netns_path(held))
    host.ip("link add zlt-h type veth peer name zlt-p")
    host.ip(f"link set zlt-p netns {held.pid}")
    inside = ["nsenter", "-t", str(held.pid), "-n", "ip"]
    for line in ("link set zlt-p name eth0", "address add 10.200.1.2/26 dev eth0", "link set eth0 up"):
        subprocess.run([*inside, *line.split()], check=True)
    yield fd
    os.close(fd)


def test_an_interface_arrives_under_its_name(scratch, container, netlink):
    before = relocate.find_inside(scratch, "eth0")
    shape = relocate.InterfaceConfig("net7", 1300, "0a:00:00:00:00:01")
    moved = relocate.move(before.index, scratch, container.fd, shape)
    assert (moved.name, moved.mtu, moved.mac, moved.up) == ("net7", 1300, "0a:00:00:00:00:01", False)
    assert relocate.find_inside(scratch, "eth0") is None
    seen = container.link("net7")
    assert (seen["mtu"], seen["address"]) == (1300, "0a:00:00:00:00:01")
    host_end = links.find_link(netlink, "zlt-h")
    assert moved.peer == host_end.index


def test_it_keeps_its_mac_unless_told(scratch, container):
    before = relocate.find_inside(scratch, "eth0")
    assert relocate.move(before.index, scratch, container.fd, relocate.InterfaceConfig("net7", 1420)).mac == before.mac


def test_it_stays_where_it_is_when_the_name_is_taken(scratch, container):
    container.ip("link add net7 type bridge")
    before = relocate.find_inside(scratch, "eth0")
    with pytest.raises(NetlinkError) as error:
        relocate.move(before.index, scratch, container.fd, relocate.InterfaceConfig("net7", 1420))
    assert error.value.errno == errno.EEXIST
    assert relocate.find_inside(scratch, "net7") is not None
    assert container.link("net7")["kind"] == "bridge"


def test_mtu_twice(host, netlink):
    host.ip("link add zlt-h type veth peer name zlt-p")
    index = links.find_link(netlink, "zlt-h").index
    for _ in range(2):
        links.set_mtu(netlink, index, 1400)
        assert host.link("zlt-h")["mtu"] == 1400


def test_mtu_of_nothing(netlink):
    assert isinstance(netlink, Netlink)
    with pytest.raises(NetlinkError):
        links.set_mtu(netlink, 4242, 1400)
