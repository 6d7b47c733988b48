"""The plugin in front of ZLayer's unmodified daemon: ADD, CHECK, DEL, GC, STATUS (contract 7)."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni.host.netns_holder import is_alive
from tests.interop.daemons import Daemon, Ours
from tests.interop.gate import gate
from tests.interop.machine import wait_until
from tests.interop.runtime import PROGRAMS, Runtime


@pytest.fixture(params=["source", "unpacked"])
def runtime(request: pytest.FixtureRequest, upstream: Daemon) -> Runtime:
    """A runtime in front of ZLayer's daemon, the node's overlay up, by each form of the plugin."""
    upstream.manager().setup_global_overlay()
    return by(request.param, upstream)


@pytest.fixture
def one(upstream: Daemon) -> Runtime:
    """The same, from source alone: where the form makes no difference and time passes."""
    upstream.manager().setup_global_overlay()
    return by("source", upstream)


def by(form: str, daemon: Daemon) -> Runtime:
    if form != "source" and not Path(PROGRAMS[form][0]).exists():
        pytest.skip(f"{PROGRAMS[form][0]} is not there: run scripts/build")
    return Runtime(daemon, PROGRAMS[form])


@contextmanager
def at_the_gate(runtime: Runtime, act: Callable[[], object]) -> Iterator[str]:
    """Calls go through a gate, which acts when an attach comes by; the socket they name."""
    behind = runtime.daemon.socket
    runtime.daemon.socket = f"{behind}.gate"
    try:
        with gate(runtime.daemon.socket, behind, "attach_container", act):
            yield runtime.daemon.socket
    finally:
        Path(runtime.daemon.socket).unlink(missing_ok=True)
        runtime.daemon.socket = behind


# --- the life of an attachment ----------------------------------------------------------------------------------------


def test_add(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    result = runtime.add("c1", netns)
    links = runtime.daemon.machine.links()
    bridge, host, inside = result["interfaces"]
    assert (inside["name"], inside["sandbox"], inside["mtu"]) == ("net0", netns, 1420)
    assert links[host["name"]]["master"] == bridge["name"]
    assert (links[host["name"]]["address"], links[host["name"]]["mtu"]) == (host["mac"], 1420)
    assert links[bridge["name"]]["address"] == bridge["mac"]
    (there,) = runtime.inside(netns).values()
    assert (there["ifname"], there["address"], there["mtu"]) == ("net0", inside["mac"], 1420)
    v4 = [f"{each['local']}/{each['prefixlen']}" for each in there["addr_info"] if each["family"] == "inet"]
    assert v4 == [result["ips"][0]["address"]]
    gateway = result["ips"][0]["gateway"]
    assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": gateway}]
    routes = runtime.daemon.machine.ip("route", netns=netns)
    assert ("default", gateway, "net0") in {(r["dst"], r.get("gateway"), r["dev"]) for r in routes}
    assert runtime.pings(netns, gateway)


def test_the_global_overlay_is_left_alone(runtime: Runtime) -> None:
    before = runtime.daemon.manager().status()
    runtime.add("c1", runtime.daemon.machine.netns())
    after = runtime.daemon.manager().status()
    assert (after.interface, after.node_ip, after.public_key) == (before.interface, before.node_ip, before.public_key)


def test_check(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    runtime.add("c1", netns)
    assert runtime.call("CHECK", "c1", netns).code == 0
    inside = ("nsenter", f"--net={netns}", "ip")
    runtime.daemon.machine.run(*inside, "route", "del", "default")
    answer = runtime.call("CHECK", "c1", netns)
    assert answer.error == 102
    assert "the route to 0.0.0.0/0 by" in answer.json["msg"]


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        ("ip link set {host} down", "is down"),
        ("ip link set {host} nomaster", "is on no bridge"),
        ("ip link del {host}", "the host interface {host} is missing"),
        ("ip address flush dev {bridge}", "lacks the gateway address"),
        ("nsenter --net={netns} ip link set net0 down", "the interface net0 is down"),
        ("nsenter --net={netns} ip address flush dev net0", "the address {address} is missing"),
        ("nsenter --net={netns} ip link set net0 name net9", "the interface net0 is missing"),
        ("kill -9 {pid}", "the holder process {pid} is gone"),
    ],
)
def test_check_complains(one: Runtime, spoil: str, complaint: str) -> None:
    netns = one.daemon.machine.netns()
    result = one.add("c1", netns)
    (record,) = one.records()
    bridge, host, _ = (each["name"] for each in result["interfaces"])
    names = {"host": host, "bridge": bridge, "netns": netns, "pid": record["pid"]}
    names["address"] = result["ips"][0]["address"]
    one.daemon.machine.run(*spoil.format(**names).split())
    answer = one.call("CHECK", "c1", netns)
    assert answer.error == 102, answer
    assert complaint.format(**names) in answer.json["msg"] + answer.json.get("details", "")


def test_del(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    first = runtime.address(runtime.add("c1", netns))
    runtime.delete("c1", netns)
    runtime.nothing_left()
    assert runtime.inside(netns) == {}
    assert runtime.address(runtime.add("c2", netns)) == first, "the address was not given back"


def test_del_twice_and_of_nothing(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    runtime.delete("c0", netns)
    runtime.add("c1", netns)
    for _ in range(2):
        runtime.delete("c1", netns)
    runtime.nothing_left()


def test_del_after_the_namespace(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    runtime.add("c1", netns)
    runtime.daemon.machine.run("ip", "netns", "del", Path(netns).name)
    runtime.delete("c1")
    runtime.nothing_left()


def test_two_networks_in_one_container(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    first = runtime.add("c1", netns, "net0", network="one")
    second = runtime.add("c1", netns, "net1", network="two")
    assert first["interfaces"][0]["name"] != second["interfaces"][0]["name"]
    assert "routes" not in second, "the first network's default route stands"
    assert set(runtime.inside(netns)) == {"net0", "net1"}
    for ifname, network in (("net0", "one"), ("net1", "two")):
        assert runtime.call("CHECK", "c1", netns, ifname, network=network).code == 0
    for result, ifname in ((first, "net0"), (second, "net1")):
        assert runtime.pings(netns, result["ips"][0]["gateway"], "-I", ifname)
    runtime.delete("c1", netns, "net0", network="one")
    assert set(runtime.inside(netns)) == {"net1"}
    assert runtime.call("CHECK", "c1", netns, "net1", network="two").code == 0
    runtime.delete("c1", netns, "net1", network="two")
    runtime.nothing_left()


def test_containers_reach_each_other(runtime: Runtime) -> None:
    here, there = runtime.daemon.machine.netns(), runtime.daemon.machine.netns()
    runtime.add("c1", here, "eth0")
    other = runtime.address(runtime.add("c2", there, "eth0"))
    assert runtime.pings(here, other)
    assert runtime.pings(here, other, "-M", "do", "-s", "1392"), "a packet of 1420 bytes does not pass"


@pytest.mark.parametrize("mode", ["auto", "shared", "dedicated"])
def test_modes(one: Runtime, mode: str) -> None:
    for number in (1, 2):  # a second attach, for the daemon names a dedicated service's bridge only once
        netns = one.daemon.machine.netns()
        result = one.add(f"c{number}", netns, mode=mode, service="web")
        bridge, host, _ = result["interfaces"]
        assert one.daemon.machine.links()[host["name"]]["master"] == bridge["name"]
        assert one.daemon.machine.links()[bridge["name"]]["linkinfo"]["info_kind"] == "bridge"
        assert one.call("CHECK", f"c{number}", netns, mode=mode, service="web").code == 0
        one.delete(f"c{number}", netns, mode=mode, service="web")


def test_ephemeral(one: Runtime) -> None:
    netns = one.daemon.machine.netns()
    bridge = one.add("c1", netns, ephemeral=True)["interfaces"][0]["name"]
    assert bridge in one.daemon.machine.links()
    one.delete("c1", netns, ephemeral=True)
    assert bridge not in one.daemon.machine.links()


def test_mac_mtu_dns_and_routes(one: Runtime) -> None:
    netns = one.daemon.machine.netns()
    result = one.add(
        "c1",
        netns,
        mtu=1300,
        runtimeConfig={"mac": "0a:00:00:00:00:07"},
        dns={"nameservers": ["10.96.0.10"]},
        routes=[{"dst": "10.96.0.0/12"}],
    )
    gateway = result["ips"][0]["gateway"]
    assert result["interfaces"][2] == {"name": "net0", "mac": "0a:00:00:00:00:07", "mtu": 1300, "sandbox": netns}
    assert {"dst": "10.96.0.0/12", "gw": gateway} in result["routes"]
    assert result["dns"] == {"nameservers": ["10.96.0.10"]}
    (there,) = one.inside(netns).values()
    assert (there["address"], there["mtu"]) == ("0a:00:00:00:00:07", 1300)
    assert one.pings(netns, gateway)
    assert one.call("CHECK", "c1", netns, mtu=1300).code == 0


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_second_add_is_an_error(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    runtime.add("c1", netns)
    answer = runtime.call("ADD", "c1", netns)
    assert answer.error == 101
    assert runtime.call("CHECK", "c1", netns).code == 0, "the first attachment was touched"
    assert len(runtime.holders()) == 1


def test_a_name_that_is_taken(one: Runtime) -> None:
    netns = one.daemon.machine.netns()
    one.daemon.machine.run("nsenter", f"--net={netns}", "ip", "link", "add", "net0", "type", "bridge")
    answer = one.call("ADD", "c1", netns)
    assert answer.error == 101
    assert set(one.inside(netns)) == {"net0"}
    one.nothing_left()


def test_the_hosts_own_namespace(one: Runtime) -> None:
    one.daemon.machine.run("touch", "/run/netns/zlt-host")
    one.daemon.machine.run("mount", "--bind", "/proc/self/ns/net", "/run/netns/zlt-host")
    before = one.daemon.machine.links().keys()
    for command in ("ADD", "DEL"):
        assert one.call(command, "c1", "/run/netns/zlt-host").error == 8
    assert one.daemon.machine.links().keys() == before
    one.nothing_left()


@pytest.mark.parametrize("conf", [{"isolationNetwork": "red"}, {"isolationNetwork": ""}, {"mode": "isolated"}])
def test_an_isolation_network_is_refused(one: Runtime, conf: dict[str, str]) -> None:
    """Upstream's fence lets everything through (5.3/1): better no container than an open one."""
    netns = one.daemon.machine.netns()
    before = one.daemon.machine.links().keys()
    answer = one.call("ADD", "c1", netns, **conf)
    assert answer.error == 105
    assert "ZLayer's overlayd does not keep isolation networks apart" in answer.json["msg"]
    assert (one.daemon.machine.links().keys(), one.inside(netns)) == (before, {})
    one.nothing_left()


