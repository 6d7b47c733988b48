"""Who reaches whom, before, during and after changes, beside firewall rules of other programs."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.compare import compare
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.explain.endpoints import FenceView, GuestEndpoint
from cni.daemon.fence.explain.why import decide
from cni.daemon.fence.model import TABLE, FencePort, RemoteMember
from cni.daemon.fence.replacement import whole
from cni.host import iptables
from cni.host.conntrack import Conntrack
from cni.host.nft_elements import Change
from cni.host.nft_forward import Obstacle, firewall_obstacles
from tests.kernel.fence import remotes

from . import attacks, matrix
from .attacks import datagram, eth, gateway, send
from .lab import CLUSTER4, CLUSTER6, OUTSIDE4, REMOTE, ROUTED, Lab, Place
from .probes import Ears

FOREIGN = Path(__file__).parent / "foreign"
CLUSTERS = (CLUSTER4, CLUSTER6)


def check(lab: Lab, ears: Ears, **how: object) -> None:
    """The expected table, and what was seen beside it."""
    wrong = matrix.differences(lab, ears, **how)  # type: ignore[arg-type]
    assert not wrong, matrix.side_by_side(lab, wrong)


def test_everybody(lab: Lab, ears: Ears) -> None:
    check(lab, ears)


def test_the_matrix_can_fail(lab: Lab, ears: Ears) -> None:
    """Without the fence a good part of it is otherwise."""
    lab.run(fence.uninstall())
    lab.run(fence.uninstall())
    assert len(matrix.differences(lab, ears)) > 150


def test_membership_changes(lab: Lab, ears: Ears) -> None:
    lab.remove_port("red-web")
    lab.remove_port("red-web")
    check(lab, ears)
    lab.add_port("red-web", "blue")
    lab.add_port("red-web", "blue")
    check(lab, ears, only="red-web")
    lab.run(remotes.remove_remote("red", (lab.places["remote-red"].four, lab.places["remote-red"].six)))
    lab.places["remote-red"].kind = "remote-unknown"
    for name in ("green-sh", "flat-db"):
        lab.remove_port(name)
    check(lab, ears)


def test_a_lost_departure_is_mended(lab: Lab, ears: Ears) -> None:
    """A new owner was admitted where the last one was never expelled, as after a crash: the resync finds it."""
    lab.add_port("flat-sh", "green")
    parts = compare(listing(lab), wanted(lab))
    assert parts
    lab.nft.run(*parts)
    check(lab, ears)


def test_why_says_what_packets_do(lab: Lab, ears: Ears) -> None:
    """`why` and the matrix agree on every pair, and the rule it names exists."""
    check(lab, ears)
    fine = wanted(lab)
    rules = {f"{c.family} {c.name}: {name}" for c in fine.chains() for name in c.rule_names()}
    view = view_of(lab, fine)
    for (src, dst), may in matrix.expected(lab.places).items():
        if src == "node" and lab.places[dst].kind == "unknown":
            continue  # closed because the port was not admitted, which an address does not tell
        for one, other in ((lab.places[src].four, lab.places[dst].four), (lab.places[src].six, lab.places[dst].six)):
            said = decide(view, view.place_of(one), view.place_of(other))
            if (matrix.row_of(lab.places[src]), dst) == ("remote-member", "node"):
                assert "its own node refuses" in said.reason, said  # which the far end of this lab, no node, does not
                continue
            assert said.allowed is may, (src, dst, said)
            named = said.spot and f"{said.spot.family} {said.spot.chain}: {said.spot.name}"
            assert named in rules or (said.spot is None and may), said


def view_of(lab: Lab, fine: DesiredState) -> FenceView:
    """What the daemon would know of this lab."""
    guests = [
        GuestEndpoint(name, "", p.port, (f"{p.four}/26", f"{p.six}/120"))
        for name, p in lab.places.items()
        if p.port and p.kind == "container"
    ]
    links = json.loads(lab.host.run("ip", "-j", "addr"))
    host = [(x["ifname"], f"{a['local']}/{a['prefixlen']}") for x in links for a in x["addr_info"]]
    return FenceView(fine, tuple(guests), tuple(host))


def listing(lab: Lab) -> dict[str, object]:
    return {family: lab.nft.list_table(family, "zlayer_cni") for family in fence.FAMILIES}


def wanted(lab: Lab) -> DesiredState:
    ports = [p.port for p in lab.places.values() if p.port and p.kind == "container"]
    assert lab.leg.port is not None
    remotes = [RemoteMember(n, frozenset((lab.places[k].four, lab.places[k].six))) for k, n in REMOTE.items()]
    return DesiredState(lab.node, lab.opened, (*ports, lab.leg.port), tuple(remotes))  # type: ignore[arg-type]


DAMAGE: dict[str, str | Change] = {
    "an element lost": "delete element inet zlayer_cni net4 { 10.200.5.2 }"
    if ROUTED
    else 'delete element bridge zlayer_cni net { "zl-0000000002-v" }',
    "a member too many": "add element inet zlayer_cni net_flat_m4 { 10.200.5.2 }",
    "a port without an attachment": fence.add_port(
        FencePort("zl-00000000ff-v", "zl-t-1-web-b", "00:00:00:00:01:0a", ("10.200.5.50", "::a:b"), None)
    ),
    "a map that leads elsewhere": "delete element inet zlayer_cni net4 { 10.200.5.2 }\n"
    "add element inet zlayer_cni net4 { 10.200.5.2 : goto net_flat }",
    "a chain emptied": "flush chain inet zlayer_cni to_host",
    "a rule slipped in": "insert rule bridge zlayer_cni between accept",
    "a table deleted": "delete table bridge zlayer_cni",
    "both deleted": "delete table bridge zlayer_cni\ndelete table inet zlayer_cni",
    "a set of another shape": "delete table inet zlayer_cni\nadd table inet zlayer_cni\n"
    "add set inet zlayer_cni home4 { type ipv4_addr; }",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_mended(lab: Lab, ears: Ears, damage: str) -> None:
    assert compare(listing(lab), wanted(lab)) == []
    lab.nft.run(DAMAGE[damage])
    parts = compare(listing(lab), wanted(lab))
    assert parts
    lab.nft.run(*parts)
    assert compare(listing(lab), wanted(lab)) == []
    check(lab, ears)


def _base_again(lab: Lab) -> None:
    """The rules anew, and a bystander's going and coming."""
    lab.nft.run(fence.base(lab.node))
    lab.remove_port("green-sh")
    lab.add_port("green-sh", "green")


