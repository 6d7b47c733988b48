"""A real daemon against people who may not command it: tenants who choose what a runtime passes on, and local users
without privileges. The daemon and the plugin run from source, in namespaces `zlt-tool*`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cni.plugin import delete_queue
from tests.kernel.test_fence_daemon import Fenced, noded
from tests.kernel.toolnode import LAN4, ROOT, Space, spaces, until, uplink

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

UNAVAILABLE = 103
ARP = 0x0806
AS_USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
Make = Callable[[], Space]


@pytest.fixture(scope="module")
def hosting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Fenced, Make]]:
    """A node with a member of each of two networks, on one bridge."""
    with noded(tmp_path_factory.mktemp("h")) as (node, make):
        node.add("red1", make(), "web", "red")
        node.add("blue1", make(), "web", "blue")
        yield node, make


def macs(node: Fenced, name: str) -> dict[str, str]:
    """The MACs of an attachment: of its bridge, of the host's end of its veth, of its own interface."""
    kinds = {"b": "bridge", "v": "host end"}
    return {
        "its own" if each.get("sandbox") else kinds[each["name"][-1]]: each["mac"]
        for each in node.results[name]["interfaces"]
    }


@pytest.mark.parametrize("whose", ["its own", "host end", "bridge", "a future member's"])
def test_a_mac_that_is_anothers_is_refused(hosting: tuple[Fenced, Make], whose: str) -> None:
    """A container with another's MAC on a bridge would receive its frames; nothing of the attach is left."""
    node, make = hosting
    wanted = "0a:58:0a:c8:01:07" if whose == "a future member's" else macs(node, "blue1")[whose]
    known, space = node.ask("attachments"), make()
    code, said = node.call("ADD", "thief", space, runtimeConfig={"mac": wanted}, isolationNetwork="red")
    assert code == UNAVAILABLE, said
    assert wanted in said["msg"]
    assert (space.links(), node.ask("attachments")) == (set(), known)


def test_a_mac_of_ones_own_is_had_once(hosting: tuple[Fenced, Make]) -> None:
    node, make = hosting
    wanted = "06:00:00:00:00:07"
    code, said = node.call("ADD", "first", make(), runtimeConfig={"mac": wanted})
    assert code == 0, said
    assert wanted in [each["mac"] for each in said["interfaces"]]
    assert node.call("ADD", "second", make(), runtimeConfig={"mac": wanted})[0] == UNAVAILABLE
    assert node.call("DEL", "first")[0] == 0
    assert node.call("ADD", "second", make(), runtimeConfig={"mac": wanted})[0] == 0
    assert node.call("DEL", "second")[0] == 0


