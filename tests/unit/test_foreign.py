"""In front of a foreign overlayd: decisions, records, words. What becomes of them in a kernel is in tests/interop."""

import ipaddress
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from cni import attach_rules
from cni.errors import InputOutput, TryAgainLater
from cni.host.links import Link, Route
from cni.host.ports import ContainerView
from cni.netconf.intent import Intent
from cni.netconf.types import IP, Interface, Result
from cni.netconf.types import Route as Asked
from cni.overlay import wire
from cni.overlay.client import Deadline
from cni.overlay.errors import Refused
from cni.proc import alive_since as start_time
from cni.upstream import attach, check, host_end
from cni.upstream.daemon import Daemon, Hung, is_stale, lacks_bridge
from cni.upstream.records import Record, Records
from cni.upstream.service import refused
from tests.unit.fake_overlayd import FakeOverlayd, reply, silence

ROOT = Path(__file__).parents[2]


def record(**more) -> Record:
    base = {
        "network": "net",
        "container": "c1",
        "ifname": "eth0",
        "state": "live",
        "boot": Records("/nowhere").boot,
        "socket": "/run/x.sock",
        "service": "web",
        "mode": "auto",
        "pid": 4242,
        "start_time": 7,
        "host_veth": "veth-4242-s",
        "host_index": 9,
        "bridge": "zl-a-b-web-b",
        "mac": "0a:00:00:00:00:01",
        "addresses": (("10.200.1.2/26", "10.200.1.1"),),
        "routes": (("0.0.0.0/0", "10.200.1.1"), ("10.96.0.0/12", "10.200.1.1")),
        "netns": (4, 77),
        "sandbox": "/run/netns/a",
    }
    return Record(**base | more)


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_comes_back_as_it_was(tmp_path):
    records = Records(str(tmp_path))
    assert records.load(("net", "c1", "eth0")) is None
    for _ in range(2):
        records.save(record())
    assert records.load(("net", "c1", "eth0")) == record()
    assert records.load(("net", "c1", "eth1")) is None
    assert records.every() == [record()]
    for _ in range(2):
        records.drop(("net", "c1", "eth0"))
    assert records.every() == []


def test_records_are_roots_alone(tmp_path):
    Records(str(tmp_path)).save(record())
    home = tmp_path / "foreign"
    assert home.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in home.glob("*.json")] == [0o600]
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == [], "a half-written file stays"


def test_a_record_of_another_boot_is_void(tmp_path):
    records = Records(str(tmp_path))
    records.save(record(boot="another"))
    assert records.load(("net", "c1", "eth0")) is None
    assert list((tmp_path / "foreign").glob("*.json")) == []


def test_a_broken_record_is_none(tmp_path, caplog):
    records = Records(str(tmp_path))
    records.save(record())
    (path,) = (tmp_path / "foreign").glob("*.json")
    path.write_text("{")
    assert records.load(("net", "c1", "eth0")) is None
    assert str(path) in caplog.text


def test_a_record_of_a_later_version_is_read(tmp_path):
    records = Records(str(tmp_path))
    records.save(record())
    (path,) = (tmp_path / "foreign").glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unheard": 1}))
    assert records.load(("net", "c1", "eth0")) == record()


def test_a_debt(tmp_path):
    records = Records(str(tmp_path))
    records.save(record())
    for _ in range(2):
        records.add_owed(record())
    assert records.every() == []
    assert records.owed() == [record(state="owed")]
    records.add_owed(record(pid=5000))
    assert len(records.owed()) == 2, "another attempt for the same container has a debt of its own"
    for _ in range(2):
        records.drop_owed(record())
    assert [each.pid for each in records.owed()] == [5000]


def test_what_cannot_be_written_is_code_5(tmp_path):
    (tmp_path / "foreign").write_text("in the way")
    with pytest.raises(InputOutput, match="foreign"):
        Records(str(tmp_path)).save(record())


def test_the_life_of_a_daemon(tmp_path):
    records = Records(str(tmp_path))
    assert records.life("/run/x.sock", "zl-b") == ""
    records.set_life("/run/x.sock", "zl-b", "12:34")
    assert Records(str(tmp_path)).life("/run/x.sock", "zl-b") == "12:34"
    assert records.life("/run/y.sock", "zl-b") == ""