def test_an_address_cannot_be_asked_for(one: Runtime) -> None:
    answer = one.call("ADD", "c1", one.daemon.machine.netns(), runtimeConfig={"ips": ["10.200.1.9/26"]})
    assert answer.error == 103
    one.nothing_left()


def test_a_full_service(one: Runtime) -> None:
    """61 containers, and no more (contract 6.4)."""
    manager = one.daemon.manager()
    manager.setup_service_overlay("web")
    for _ in range(61):
        manager.allocate_ip("web")
    answer = one.call("ADD", "c1", one.daemon.machine.netns(), service="web")
    assert (answer.error, answer.json["msg"]) == (104, "no IP addresses available for service web")
    one.nothing_left()


def test_a_failure_leaves_nothing(one: Runtime) -> None:
    """The daemon attaches, the move fails: another interface took the name while the daemon was at it."""
    netns = one.daemon.machine.netns()
    first = one.address(one.add("c0", one.daemon.machine.netns()))
    inside = ("nsenter", f"--net={netns}", "ip", "link")
    with at_the_gate(one, lambda: one.daemon.machine.run(*inside, "add", "net0", "type", "bridge")):
        answer = one.call("ADD", "c1", netns)
    assert answer.error == 100
    assert "File exists" in answer.json["msg"]
    assert len(one.holders()) == len(one.veths()) == len(one.records()) == 1
    assert set(one.inside(netns)) == {"net0"}
    one.daemon.machine.run(*inside, "del", "net0")
    second = one.address(one.add("c1", netns))
    assert int(second.rpartition(".")[2]) == int(first.rpartition(".")[2]) + 1, "the address was not given back"


