"""Results: seven shapes out, seven shapes in, and a chain's results joined."""

import json
from typing import Any

import pytest

from cni.errors import CniError, IncompatibleVersion, InvalidConfig, PoolExhausted
from cni.netconf.result import DNS, IP, Interface, Result, Route, merge, parse_result, render, render_error
from cni.netconf.versions import NEWEST, SUPPORTED

NETNS = "/var/run/netns/cni-1"
DUAL = Result(
    interfaces=(
        Interface("zl-a-0-web-b", "02:00:00:00:00:01", mtu=1420),
        Interface("zv1", "02:00:00:00:00:02", mtu=1420),
        Interface("eth0", "02:00:00:00:00:03", NETNS, mtu=1420, socket_path="/s", pci_id="0000:00:1f.6"),
    ),
    ips=(IP("10.200.0.2/26", "10.200.0.1", 2), IP("fd00::2/64", "fd00::1", 2), IP("10.200.0.3/26", "", 2)),
    routes=(
        Route("0.0.0.0/0", "10.200.0.1", mtu=1380, advmss=1340, priority=5, table=0, scope=0),
        Route("::/0"),
        Route("192.0.2.0/24"),
    ),
    dns=DNS(("10.200.0.1",), "d", ("s",), ("ndots:5",)),
)
BARE = Result(interfaces=(Interface("eth0", sandbox=NETNS),), ips=(IP("10.200.0.2/26"),))