HOLD = """
import sys
from cni.upstream.records import Records
from cni.overlay.client import Deadline
from cni.overlay.errors import Refused
with Records(sys.argv[1]).locked(("a",), Deadline(1)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_plugins_take_turns(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    records = Records(str(tmp_path))
    try:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(TryAgainLater, match="another call for a"), records.locked(("a",), Deadline(0.1)):
            pass
        with records.locked(("b",), Deadline(0.1)):
            pass
    finally:
        other.kill()
        other.communicate()
    with records.locked(("a",), Deadline(5)), records.locked(("b",), Deadline(0.1)):
        pass


def test_an_inner_lock_does_not_give_the_outer_back(tmp_path):
    records = Records(str(tmp_path))
    ask = "import sys; from cni.upstream.records import Records; from cni.overlay.client import Deadline\n"
    ask += "with Records(sys.argv[1]).locked(('a',), Deadline(0.1)): pass"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with records.locked(("a",), Deadline(1)):
        with records.locked(("b",), Deadline(1)):
            pass
        done = subprocess.run([sys.executable, "-c", ask, str(tmp_path)], capture_output=True, env=env, check=False)
    assert b"another call for a" in done.stderr


# --- decisions --------------------------------------------------------------------------------------------------------


def interface(text):
    return ipaddress.ip_interface(text)


def route(dst, gateway, oif=3):
    return Route(ipaddress.ip_network(dst), ipaddress.ip_address(gateway) if gateway else None, oif)


def test_the_gateway_is_the_default_routes():
    routes = (route("10.200.1.0/26", None), route("0.0.0.0/0", "10.200.1.7"), route("::/0", "fd00::9"))
    assert attach.gateway_of(interface("10.200.1.2/26"), routes) == "10.200.1.7"
    assert attach.gateway_of(interface("fd00::2/120"), routes) == "fd00::9"


def test_without_a_default_route_it_is_the_first_of_the_subnet():
    assert attach.gateway_of(interface("10.200.1.66/26"), (route("0.0.0.0/0", None),)) == "10.200.1.65"


def test_routes_are_planned():
    addresses = (("10.200.1.2/26", "10.200.1.1"), ("fd00::2/120", "fd00::1"))
    asked = (Asked("10.96.0.0/12"), Asked("10.97.0.0/16", "10.200.1.9"), Asked("fd01::/64"), Asked("0.0.0.0/0"))
    assert attach_rules.planned_routes(addresses, [(each.dst, each.gw) for each in asked]) == [
        ("0.0.0.0/0", "10.200.1.1"),
        ("::/0", "fd00::1"),
        ("10.96.0.0/12", "10.200.1.1"),
        ("10.97.0.0/16", "10.200.1.9"),
        ("fd01::/64", "fd00::1"),
    ]


def test_a_route_of_a_family_without_an_address_is_left_out():
    assert attach_rules.planned_routes((("10.200.1.2/26", "10.200.1.1"),), (("fd01::/64", ""),)) == [
        ("0.0.0.0/0", "10.200.1.1")
    ]


def test_whose_pid_it_is():
    me = os.getpid()
    assert not host_end.is_anothers(record(pid=me, start_time=start_time(me), host_veth="lo")), "the holder itself"
    assert not host_end.is_anothers(record(pid=4194300, host_veth="lo")), "no process has the number"
    assert not host_end.is_anothers(record(pid=me, start_time=1, host_veth="zlt-no-such")), "without such a link"
    assert host_end.is_anothers(record(pid=me, start_time=1, host_veth="lo", host_index=999))
    assert host_end.is_free(4194300)
    assert not host_end.is_free(me)


def test_a_full_service():
    full = Refused("overlay engine error: service bridge zl-b subnet 10.200.1.0/26 exhausted")
    error = refused("/run/x.sock", "web", full)
    assert (error.code, error.msg) == (104, "no IP addresses available for service web")


def test_a_refusal_is_passed_on():
    error = refused("/run/x.sock", "web", Refused("overlay engine error: create veth pair: no"))
    assert error.code == 100
    assert error.msg == "the overlay daemon at /run/x.sock does not attach it: create veth pair: no"


# --- CHECK ------------------------------------------------------------------------------------------------------------

HOST = Link(index=9, name="veth-4242-s", up=True, mtu=1420, mac="02:00:00:00:00:09", kind="veth", master=5)
BRIDGE = Link(index=5, name="zl-a-b-web-b", up=True, mtu=1420, mac="02:00:00:00:00:05", kind="bridge")
LINK = Link(index=3, name="eth0", up=True, mtu=1420, mac="0a:00:00:00:00:01", kind="veth", peer=9)
ROUTES = (route("0.0.0.0/0", "10.200.1.1"), route("10.96.0.0/12", "10.200.1.1"), route("10.200.1.0/26", None))
ADDRESSES = (interface("10.200.1.2/26"),)
GATEWAYS = frozenset({(ADDRESSES[0].ip, ipaddress.ip_address("10.200.1.1"))})
GOOD = check.Facts(
    (4, 77), True, HOST, BRIDGE, frozenset({"10.200.1.1"}), ContainerView(LINK, ADDRESSES, ROUTES, gateways=GATEWAYS)
)
MISSING = "the host interface veth-4242-s is missing: did the overlay daemon end, or sweep it?"
SWEPT = "the holder process 4242 is gone: the daemon will remove the interface at its next attach"
RESULT = Result((Interface("eth0", LINK.mac, "/run/netns/a"),), (IP("10.200.1.2/26", "10.200.1.1", 0),))


def inside(link, addresses, routes):
    """A view of a container that reaches its gateway."""
    return ContainerView(link, addresses, routes, gateways=GATEWAYS)


def but(facts=GOOD, **changes):
    return check.Facts(**{name: getattr(facts, name) for name in facts.__dataclass_fields__} | changes)


def link(like, **changes):
    return Link(**{name: getattr(like, name) for name in like.__dataclass_fields__} | changes)


def test_a_good_attachment():
    assert check.faults(record(), RESULT, "/run/netns/a", GOOD) == []


def test_more_than_we_made_is_good():
    more = ContainerView(
        link(LINK, mtu=1300, mac="0a:00:00:00:00:99"),
        (*ADDRESSES, interface("192.0.2.1/24")),
        (*ROUTES, route("192.0.2.0/24", None)),
        gateways=GATEWAYS,
    )
    result = Result((Interface("eth0", "0a:00:00:00:00:99", "/run/netns/a"),), RESULT.ips)
    assert check.faults(record(), result, "/run/netns/a", but(inside=more)) == []


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        (but(netns=(4, 78)), "/run/netns/a is not the network namespace that was attached"),
        (but(host=None), MISSING),
        (but(host=link(HOST, index=10)), MISSING),
        (but(holder_alive=False), SWEPT),
        (but(host=link(HOST, up=False)), "the host interface veth-4242-s is down"),
        (but(bridge=None), "the host interface veth-4242-s is on no bridge"),
        (but(bridge=link(BRIDGE, name="br0")), "the host interface veth-4242-s is on br0, not on zl-a-b-web-b"),
        (but(bridge=link(BRIDGE, up=False)), "the bridge zl-a-b-web-b is down"),
        (but(gateways=frozenset()), "the bridge zl-a-b-web-b lacks the gateway address 10.200.1.1"),
        (but(inside=ContainerView(None)), "the interface eth0 is missing"),
        (but(inside=inside(link(LINK, up=False), ADDRESSES, ROUTES)), "the interface eth0 is down"),
        (but(inside=inside(link(LINK, peer=8), ADDRESSES, ROUTES)),
         "the interface eth0 is not the peer of veth-4242-s"),
        (but(inside=inside(link(LINK, mac="0a:00:00:00:00:02"), ADDRESSES, ROUTES)),
         "the interface eth0 has MAC 0a:00:00:00:00:02, not 0a:00:00:00:00:01"),
        (but(inside=inside(LINK, (), ROUTES)), "the address 10.200.1.2/26 is missing"),
        (but(inside=inside(LINK, ADDRESSES, (ROUTES[0], ROUTES[2]))),
         "the route to 10.96.0.0/12 by 10.200.1.1 is missing"),
        (but(inside=ContainerView(LINK, ADDRESSES, ROUTES)),
         "the interface eth0 has no route to its gateway 10.200.1.1"),
    ],
)  # fmt: skip
def test_one_thing_wrong(facts, fault):
    assert check.faults(record(), RESULT, "/run/netns/a", facts) == [fault]


@pytest.mark.parametrize(
    ("result", "fault"),
    [
        (Result((Interface("eth1", "", "/run/netns/a"),)), "prevResult has no interface eth0 in /run/netns/a"),
        (Result((Interface("eth0", "", "/run/netns/b"),)), "prevResult has no interface eth0 in /run/netns/a"),
        (Result(RESULT.interfaces), "prevResult lacks the address 10.200.1.2/26"),
        (Result(RESULT.interfaces, (*RESULT.ips, IP("10.200.1.9/26", "", 0))), "the address 10.200.1.9/26 is missing"),
        (Result(RESULT.interfaces, RESULT.ips, (Asked("192.0.2.0/24", "10.200.1.1"),)),
         "prevResult has the route 192.0.2.0/24 via 10.200.1.1, which the container lacks"),
        (Result((*RESULT.interfaces, Interface(HOST.name, "02:00:00:00:00:10")), RESULT.ips),
         "prevResult has the MAC 02:00:00:00:00:10 for veth-4242-s, which has 02:00:00:00:00:09"),
        (Result(RESULT.interfaces, (IP("10.200.1.2/26", "10.200.1.9", 0),)),
         "prevResult has the gateway 10.200.1.9 for 10.200.1.2/26, not 10.200.1.1"),
        (Result((Interface("eth0", "0A:00:00:00:00:99", "/run/netns/a"),), RESULT.ips),
         "the interface eth0 has MAC 0a:00:00:00:00:01, not 0a:00:00:00:00:99"),
    ],
)  # fmt: skip
def test_a_result_of_something_else(result, fault):
    """The last plugin of the chain has the word on MAC and addresses, as with our own daemon."""
    assert check.faults(record(), result, "/run/netns/a", GOOD) == [fault]


def test_an_attachment_that_was_never_finished():
    assert check.faults(record(state="intent"), RESULT, "/run/netns/a", GOOD) == ["the attachment was never finished"]


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "lacks", "stale"),
    [  # contract 6.3 and 6.8
        ("no service bridge for service web; call setup_service_overlay() first", True, False),
        ("no shared bridge for Shared-mode service web; call setup_service_overlay() first", True, False),
        ("overlay engine error: enslave veth-7-s to bridge zl-b: link 'zl-b' not found in current netns", False, True),
        ("overlay engine error: Failed to open /proc/7/ns/net: No such file or directory (os error 2)", False, False),
        ("overlay engine error: service bridge zl-b subnet 10.200.1.0/26 exhausted", False, False),
    ],
)
def test_refusals_that_can_be_mended(message, lacks, stale):
    assert (lacks_bridge(message), is_stale(message)) == (lacks, stale)


@pytest.fixture
def fake(tmp_path):
    daemon = FakeOverlayd(tmp_path / "x.sock").start()
    yield daemon
    daemon.stop()


def wish():
    return Intent(service="web", mode="auto", isolation_network=None)


def test_a_bridge_that_is_lacking_is_set_up(fake):
    daemon = Daemon(fake.path, Deadline(5))
    assert daemon.attach(77, wish(), 0)
    assert fake.ops() == ["attach_container", "setup_service_overlay", "attach_container"]


def test_a_stale_bridge_is_torn_down_first(fake):
    message = "overlay engine error: enslave veth-77-s to bridge zl-b: link 'zl-b' not found in current netns"
    fake.next(wire.AttachContainer, reply(wire.Err(message)))
    daemon = Daemon(fake.path, Deadline(5))
    daemon.set_up_service("web", "auto", 0)
    assert daemon.attach(77, wish(), 0)
    again = ["attach_container", "teardown_service_overlay", "setup_service_overlay", "attach_container"]
    assert fake.ops()[1:] == again


def test_a_refusal_that_stays_is_raised(fake):
    message = "no service bridge for service web; call setup_service_overlay() first"
    for _ in range(3):
        fake.next(wire.AttachContainer, reply(wire.Err(message)))
    with pytest.raises(Exception, match=message[:20]):
        Daemon(fake.path, Deadline(5)).attach(77, wish(), 0)
    assert fake.ops().count("attach_container") == 3


def test_the_words_for_a_daemon_that_hangs(fake):
    fake.next(wire.StatusRequest, silence)
    with pytest.raises(Hung) as error:
        Daemon(fake.path, Deadline(0.3)).status(keep=0.1)
    assert error.value.code == 11
    assert error.value.msg == f"the overlay daemon at {fake.path} did not answer Status within 0.2 s"
    assert error.value.details.startswith("if it stays so it is wedged, and only SIGKILL ends it")


def test_the_words_for_a_daemon_that_is_not_there(tmp_path):
    path = f"{tmp_path}/none.sock"
    with pytest.raises(TryAgainLater) as error:
        Daemon(path, Deadline(0.2)).status()
    assert error.value.msg == f"the overlay daemon at {path} cannot be reached: No such file or directory"


def test_who_listens(fake, tmp_path):
    assert Daemon(fake.path, Deadline(1)).life() == f"{os.getpid()}:{start_time(os.getpid())}"
    assert Daemon(f"{tmp_path}/none.sock", Deadline(1)).life() == ""


def test_whether_it_is_ours(fake):
    assert not Daemon(fake.path, Deadline(1)).is_ours()
    fake.server = "zlayer-cni/9"
    assert Daemon(fake.path, Deadline(1)).is_ours()


def test_a_record_is_json_of_a_known_shape():
    assert set(msgspec.to_builtins(record())) == set(Record.__struct_fields__)
