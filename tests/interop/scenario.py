"""One scenario for both daemons: every operation that runs on Linux, through our `OverlayManager`.

Each step does one thing and returns what came of it as plain values, in which PIDs and keys have names: what is left
is what the two daemons should agree on. Steps build on each other and run in order. What they do not agree on is in
`differences.py`.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cni.overlay import wire
from cni.overlay.client import Deadline, Dialing, dial
from cni.overlay.errors import OverlaydError, Refused
from cni.overlay.manager import OverlayManager
from cni.overlay.peering import PeerInfo
from cni.overlay.state import Timeouts
from tests.interop.daemons import Daemon
from tests.interop.machine import wait_until

KEYS = {
    "alpha": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    "beta": "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=",
}
"""Public keys of peers that do not exist."""

SUBNETS = {
    r"10\.200\.78\.(19[4-9]|2\d\d)(?!\d)": "<web>",
    r"10\.200\.0\.(1[89]|2\d|30)(?!\d)": "<slice>",
}
"""Addresses that are handed out: which one of its subnet is the daemon's affair (contract 6.4)."""


@dataclass
class Stage:
    """Where the scenario plays."""

    daemon: Daemon
    manager: OverlayManager
    names: dict[str, str] = field(default_factory=dict)
    """What to call a value that differs from run to run."""
    pids: dict[str, int] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def container(self, name: str) -> int:
        """A container's process."""
        if name not in self.pids:
            self.pids[name] = self.daemon.machine.container()
            self.names[str(self.pids[name])] = f"<{name}>"
        return self.pids[name]

    def raw(self, request: Any, seconds: float = 5.0) -> Any:
        """One request that the manager would not send, on a connection of its own."""
        deadline = Deadline(seconds)
        client = dial(self.daemon.socket, deadline, Dialing(attempts=1))
        try:
            return client.round_trip(request, deadline)
        finally:
            client.close()

    def inside(self, name: str) -> dict[str, Any]:
        """What a container has: per interface its address and MTU, and its routes."""
        pid, found = self.pids[name], {}
        for link in self.daemon.machine.ip("-4", "address", pid=pid):
            if link["ifname"] != "lo":
                address = link["addr_info"][0] if link["addr_info"] else {}
                found[link["ifname"]] = [f"{address.get('local')}/{address.get('prefixlen')}", link["mtu"]]
        routes = [f"{r['dst']} via {r.get('gateway', 'link')}" for r in self.daemon.machine.ip("route", pid=pid)]
        return {"links": found, "routes": sorted(routes)}

    def bridges(self) -> list[str]:
        """The names of the overlay's bridges."""
        links = self.daemon.machine.links().values()
        return sorted(x["ifname"] for x in links if x.get("linkinfo", {}).get("info_kind") == "bridge")

    def plain(self, value: Any) -> Any:
        """`value` without what differs from run to run."""
        text = msgspec.json.encode(msgspec.to_builtins(value)).decode()
        for name, key in KEYS.items():
            text = text.replace(key, f"<{name}>").replace(base64.b64decode(key).hex(), f"<{name}>")
        for value_, name in self.names.items():
            text = re.sub(rf"(?<![0-9.]){re.escape(value_)}(?![0-9.])", name, text)
        for subnet, name in SUBNETS.items():
            text = re.sub(subnet, name, text)
        text = re.sub(r"setns_by_fd\(index=\d+", "setns_by_fd(index=N", text)
        text = re.sub(r"[A-Za-z0-9+/]{42}[A-Za-z0-9+/=]=", "<key>", text)
        return msgspec.json.decode(text)


Step = Callable[[Stage], Any]
STEPS: dict[str, Step] = {}


def step(do: Step) -> Step:
    """The next step; its name is the function's."""
    STEPS[do.__name__] = do
    return do


def play(stage: Stage) -> dict[str, Any]:
    """What came of each step: plain values, or {"refused": TEXT}."""
    outcomes = {}
    for name, do in STEPS.items():
        try:
            outcome = do(stage)
        except Refused as refusal:
            outcome = {"refused": refusal.message}
        except OverlaydError as error:
            outcome = {type(error).__name__: error.msg}
        outcomes[name] = stage.plain(outcome)
    return outcomes