def _all_anew(lab: Lab) -> None:
    """Tables, sets and members anew: a packet that looks into a set at the very moment may be lost, never let in."""
    lab.nft.run(whole(wanted(lab)))


@pytest.mark.parametrize(("change", "may_lose"), [(_base_again, 0.0), (_all_anew, 0.1)], ids=["base", "whole"])
def test_nothing_is_open_while_it_is_loaded_again(lab: Lab, change: Callable[[Lab], None], may_lose: float) -> None:
    """Under fire from a member: what is closed stays so, and honest traffic goes on."""
    me, fellow, other = (lab.places[n] for n in ("red-web", "red-web2", "blue-web"))
    far, flat = lab.places["red-db"], lab.places["flat-db"]
    count, stop = 0, threading.Event()

    def fire() -> None:
        nonlocal count
        frames = [datagram(me, fellow, attacks.HONEST), datagram(me, gateway(far.four), attacks.HONEST)]
        frames += [datagram(me, d, attacks.EVIL) for d in (other, gateway(flat.four), gateway(other.four))]
        with me.space.socket(socket.AF_PACKET, socket.SOCK_RAW) as mouth:
            mouth.bind(("eth0", 0))
            while not stop.is_set():
                for frame in frames:
                    mouth.send(attacks.by_the_host(me.space, frame))
                count += 1
                time.sleep(0.001)

    far.space.run("ping", "-c1", "-W2", me.four)  # neighbours know each other before it begins
    places = (fellow, other, far, flat)
    with attacks.listening([eth(place) for place in places]) as hear:
        thread = threading.Thread(target=fire)
        thread.start()
        rounds = 0
        while rounds < 5 or count < 100:
            change(lab)
            rounds += 1
        stop.set()
        thread.join()
        honest, before = [0, 0], [-1, -1]
        while min(honest) < count and honest != before:  # what is under way arrives
            time.sleep(0.3)
            heard = {place.name: hear(eth(place)) for place in places}
            before = honest
            honest = [sum(attacks.HONEST in data for data in heard[name]) for name in ("red-web2", "red-db")]
    for name in ("blue-web", "flat-db"):
        assert not any(attacks.EVIL in data for data in heard[name])
    assert min(honest) >= count * (1 - may_lose), (honest, count)