# --- GC, STATUS -------------------------------------------------------------------------------------------------------


def test_gc(runtime: Runtime) -> None:
    spaces = {name: runtime.daemon.machine.netns() for name in ("kept", "alive", "dead", "other")}
    for name in ("kept", "alive", "dead"):
        runtime.add(name, spaces[name])
    runtime.add("other", spaces["other"], network="two")
    for name in ("dead", "other"):
        runtime.daemon.machine.run("ip", "netns", "del", Path(spaces[name]).name)
    wait_until(lambda: len(runtime.veths()) == 2, "the end of two host ends")
    listed = [{"containerID": "kept", "ifname": "net0"}]
    answer = runtime.call("GC", **{"cni.dev/valid-attachments": listed})
    assert (answer.code, answer.stdout) == (0, ""), answer.stdout
    assert "net0 of alive is not listed but alive, kept" in answer.stderr
    assert {record["container"] for record in runtime.records()} == {"kept", "alive", "other"}
    assert len(runtime.holders()) == 3
    runtime.call("GC", network="two", **{"cni.dev/valid-attachments": None})
    assert {record["container"] for record in runtime.records()} == {"kept", "alive"}


def test_gc_without_a_list_judges_nothing(one: Runtime) -> None:
    netns = one.daemon.machine.netns()
    one.add("c1", netns)
    one.daemon.machine.run("ip", "netns", "del", Path(netns).name)
    assert one.call("GC").code == 0
    assert len(one.records()) == 1