# --- the node ---------------------------------------------------------------------------------------------------------


@step
def status_of_a_fresh_daemon(stage: Stage) -> Any:
    return msgspec.structs.replace(stage.manager.status(), server=None)


@step
def who_it_says_it_is(stage: Stage) -> Any:
    return (stage.manager.status().server or "").partition("/")[0]


@step
def set_local_wg_pubkey(stage: Stage) -> Any:
    return type(stage.raw(wire.SetLocalWgPubkey(KEYS["alpha"]))).__name__


@step
def attach_before_any_setup(stage: Stage) -> Any:
    return stage.manager.attach_container(stage.container("early"), "web")


@step
def guest_before_the_global_overlay(stage: Stage) -> Any:
    return stage.manager.attach_container_guest("vm-0", "web")


@step
def mint_before_the_global_overlay(stage: Stage) -> Any:
    return stage.manager.mint_edge_peer("early", 60, "192.0.2.1:51420")


@step
def setup_with_a_bad_cluster_cidr(stage: Stage) -> Any:
    request = wire.SetupGlobalOverlay(deployment="prod", instance_id="42", cluster_cidr="10.200.0.0/33", wg_port=51420)
    return stage.raw(request)


@step
def setup_global_overlay(stage: Stage) -> Any:
    stage.manager.setup_global_overlay()
    return stage.manager.global_interface()


@step
def status_after_setup(stage: Stage) -> Any:
    return msgspec.structs.replace(stage.manager.status(), server=None)


@step
def setup_global_overlay_again(stage: Stage) -> Any:
    before = stage.manager.status()
    stage.manager.setup_global_overlay()
    return {"interface": stage.manager.global_interface(), "same": stage.manager.status() == before}


@step
def the_global_device(stage: Stage) -> Any:
    link = stage.daemon.machine.links().get("zl-prod-42-g")
    return None if link is None else {"mtu": link["mtu"], "up": "UP" in link["flags"]}


# --- services ---------------------------------------------------------------------------------------------------------


@step
def setup_auto(stage: Stage) -> Any:
    return stage.manager.setup_service_overlay("web")


@step
def setup_auto_again(stage: Stage) -> Any:
    return stage.manager.setup_service_overlay("web")


@step
def setup_shared(stage: Stage) -> Any:
    return [stage.manager.setup_service_overlay(name, "shared") for name in ("mail", "news")]


@step
def setup_isolated(stage: Stage) -> Any:
    return stage.manager.setup_service_overlay("vault", "isolated")


@step
def setup_dedicated(stage: Stage) -> Any:
    return stage.manager.setup_service_overlay("db", "dedicated")


@step
def setup_dedicated_again(stage: Stage) -> Any:
    return stage.manager.setup_service_overlay("db", "dedicated")


@step
def status_with_services(stage: Stage) -> Any:
    status = stage.manager.status()
    return {"service_count": status.service_count, "dedicated": status.dedicated_services}


@step
def the_bridges(stage: Stage) -> Any:
    return stage.bridges()


@step
def the_devices(stage: Stage) -> Any:
    return sorted(name for name in stage.daemon.machine.links() if name.startswith("zl-") and name[-2:] in ("-g", "-d"))


@step
def gateways_of_the_bridges(stage: Stage) -> Any:
    found, bridges = {}, stage.bridges()
    for link in stage.daemon.machine.ip("-4", "address"):
        if link["ifname"] in bridges:
            found[link["ifname"]] = [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]]
    return found


# --- addresses --------------------------------------------------------------------------------------------------------


@step
def allocate_ip(stage: Stage) -> Any:
    held = [stage.manager.allocate_ip("web") for _ in range(3)]
    stage.notes["held"] = held
    return [*held, len(set(held))]


@step
def release_ip(stage: Stage) -> Any:
    for ip in stage.notes["held"] * 2:
        stage.manager.release_ip(ip)