def _flow(src: Place, dst: Place) -> tuple[socket.socket, socket.socket]:
    """An established TCP connection."""
    listener = dst.space.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(True)
    listener.settimeout(20)
    listener.bind((dst.four, 9090))
    listener.listen()
    near = src.space.socket(socket.AF_INET, socket.SOCK_STREAM)
    near.setblocking(True)
    near.settimeout(20)
    near.bind((src.four, 0))
    near.connect((dst.four, 9090))
    far, _ = listener.accept()
    far.settimeout(20)
    listener.close()
    near.sendall(b"hello")
    assert far.recv(100) == b"hello"
    return near, far


@pytest.mark.parametrize("partner", ["red-web2", "red-db", "remote-red", "outside", "node"])
@pytest.mark.parametrize("opened_by_the_leaver", [True, False])
def test_a_leaving_members_flows_end_at_once(lab: Lab, partner: str, opened_by_the_leaver: bool) -> None:
    me, other = lab.places["red-web"], lab.places[partner]
    if partner == "outside" and not opened_by_the_leaver:
        return  # no machine outside opens one
    near, far = _flow(me, other) if opened_by_the_leaver else _flow(other, me)
    lab.remove_port("red-web")
    for speaker, hearer in ((near, far), (far, near)):
        speaker.sendall(b"still there?")
        hearer.settimeout(0.3)
        with pytest.raises(TimeoutError):
            hearer.recv(100)
    for end in (near, far):
        end.close()


def test_the_next_owner_of_an_address_inherits_no_flow(lab: Lab) -> None:
    """An outside host that had a flow with the last owner does not have it with the next."""
    me, out = lab.places["flat-web"], lab.places["outside"]
    near, far = _flow(out, me)
    far_port = far.getpeername()[1]  # not after the close: a reset ends the connection, and with it the peer's name
    near.close()
    tracker = lab.host.inside(Conntrack)
    assert me.port is not None
    lab.remove_port("flat-web")
    assert tracker.forget(me.port.addresses) >= 1
    assert tracker.forget(me.port.addresses) == 0
    tracker.close()
    lab.add_port("flat-web", "green")
    with attacks.listening([eth(me)]) as hear:
        its = out.space.run("ip", "-br", "link", "show", "eth0").split()[2]
        mac = lab.host.run("ip", "-br", "link", "show", "up0").split()[2]
        p = attacks.p
        segment = p.tcp(OUTSIDE4, me.four, far_port, 9090, 24) + attacks.EVIL
        send(out.space, "eth0", [p.frame(mac, its, p.IPV4, p.ip4(OUTSIDE4, me.four, p.TCP, segment))])
        time.sleep(0.2)
        assert not any(attacks.EVIL in data for data in hear(eth(me)))
    far.close()


@pytest.mark.parametrize("others", [0, 5])
def test_forgetting_flows_spares_others(lab: Lab, others: int) -> None:
    """One by one, and many at once."""
    me, other, out = (lab.places[n] for n in ("red-web", "red-web2", "outside"))
    mine, his = _flow(me, out), _flow(other, lab.places["red-db"])
    tracker = lab.host.inside(Conntrack)
    more = [f"10.200.9.{i}" for i in range(others)]
    assert tracker.forget([me.four, me.six, *more]) >= 1
    assert tracker.forget([me.four, me.six, *more]) == 0
    tracker.close()
    shown = lab.host.run("conntrack", "-L", check=False)
    assert f"src={me.four} " not in shown
    assert f"src={other.four} " in shown
    for end in (*mine, *his):
        end.close()


# --- other people's firewalls ---------------------------------------------------------------------------------------


def load_foreign(lab: Lab, name: str) -> None:
    text = (FOREIGN / name).read_text()
    if name.endswith(".nft"):
        lab.host.run("nft", "-f", "-", stdin=text)
    else:
        ping = text.replace("-p icmp -m icmp --icmp-type 8", "-p ipv6-icmp")
        six = "\n".join(line for line in ping.splitlines() if not _only_ipv4(line))
        lab.host.run("iptables-restore", stdin=text)
        lab.host.run("ip6tables-restore", stdin=six + "\n")