def test_status(runtime: Runtime) -> None:
    assert runtime.call("STATUS").code == 0
    runtime.daemon.kill()
    answer = runtime.call("STATUS")
    assert (answer.error, answer.seconds < 2.0) == (50, True), answer
    assert runtime.daemon.socket in answer.json["msg"]


def test_status_of_a_mode_that_is_refused(one: Runtime) -> None:
    assert one.call("STATUS", mode="isolated").error == 50


# --- a daemon that hangs, dies, comes back ----------------------------------------------------------------------------


def test_a_hung_daemon(runtime: Runtime) -> None:
    """Every verb answers in its time, in words that help; DEL cleans up all the same."""
    netns = runtime.daemon.machine.netns()
    runtime.add("c1", netns)
    runtime.daemon.signal(signal.SIGSTOP)
    status = runtime.call("STATUS")
    assert (status.error, status.seconds < 2.0) == (50, True), status
    for word in (runtime.daemon.socket, "did not answer Status within 1."):
        assert word in status.json["msg"]
    assert "only SIGKILL ends it" in status.json["details"]
    assert runtime.call("CHECK", "c1", netns).code == 0
    gone = runtime.delete("c1", netns)
    assert gone.seconds < 8.0
    assert "told later" in gone.stderr
    assert (runtime.veths(), runtime.holders(), runtime.records()) == ([], [], [])
    assert len(runtime.owed()) == 1
    runtime.daemon.signal(signal.SIGCONT)
    runtime.add("c2", runtime.daemon.machine.netns())
    assert runtime.owed() == [], "the next call tells the daemon"


def test_a_daemon_that_hangs_in_the_attach(one: Runtime) -> None:
    """Code 11 in words that help, nothing stays, and what the daemon does too late comes to nothing."""
    netns = one.daemon.machine.netns()
    with at_the_gate(one, lambda: one.daemon.signal(signal.SIGSTOP)) as socket:
        answer = one.call("ADD", "c1", netns)
        assert (answer.error, 25 < answer.seconds < 38) == (11, True), answer
        assert f"the overlay daemon at {socket} did not answer AttachContainer within 29." in answer.json["msg"]
        assert "only SIGKILL ends it" in answer.json["details"]
        assert "told later" in answer.stderr
        assert (one.inside(netns), one.holders(), one.records()) == ({}, [], [])
        assert len(one.owed()) == 1
        one.daemon.signal(signal.SIGCONT)
        one.add("c1", netns)
        one.delete("c1", netns)
    one.nothing_left()