@step
def a_released_address_is_the_next(stage: Stage) -> Any:
    ip = stage.manager.allocate_ip("web")
    stage.manager.release_ip(ip)
    return ip == stage.notes["held"][0]


@step
def allocate_ip_of_no_service(stage: Stage) -> Any:
    ip = stage.manager.allocate_ip("absent")
    stage.manager.release_ip(ip)
    return ip


@step
def release_an_address_that_was_never_leased(stage: Stage) -> Any:
    return stage.manager.release_ip("10.200.78.250")


# --- containers -------------------------------------------------------------------------------------------------------


@step
def attach(stage: Stage) -> Any:
    return stage.manager.attach_container(stage.container("c1"), "web")


@step
def inside_the_container(stage: Stage) -> Any:
    return stage.inside("c1")


@step
def the_host_end(stage: Stage) -> Any:
    links = stage.daemon.machine.links()
    return links[f"veth-{stage.pids['c1']}-s"].get("master")


@step
def attach_another(stage: Stage) -> Any:
    stage.notes["c2"] = stage.manager.attach_container(
        stage.container("c2"), "web", dns_domain_override="prod.local local"
    )
    return stage.notes["c2"]


@step
def attached_again_it_has_the_same_address(stage: Stage) -> Any:
    return stage.manager.attach_container(stage.container("c2"), "web") == stage.notes["c2"]


@step
def two_containers_reach_each_other(stage: Stage) -> Any:
    address = stage.inside("c2")["links"]["eth0"][0].partition("/")[0]
    ping = ["nsenter", "-t", str(stage.pids["c1"]), "-n", "ping", "-c1", "-W2", "-q", address]
    return stage.daemon.machine.run(*ping, check=False).returncode == 0


@step
def attach_to_a_shared_service(stage: Stage) -> Any:
    ip = stage.manager.attach_container(stage.container("c3"), "mail")
    return [ip, stage.daemon.machine.links()[f"veth-{stage.pids['c3']}-s"].get("master")]


@step
def attach_to_a_dedicated_service(stage: Stage) -> Any:
    ip = stage.manager.attach_container(stage.container("c4"), "db")
    return [ip, stage.daemon.machine.links()[f"veth-{stage.pids['c4']}-s"].get("master")]


@step
def attach_both_legs(stage: Stage) -> Any:
    ip = stage.manager.attach_container(stage.container("c5"), "web", join_global=True)
    return [ip, stage.inside("c5")]


@step
def attach_to_an_isolation_network(stage: Stage) -> Any:
    return stage.manager.attach_container(stage.container("c6"), "vault", isolation_network="vault")


@step
def attach_to_no_service(stage: Stage) -> Any:
    return stage.manager.attach_container(stage.container("c7"), "absent")


@step
def attach_a_dead_process(stage: Stage) -> Any:
    stage.names["4194300"] = "<dead>"
    return stage.manager.attach_container(4194300, "web")


@step
def attach_where_there_is_an_eth0(stage: Stage) -> Any:
    pid = str(stage.container("c8"))
    stage.daemon.machine.run("nsenter", "-t", pid, "-n", "ip", "link", "add", "eth0", "type", "bridge")
    return stage.manager.attach_container(stage.container("c8"), "web")


@step
def attach_the_host(stage: Stage) -> Any:
    pid = stage.daemon.machine.start("sleep", "infinity").pid
    time.sleep(0.2)
    stage.names[str(pid)] = "<host>"
    return stage.manager.attach_container(pid, "web")


@step
def the_ephemeral_service_goes_with_its_last_member(stage: Stage) -> Any:
    bridge = stage.manager.setup_service_overlay("job").name
    stage.manager.attach_container(stage.container("c9"), "job", ephemeral=True)
    there = bridge in stage.daemon.machine.links()
    stage.manager.detach_container(stage.pids["c9"])
    return [there, bridge in stage.daemon.machine.links()]


@step
def detach(stage: Stage) -> Any:
    stage.manager.detach_container(stage.pids["c1"])
    return [stage.inside("c1"), f"veth-{stage.pids['c1']}-s" in stage.daemon.machine.links()]