def _only_ipv4(line: str) -> bool:
    words = line.split()
    return any("." in w and w[0].isdigit() for w in words)


def flush_foreign(lab: Lab, name: str) -> None:
    if name.endswith(".nft"):
        for line in (FOREIGN / name).read_text().splitlines():
            if line.startswith("table "):
                lab.host.run("nft", "delete", *line.split()[:3])
    else:
        for tool in ("iptables", "ip6tables"):
            for table in ("filter", "nat"):
                lab.host.run(tool, "-t", table, "-F")
                lab.host.run(tool, "-t", table, "-X")


def to_the_host(_src: Place, dst: Place) -> bool:
    return dst.kind in ("node", "host", "gateway")


def routed(src: Place, dst: Place) -> bool:
    """Pairs whose packets pass FORWARD: if a chain of another program denies there, no table can overrule it."""
    return src.kind != "node" and not to_the_host(src, dst)


UNSURE: dict[str, Callable[[Place, Place], bool]] = {
    "ufw.iptables": to_the_host,
    "firewalld.nft": routed,
    "policy-drop.nft": routed,
}
RULESETS = sorted(path.name for path in FOREIGN.iterdir())


def open_forward(lab: Lab) -> bool:
    return lab.host.inside(lambda: iptables.ensure_forward_accept(CLUSTERS).wrote)


@pytest.mark.parametrize("name", RULESETS)
def test_among_others(lab: Lab, ears: Ears, name: str) -> None:
    """Loaded after us, then flushed and loaded again while we run, then we are loaded after them."""
    unsure = UNSURE.get(name, lambda _src, _dst: False)
    load_foreign(lab, name)
    open_forward(lab)
    assert open_forward(lab) is False
    check(lab, ears, host_decides=unsure)
    flush_foreign(lab, name)
    load_foreign(lab, name)
    open_forward(lab)
    check(lab, ears, host_decides=unsure)
    lab.nft.run(whole(wanted(lab)))
    check(lab, ears, host_decides=unsure)


@pytest.mark.long
@pytest.mark.parametrize("name", ["docker.iptables", "ufw.iptables"])
def test_a_denying_forward_policy_needs_our_chain(lab: Lab, ears: Ears, name: str) -> None:
    load_foreign(lab, name)
    assert any("may, but lost" in line for line in matrix.differences(lab, ears, only="outside"))
    assert open_forward(lab) is True
    check(lab, ears, only="outside", host_decides=to_the_host)


def test_our_forward_chain_comes_and_goes(lab: Lab) -> None:
    def state() -> str:
        return lab.host.run("iptables", "-S") + lab.host.run("ip6tables", "-S")

    load_foreign(lab, "docker.iptables")
    before = state()
    assert open_forward(lab) is True
    assert open_forward(lab) is False
    assert lab.host.inside(lambda: iptables.forward_in_place(CLUSTERS)) is True
    assert state().count("-j ZLAYER-CNI") == 2
    lab.host.run("iptables", "-F", "ZLAYER-CNI")
    assert lab.host.inside(lambda: iptables.forward_in_place(CLUSTERS)) is False
    assert open_forward(lab) is True
    for _ in range(2):
        lab.host.inside(iptables.remove_forward_accept)
    assert state() == before


def test_a_native_chain_that_denies_is_named(lab: Lab) -> None:
    assert firewall_obstacles(lab.nft, CLUSTERS, TABLE) == []
    load_foreign(lab, "ufw.iptables")
    assert firewall_obstacles(lab.nft, CLUSTERS, TABLE) == []
    load_foreign(lab, "policy-drop.nft")
    assert firewall_obstacles(lab.nft, CLUSTERS, TABLE) == [Obstacle("inet strict forward", "")]


def test_addresses_of_the_lab_are_what_the_matrix_means(lab: Lab) -> None:
    """A place outside its cluster would be asked the wrong question."""
    for place in lab.places.values():
        inside = place.kind in ("container", "unknown", "remote", "remote-unknown", "gateway", "node")
        assert (ip_address(place.four).packed[:2] == bytes([10, 200])) is inside