def test_a_lock_on_the_sockets_directory_keeps_nobody_out(tmp_path: Path) -> None:
    """Anybody may lock a directory he can read, /run for one."""
    tmp_path.chmod(0o755)
    for parent in list(tmp_path.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    holder = subprocess.Popen([*AS_USER, "flock", "-x", str(tmp_path), "sh", "-c", "echo held; exec sleep infinity"],
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with noded(tmp_path) as (node, _):  # waits until the daemon answers
            assert node.status() == 0
            assert holder.poll() is None
    finally:
        holder.kill()
        holder.wait()


def squat(space: Space, *called: str) -> subprocess.Popen[str]:
    """A user without privileges has taken these names in the kernel."""
    script = (
        "import socket, sys, time\nheld = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in sys.argv[1:]]\n"
    )
    script += "[each.bind('\\0' + name) for each, name in zip(held, sys.argv[1:])]\nprint('held', flush=True)\n"
    command = [
        "nsenter",
        f"--net={space.path}",
        *AS_USER,
        "/usr/bin/python3",
        "-c",
        script + "time.sleep(600)",
        *called,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_names_that_a_user_has_taken_keep_nobody_out(tmp_path: Path) -> None:
    """Neither is the run directory another daemon's, nor is another daemon at work on the fence's tables."""
    status = tmp_path.stat()
    place = delete_queue.key((str(status.st_dev), str(status.st_ino), "run"))
    with spaces() as make:
        node = Fenced(tmp_path, make(), make())
        user = squat(node.host, f"zlayer-cni.run-dir/{place}", "zlayer-cni.overlayd/1")
        try:
            uplink(node.host, node.outside)
            node.start()
            assert node.status() == 0
            node.host.nft("add element inet zlayer_cni inside { theirs0 }")
            node.wake()
            assert until(lambda: "theirs0" not in node.host.nft("list set inet zlayer_cni inside"), 15)
            assert user.poll() is None
        finally:
            user.kill()
            user.wait()
            node.close()


def test_names_do_no_harm_on_a_terminal(hosting: tuple[Fenced, Make]) -> None:
    """A pod's name comes from the runtime's caller; others' marks turn a line round."""
    node, make = hosting
    nasty = "a\x1b[2J\x07\nPROBLEM\u202eb"
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={nasty};K8S_POD_NAME={nasty}"
    with node.program(
        env={"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "nasty", "CNI_NETNS": make().path, "CNI_IFNAME": "eth0",
             "CNI_PATH": "/opt/cni/bin", "CNI_ARGS": args},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as plugin:  # fmt: skip
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "zlayer-cni", "service": "w\u202e", "autostart": False}
        conf |= {"runDir": node.run_dir, "isolationNetwork": "n\u202e" + "n" * 1000}
        out, _ = plugin.communicate(json.dumps(conf).encode(), timeout=60)
    assert plugin.returncode == 0, out
    for words in (
        "status",
        "networks",
        "attachments",
        "graph",
        "graph --svg",
        "doctor",
        "gc --dry-run",
        "why nasty node",
    ):
        _, said = node.tool(*words.split())
        assert said
        assert not [c for c in said if not c.isprintable() and c != "\n"], (words, said)
        assert "\nPROBLEM" not in said
        assert len(said) < 20000
    (found,) = [each for each in json.loads(node.tool("attachments", "--json")[1]) if each["container_id"] == "nasty"]
    assert found["pod"] == f"{nasty}/{nasty}"
    assert node.call("DEL", "nasty")[0] == 0


def test_the_host_answers_arp_for_its_gateway_alone(hosting: tuple[Fenced, Make]) -> None:
    """The host's other addresses are not visible on a bridge."""
    node, _ = hosting
    node_address = node.why("red1", "node")["paths"][0]["to"]["address"]
    mac = bytes.fromhex(macs(node, "red1")["its own"].replace(":", ""))
    sock = node.boxes["red1"].inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ARP)))
    heard: list[bytes] = []

    def ask(address: str) -> None:
        me, it = (socket.inet_aton(each) for each in (node.address("red1"), address))
        head = b"\xff" * 6 + mac + struct.pack("!HHHBBH", ARP, 1, 0x0800, 6, 4, 1)
        sock.send(head + mac + me + bytes(6) + it)

    def answered(address: str) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(sock.recv(100))
        return any(each[20:22] == b"\0\2" and each[28:32] == socket.inet_aton(address) for each in heard)

    with sock:
        sock.bind(("eth0", ARP))
        sock.setblocking(False)
        for address in (LAN4, node_address, node.gateway("red1")):
            ask(address)
        assert until(lambda: answered(node.gateway("red1")), 15)  # asked last
        assert not [address for address in (LAN4, node_address) if answered(address)]


class Poor(Fenced):
    """A node whose daemon may have 1024 descriptors, and may not ask for more."""

    def program(self, *words: str, **how: Any) -> subprocess.Popen[bytes]:
        if "overlayd" not in words:
            return super().program(*words, **how)
        few = ["prlimit", "--nofile=1024:1024", "setpriv", "--bounding-set=-sys_resource"]
        inside = ["nsenter", f"--net={self.host.path}", sys.executable, "-m", "cni", *words]
        return subprocess.Popen([*few, *inside], cwd=ROOT, **how)


def test_agents_that_never_hang_up_leave_room_for_runtimes(tmp_path: Path) -> None:
    with spaces() as make, contextlib.ExitStack() as stack:
        node = Poor(tmp_path, make(), make())
        try:
            uplink(node.host, node.outside)
            node.start()
            agents = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(700)]
            for agent in agents:
                agent.connect(str(tmp_path / "agents.sock"))
            assert until(lambda: turned_away(agents) == 700 - 512, 30)
            assert node.call("ADD", "meanwhile", make())[0] == 0
            assert node.call("DEL", "meanwhile")[0] == 0
            assert turned_away(agents) == 700 - 512
        finally:
            node.close()


def turned_away(agents: list[socket.socket]) -> int:
    """How many have been hung up on."""

    def is_over(agent: socket.socket) -> bool:
        try:
            return agent.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False

    return sum(map(is_over, agents))


@pytest.mark.parametrize("inside", [False, True])
def test_a_container_does_not_choose_its_mac(hosting: tuple[Fenced, Make], inside: bool) -> None:
    """What a plugin of the chain sets from the host is taken over; what a process of the container may have set is
    not."""
    node, make = hosting
    space, name, wanted = make(), f"tuned{inside}", f"06:00:00:00:01:{inside:02x}"
    command = ["nsenter", f"--net={space.path}", "unshare", "-m", "sleep", "600"]
    with contextlib.ExitStack() as stack:
        if inside:
            container = stack.enter_context(subprocess.Popen(command))
            stack.callback(container.kill)
            assert until(lambda: Path(f"/proc/{container.pid}/comm").read_text() == "sleep\n", 10)
        code, said = node.call("ADD", name, space)
        assert code == 0, said
        space.ip(f"link set eth0 address {wanted}")

        def admitted() -> bool:
            return wanted in node.host.nft("list set bridge zlayer_cni macs")

        def decided() -> bool:
            return f"the MAC {wanted}" in (node.dir / "log").read_text()

        assert until(decided, 10)
        assert admitted() is not inside
        assert node.call("DEL", name)[0] == 0