DNS_OUT = {"nameservers": ["10.200.0.1"], "domain": "d", "search": ["s"], "options": ["ndots:5"]}
OLD = {
    "ip4": {
        "ip": "10.200.0.2/26",
        "gateway": "10.200.0.1",
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.200.0.1"}, {"dst": "192.0.2.0/24"}],
    },
    "ip6": {"ip": "fd00::2/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
    "dns": DNS_OUT,
}
MIDDLE: dict[str, Any] = {
    "interfaces": [
        {"name": "zl-a-0-web-b", "mac": "02:00:00:00:00:01"},
        {"name": "zv1", "mac": "02:00:00:00:00:02"},
        {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": NETNS},
    ],
    "ips": [
        {"interface": 2, "address": "10.200.0.2/26", "gateway": "10.200.0.1"},
        {"interface": 2, "address": "fd00::2/64", "gateway": "fd00::1"},
        {"interface": 2, "address": "10.200.0.3/26"},
    ],
    "routes": [{"dst": "0.0.0.0/0", "gw": "10.200.0.1"}, {"dst": "::/0"}, {"dst": "192.0.2.0/24"}],
    "dns": DNS_OUT,
}
WITH_FAMILY = {**MIDDLE, "ips": [{"version": v, **ip} for v, ip in zip("464", MIDDLE["ips"], strict=True)]}
NEW = {
    **MIDDLE,
    "interfaces": [
        {"name": "zl-a-0-web-b", "mac": "02:00:00:00:00:01", "mtu": 1420},
        {"name": "zv1", "mac": "02:00:00:00:00:02", "mtu": 1420},
        {**MIDDLE["interfaces"][2], "mtu": 1420, "socketPath": "/s", "pciID": "0000:00:1f.6"},
    ],
    "routes": [
        {**MIDDLE["routes"][0], "mtu": 1380, "advmss": 1340, "priority": 5, "table": 0, "scope": 0},
        *MIDDLE["routes"][1:],
    ],
}
SHAPES = {
    "0.1.0": OLD,
    "0.2.0": OLD,
    "0.3.0": WITH_FAMILY,
    "0.3.1": WITH_FAMILY,
    "0.4.0": WITH_FAMILY,
    "1.0.0": MIDDLE,
    "1.1.0": NEW,
}


def test_every_version_has_a_shape():
    assert tuple(SHAPES) == SUPPORTED


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_shape_of_a_version(version):
    assert json.loads(render(DUAL, version)) == {"cniVersion": version, **SHAPES[version]}


@pytest.mark.parametrize("version", SUPPORTED)
def test_what_is_empty_is_left_out(version):
    if version < "0.3":
        expected = {"ip4": {"ip": "10.200.0.2/26"}}
    else:
        ip = {"address": "10.200.0.2/26"}
        family = {"version": "4"} if version < "1" else {}
        expected = {"interfaces": [{"name": "eth0", "sandbox": NETNS}], "ips": [{**family, **ip}]}
    assert json.loads(render(BARE, version)) == {"cniVersion": version, **expected}


@pytest.mark.parametrize("version", SUPPORTED)
def test_a_result_is_one_line_and_its_version_comes_first(version):
    odd = Result(ips=DUAL.ips, interfaces=(Interface("ä", sandbox="/n/ä\n\udcff"),))
    text = render(odd, version)
    assert text.isascii()
    assert "\n" not in text
    assert text.startswith(f'{{"cniVersion":"{version}",')
    assert ": " not in text


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0"])
@pytest.mark.parametrize("result", [Result(), Result(DUAL.interfaces, routes=DUAL.routes, dns=DUAL.dns)])
def test_old_versions_cannot_say_nothing(version, result):
    with pytest.raises(IncompatibleVersion, match="cannot convert: no valid IP addresses"):
        render(result, version)
    for newer in SUPPORTED[2:]:
        render(result, newer)


def test_old_versions_drop_the_routes_of_a_family_without_an_address():
    only6 = Result(ips=(IP("fd00::2/64"),), routes=DUAL.routes)
    assert json.loads(render(only6, "0.2.0")) == {
        "cniVersion": "0.2.0",
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0"}]},
    }


def test_interface_0_is_an_index():
    result = Result((Interface("eth0"),), (IP("10.0.0.2/24", interface=0),))
    assert json.loads(render(result, "1.0.0"))["ips"] == [{"interface": 0, "address": "10.0.0.2/24"}]


# --- reading ---


@pytest.mark.parametrize("version", SUPPORTED)
def test_what_was_written_is_read(version):
    once = parse_result(version, json.loads(render(DUAL, version)))
    assert json.loads(render(once, version)) == {"cniVersion": version, **SHAPES[version]}
    if version == NEWEST:
        assert once == DUAL


@pytest.mark.parametrize(
    ("version", "said"),
    [("1.0.0", "0.2.0"), ("0.2.0", "1.0.0"), ("0.3.0", "0.1.0"), ("1.1.0", "9.9.9"), ("1.1.0", "x"), ("1.1.0", 5)],
)
def test_a_result_of_a_version_with_other_members_is_not_read_as_empty(version, said):
    with pytest.raises(CniError) as caught:
        parse_result(version, {"cniVersion": said, "ip4": {"ip": "10.0.0.2/24"}})
    assert caught.value.code == 6
    assert "prevResult.cniVersion" in caught.value.msg


@pytest.mark.parametrize(("version", "said"), [("1.0.0", "1.1.0"), ("1.1.0", "0.3.1"), ("1.1.0", ""), ("1.1.0", None)])
def test_a_result_of_a_version_with_the_same_members_is_read(version, said):
    assert parse_result(version, {"cniVersion": said, "ips": [{"address": "10.0.0.2/24"}]}).ips == (IP("10.0.0.2/24"),)


def test_a_result_without_families_is_read_where_they_are_due():
    # What loopback writes in 0.3.1.
    found = parse_result("0.3.1", {"ips": [{"address": "127.0.0.1/8"}, {"address": "::1/128"}]})
    assert [ip["version"] for ip in json.loads(render(found, "0.3.1"))["ips"]] == ["4", "6"]


def test_keys_of_a_result_in_any_letter_case():
    found = parse_result("1.1.0", {"Interfaces": [{"NAME": "a", "PciID": "p"}], "IPs": [{"Address": "10.0.0.2/24"}]})
    assert found == Result((Interface("a", pci_id="p"),), (IP("10.0.0.2/24"),))


def test_a_chained_routes_host_bits_are_not_ours_to_judge():
    assert parse_result("1.0.0", {"routes": [{"dst": "10.0.0.1/24"}]}).routes == (Route("10.0.0.1/24"),)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        *((None, 6), ([], 6), ("x", 6), ({"ips": {}}, 6), ({"ips": ["x"]}, 6), ({"interfaces": [None]}, 6)),
        *(({"ips": [{}]}, 6), ({"ips": [{"address": "10.0.0.1"}]}, 6), ({"dns": []}, 6), ({"routes": [{}]}, 6)),
        *(({"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]}, 6), ({"routes": [{"dst": "x"}]}, 6)),
        *(({"ips": [{"address": "10.0.0.1/24", "interface": n}]}, 7) for n in (0, -1)),
        ({"ips": [{"address": "10.0.0.1/24", "interface": "0"}]}, 6),
    ],
)
def test_what_is_no_result(value, code):
    with pytest.raises(CniError) as caught:
        parse_result("1.1.0", value)
    assert caught.value.code == code
    assert "prevResult" in caught.value.msg


@pytest.mark.parametrize("value", [{"ip4": []}, {"ip4": {}}, {"ip6": {"ip": "x"}}, {"ip4": {"ip": 1}}])
def test_what_is_no_old_result(value):
    with pytest.raises(CniError) as caught:
        parse_result("0.2.0", value)
    assert caught.value.code == 6


# --- joining ---


def test_ours_comes_after_theirs_with_its_indexes_moved():
    theirs = Result(
        (Interface("lo", sandbox=NETNS), Interface("net0", sandbox=NETNS)),
        (IP("127.0.0.1/8", interface=0), IP("172.16.0.2/24", interface=1), IP("172.16.0.3/24")),
        (Route("172.16.0.0/12"), Route("::/0")),
        DNS(("172.16.0.1",), "", ("t", "s"), ()),
    )
    joined = merge(theirs, DUAL)
    assert joined.interfaces == theirs.interfaces + DUAL.interfaces
    assert joined.ips == (
        *theirs.ips,
        IP("10.200.0.2/26", "10.200.0.1", 4),
        IP("fd00::2/64", "fd00::1", 4),
        IP("10.200.0.3/26", "", 4),
    )
    assert joined.routes == (*theirs.routes, DUAL.routes[0], DUAL.routes[2])
    assert joined.dns == DNS(("172.16.0.1", "10.200.0.1"), "d", ("t", "s"), ("ndots:5",))


def test_joining_with_nothing_changes_nothing():
    assert merge(Result(), DUAL) == DUAL
    assert merge(DUAL, Result()) == DUAL


def test_an_address_of_unknown_interface_stays_so():
    assert merge(DUAL, Result(ips=(IP("10.9.0.1/24"),))).ips[-1].interface is None


# --- errors ---


@pytest.mark.parametrize("version", SUPPORTED)
def test_an_error_says_code_message_and_the_configurations_version(version):
    text = render_error(InvalidConfig("mtu: 1"), version)
    assert text == f'{{"cniVersion":"{version}","code":7,"msg":"mtu: 1"}}'


def test_an_error_with_details():
    text = render_error(PoolExhausted("no address", 'of "web"\nä'), "1.0.0")
    assert text == r'{"cniVersion":"1.0.0","code":104,"msg":"no address","details":"of \"web\"\n\u00e4"}'


@pytest.mark.parametrize("version", ["9.8.7", "", "rubbish", "\udcff"])
def test_an_error_in_a_version_that_is_not_ours(version):
    assert json.loads(render_error(InvalidConfig("x"), version))["cniVersion"] == NEWEST