@step
def detach_again(stage: Stage) -> Any:
    return stage.manager.detach_container(stage.pids["c1"])


# --- other handles ----------------------------------------------------------------------------------------------------


@step
def guest(stage: Stage) -> Any:
    config = stage.manager.attach_container_guest("vm-1", "web")
    stage.notes["guest"] = config
    return config


@step
def a_guest_is_a_peer(stage: Stage) -> Any:
    status = stage.manager.status()
    return [status.peer_count, [peer.allowed_ips for peer in status.peers]]


@step
def guest_leaves(stage: Stage) -> Any:
    for _ in range(2):
        stage.manager.detach_container_guest("vm-1")
    return stage.manager.status().peer_count


@step
def host_shared(stage: Stage) -> Any:
    ip = stage.manager.attach_container_host_shared("web-0", "web")
    for _ in range(2):
        stage.manager.detach_container_host_shared("web-0")
    return ip


@step
def windows_container(stage: Stage) -> Any:
    return stage.manager.attach_container_hcn("ctr-abc", "web")


@step
def windows_container_leaves(stage: Stage) -> Any:
    return stage.manager.detach_container_hcn("0d1e")


# --- peers ------------------------------------------------------------------------------------------------------------


def peer(name: str, *cidrs: str, port: int = 51420) -> PeerInfo:
    """A peer for which there is no machine."""
    return PeerInfo(KEYS[name], f"203.0.113.7:{port}", ",".join(cidrs), 25)


def peers(stage: Stage) -> Any:
    """The peers that status tells of."""
    status = stage.manager.status()
    return [status.peer_count, [(each.public_key, each.endpoint, each.allowed_ips) for each in status.peers]]


@step
def add_peer(stage: Stage) -> Any:
    stage.manager.add_global_peer(peer("alpha", "10.200.0.32/28"))
    return peers(stage)


@step
def add_the_same_peer_with_another_endpoint(stage: Stage) -> Any:
    stage.manager.add_global_peer(peer("alpha", "10.200.0.32/28", port=51421))
    return peers(stage)


@step
def add_a_cidr_that_folds(stage: Stage) -> Any:
    stage.manager.add_allowed_ip(KEYS["alpha"], "10.200.0.48/28")
    return peers(stage)


@step
def add_a_cidr_that_does_not_fold(stage: Stage) -> Any:
    stage.manager.add_allowed_ip(KEYS["alpha"], "10.200.9.0/26")
    return peers(stage)


@step
def remove_a_cidr(stage: Stage) -> Any:
    stage.manager.remove_allowed_ip(KEYS["alpha"], "10.200.0.48/28")
    return peers(stage)


@step
def add_a_cidr_to_a_stranger(stage: Stage) -> Any:
    return stage.raw(wire.AddAllowedIp(KEYS["beta"], "10.200.9.0/26", wire.GlobalScope()))


@step
def remove_a_cidr_of_a_stranger(stage: Stage) -> Any:
    return type(stage.raw(wire.RemoveAllowedIp(KEYS["beta"], "10.200.9.0/26", wire.GlobalScope()))).__name__


@step
def add_a_peer_with_a_host_name(stage: Stage) -> Any:
    try:
        stage.manager.add_global_peer(PeerInfo(KEYS["beta"], "peer.example.net:51420", "10.200.0.64/28", 25))
    finally:
        stage.manager.remove_global_peer(KEYS["beta"])


@step
def remove_peer(stage: Stage) -> Any:
    for _ in range(2):
        stage.manager.remove_global_peer(KEYS["alpha"])
    return peers(stage)


@step
def add_service_peer(stage: Stage) -> Any:
    stage.manager.add_service_peer("db", peer("beta", "10.200.9.0/27"), "10.200.9.32/27")
    return [each.peer_count for each in stage.manager.status().dedicated_services]


@step
def add_service_peer_to_no_device(stage: Stage) -> Any:
    stage.manager.add_service_peer("web", peer("alpha", "10.200.9.0/27"), "10.200.9.32/27")