def test_a_dead_daemon(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    runtime.add("c1", netns)
    runtime.daemon.kill()
    answer = runtime.call("ADD", "c2", runtime.daemon.machine.netns())
    assert answer.error == 11
    assert f"the overlay daemon at {runtime.daemon.socket} cannot be reached" in answer.json["msg"]
    runtime.delete("c1", netns)
    assert (runtime.veths(), runtime.holders(), runtime.records()) == ([], [], [])
    assert runtime.call("GC", **{"cni.dev/valid-attachments": []}).code == 0
    assert len(runtime.owed()) == 1
    runtime.daemon.start()
    assert runtime.call("GC", **{"cni.dev/valid-attachments": []}).code == 0
    runtime.nothing_left()


def test_a_daemon_that_was_killed_and_came_back(runtime: Runtime) -> None:
    """It begins its addresses again (contract 6.14): a living container's is not given to another."""
    machine = runtime.daemon.machine
    spaces = [machine.netns() for _ in range(5)]
    living = [runtime.address(runtime.add(f"c{n}", spaces[n])) for n in range(3)]
    runtime.delete("c1", spaces[1])
    runtime.daemon.kill()
    runtime.daemon.start()
    runtime.daemon.manager().setup_global_overlay()
    assert runtime.call("CHECK", "c0", spaces[0]).code == 0
    again = runtime.address(runtime.add("c3", spaces[3]))
    assert again == living[1], "the lowest free one"
    assert runtime.pings(spaces[0], living[2])
    for number in (0, 2, 3):
        runtime.delete(f"c{number}", spaces[number])
    runtime.nothing_left()
    assert runtime.address(runtime.add("c4", spaces[4])) == living[0], "a lease taken again was not given back"


def test_a_daemon_that_was_told_to_end_and_came_back(one: Runtime) -> None:
    """It takes its bridges along (contract 6.14): CHECK says so, DEL and ADD go on."""
    netns = one.daemon.machine.netns()
    one.add("c1", netns)
    one.daemon.manager().shutdown()
    assert one.daemon.process is not None
    one.daemon.process.wait(timeout=10)
    answer = one.call("CHECK", "c1", netns)
    assert answer.error == 102
    assert "is missing" in answer.json["msg"] or "is on no bridge" in answer.json["msg"]
    one.daemon.start()
    one.daemon.manager().setup_global_overlay()
    one.delete("c1", netns)
    one.add("c1", netns)
    assert one.call("CHECK", "c1", netns).code == 0


def test_a_bridge_that_was_pruned(runtime: Runtime) -> None:
    netns = runtime.daemon.machine.netns()
    runtime.add("c1", netns)
    runtime.delete("c1", netns)
    assert len(runtime.daemon.manager().prune_orphan_bridges([])) == 1
    runtime.add("c1", netns)


def test_a_bridge_that_somebody_deleted(runtime: Runtime) -> None:
    """The daemon's map is stale then, and only a teardown mends it (contract 6.3, 7.1)."""
    netns = runtime.daemon.machine.netns()
    bridge = runtime.add("c1", netns)["interfaces"][0]["name"]
    runtime.delete("c1", netns)
    runtime.daemon.machine.run("ip", "link", "del", bridge)
    assert runtime.add("c1", netns)["interfaces"][0]["name"] == bridge
    assert runtime.call("CHECK", "c1", netns).code == 0


# --- holders ----------------------------------------------------------------------------------------------------------


def test_a_holder_costs_little_and_holds_nothing_of_the_runtimes(runtime: Runtime) -> None:
    runtime.add("c1", runtime.daemon.machine.netns())
    (holder,) = runtime.holders()
    proc = Path(f"/proc/{holder.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    assert int(status["VmRSS"].split()[0]) < 100, "kB"
    assert (status["CapEff"].strip(), status["NoNewPrivs"].strip()) == ("0" * 16, "1")
    assert {each.readlink() for each in (proc / "fd").iterdir()} == {Path("/dev/null")}
    assert int((proc / "stat").read_text().rpartition(")")[2].split()[3]) == holder.pid, "a session of its own"
    (record,) = runtime.records()
    assert (record["pid"], record["start_time"]) == (holder.pid, holder.start_time)
    assert {path.stat().st_mode & 0o777 for path in (runtime.run_dir / "foreign").glob("*.json")} == {0o600}


def test_a_number_that_became_another_process_is_not_touched(one: Runtime) -> None:
    """The holder died, its PID is another process's now: neither killed, nor detached under its name."""
    netns = one.daemon.machine.netns()
    one.add("c1", netns)
    (holder,) = one.holders()
    (path,) = (one.run_dir / "foreign").glob("*.json")
    stranger = one.daemon.machine.container()
    path.write_text(path.read_text().replace(f'"pid":{holder.pid}', f'"pid":{stranger}'))
    one.delete("c1", netns)
    assert Path(f"/proc/{stranger}").exists()
    assert is_alive(holder), "the record speaks of another process"


def test_a_plugin_that_is_killed_leaves_what_del_can_find(one: Runtime) -> None:
    """A runtime that gives up kills the plugin: the holder was written down before the daemon heard of it."""
    netns = one.daemon.machine.netns()
    calls: list[subprocess.Popen[str]] = []

    def kill() -> None:
        wait_until(lambda: calls, "the call")
        calls[0].kill()
        calls[0].wait()

    with at_the_gate(one, kill):
        calls.append(one.start("ADD", "c1", netns))
        wait_until(lambda: len(one.veths()) == 1, "the daemon's attach, whose answer no process receives")
        assert (len(one.holders()), [record["state"] for record in one.records()]) == (1, ["intent"])
        one.delete("c1", netns)
    one.nothing_left()


# --- the single file --------------------------------------------------------------------------------------------------


def test_the_single_file(upstream: Daemon) -> None:
    runtime = by("single", upstream)
    netns = upstream.machine.netns()
    assert runtime.call("STATUS").code == 0
    runtime.add("c1", netns, "eth7")
    assert set(runtime.inside(netns)) == {"eth7"}
    assert runtime.call("CHECK", "c1", netns, "eth7").code == 0
    assert runtime.call("ADD", "c1", netns, "eth7").error == 101
    assert runtime.call("GC", **{"cni.dev/valid-attachments": []}).code == 0
    runtime.delete("c1", netns, "eth7")
    runtime.nothing_left()


# --- many at once -----------------------------------------------------------------------------------------------------


def test_many_at_once(one: Runtime) -> None:
    """Twelve containers, every other one of them deleted again while the rest come."""
    spaces = {f"c{n}": one.daemon.machine.netns() for n in range(12)}
    calls = {name: one.start("ADD", name, netns) for name, netns in spaces.items()}
    results = {name: (call.communicate(timeout=60)[0], call.returncode) for name, call in calls.items()}
    assert {code for _, code in results.values()} == {0}, results
    addresses = {json.loads(out)["ips"][0]["address"] for out, _ in results.values()}
    assert len(addresses) == 12
    assert len(one.holders()) == len(one.veths()) == len(one.records()) == 12
    deletions = [one.start("DEL", name, netns) for name, netns in spaces.items()]
    assert {call.communicate(timeout=60)[0] + str(call.returncode) for call in deletions} == {"0"}
    one.nothing_left()


def test_an_add_and_a_del_of_one_container_take_turns(one: Runtime) -> None:
    netns = one.daemon.machine.netns()
    for _ in range(3):
        calls = [one.start(command, "c1", netns) for command in ("ADD", "DEL", "ADD", "DEL")]
        codes = [(call.communicate(timeout=60), call.returncode) for call in calls]
        assert codes[1][1] == codes[3][1] == 0, codes
        one.delete("c1", netns)
        one.nothing_left()


# --- in front of our own daemon, by the same way ----------------------------------------------------------------------


@pytest.mark.parametrize("conf", [{}, {"isolationNetwork": "red"}])
def test_our_daemon_by_its_socket(make_daemon: Callable[[type[Daemon]], Daemon], conf: dict[str, str]) -> None:
    """Ours says who it is, and its fences hold: an isolation network is no reason to refuse."""
    runtime = by("source", make_daemon(Ours))
    here, there = runtime.daemon.machine.netns(), runtime.daemon.machine.netns()
    runtime.add("c1", here, **conf)
    other = runtime.address(runtime.add("c2", there, **conf))
    assert runtime.pings(here, other)
    assert runtime.call("CHECK", "c1", here, **conf).code == 0
    for name, netns in (("c1", here), ("c2", there)):
        runtime.delete(name, netns, **conf)
    assert (runtime.holders(), runtime.records(), runtime.owed()) == ([], [], [])


def test_a_mac_of_ones_own_by_our_daemons_socket(make_daemon: Callable[[type[Daemon]], Daemon]) -> None:
    """Ours lets nothing leave a port under a MAC it did not give, and the protocol cannot tell it another."""
    runtime = by("source", make_daemon(Ours))
    answer = runtime.call("ADD", "c1", runtime.daemon.machine.netns(), runtimeConfig={"mac": "0a:00:00:00:00:07"})
    assert answer.error == 2
    assert (runtime.holders(), runtime.records()) == ([], [])