@step
def remove_service_peer(stage: Stage) -> Any:
    for _ in range(2):
        stage.manager.remove_service_peer("db", KEYS["beta"])
    return [each.peer_count for each in stage.manager.status().dedicated_services]


# --- edge peers, names, resolvers, NAT --------------------------------------------------------------------------------


@step
def mint_without_a_name(stage: Stage) -> Any:
    return stage.manager.mint_edge_peer(" ", 600, "192.0.2.1:51420")


@step
def mint_without_a_port(stage: Stage) -> Any:
    return stage.manager.mint_edge_peer("ci", 600, "192.0.2.1:0")


@step
def mint_for_an_unknown_target(stage: Stage) -> Any:
    return stage.manager.mint_edge_peer("ci", 600, "192.0.2.1:51420", ["absent"])


@step
def mint(stage: Stage) -> Any:
    config = stage.manager.mint_edge_peer("ci", 600, "192.0.2.1:51420", ["10.200.5.0/26", "web"])
    left = config.expires_at_unix - int(time.time())
    if config.dns_server:  # our node's own, named as soon as the server has bound: here a matter of time
        config = msgspec.structs.replace(config, dns_server=None, dns_domain=None)
    return [msgspec.structs.replace(config, expires_at_unix=0), 590 < left <= 600]


@step
def mint_the_same_name(stage: Stage) -> Any:
    return stage.manager.mint_edge_peer("ci", 600, "192.0.2.1:51420")


@step
def list_edge_peers(stage: Stage) -> Any:
    return [(each.name, each.overlay_ip, each.allowed) for each in stage.manager.list_edge_peers()]


@step
def revoke(stage: Stage) -> Any:
    for _ in range(2):
        stage.manager.revoke_edge_peer("ci")
    return stage.manager.list_edge_peers()


@step
def register_dns(stage: Stage) -> Any:
    stage.manager.register_dns("web", "10.200.78.194")
    for _ in range(2):
        stage.manager.unregister_dns("web")


@step
def write_scoped_resolver(stage: Stage) -> Any:
    return stage.manager.write_scoped_resolver("overlay.local", "10.200.0.17")


@step
def remove_scoped_resolver(stage: Stage) -> Any:
    return stage.manager.remove_scoped_resolver("overlay.local")


@step
def nat_tick_with_nat_off(stage: Stage) -> Any:
    return type(stage.raw(wire.NatTick())).__name__


@step
def nat_status(stage: Stage) -> Any:
    return stage.raw(wire.NatStatusRequest())


# --- the end ----------------------------------------------------------------------------------------------------------


@step
def prune(stage: Stage) -> Any:
    keep = stage.manager.setup_service_overlay("kept").name
    stage.manager.setup_service_overlay("idle")
    return sorted(stage.manager.prune_orphan_bridges([keep]))


@step
def bridges_after_the_prune(stage: Stage) -> Any:
    return stage.bridges()


@step
def teardown_service(stage: Stage) -> Any:
    for name in ("kept", "absent"):
        stage.manager.teardown_service_overlay(name)
    return stage.bridges()


@step
def teardown_dedicated(stage: Stage) -> Any:
    stage.manager.detach_container(stage.pids["c4"])
    stage.manager.teardown_service_overlay("db")
    return [len(stage.manager.status().dedicated_services), stage.bridges()]


@step
def teardown_global_overlay(stage: Stage) -> Any:
    stage.manager.cleanup()
    return stage.bridges()


@step
def containers_after_the_teardown(stage: Stage) -> Any:
    return sorted(name for name, pid in stage.pids.items() if f"veth-{pid}-s" in stage.daemon.machine.links())


@step
def setup_after_the_teardown(stage: Stage) -> Any:
    stage.manager.setup_global_overlay()
    stage.manager.setup_service_overlay("web")
    return stage.manager.attach_container(stage.container("late"), "web")


@step
def shutdown(stage: Stage) -> Any:
    stage.manager.with_timeouts(Timeouts(call=5.0)).shutdown()
    process = stage.daemon.process
    assert process is not None
    wait_until(lambda: process.poll() is not None, "the end of the daemon")
    return [process.returncode, Path(stage.daemon.socket).exists()]
