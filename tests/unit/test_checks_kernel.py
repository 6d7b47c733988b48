"""What the doctor makes of a second reading of the kernel, and of the peers."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from cni import answers
from cni.cli import checks_kernel
from cni.host.second_reader import KernelSeen, LinkSeen
from tests.unit.test_metrics import peer
from tests.unit.test_versions_and_clocks import STATUS

PORT = LinkSeen("veth", True, 1420, "zl-b")
BRIDGE = LinkSeen("bridge", True, 1420, "")
SEEN = KernelSeen({"veth1": PORT, "zl-b": BRIDGE}, {"zl-b": frozenset({"10.9.0.1", "fd00::1"})})
ATTACHED = answers.Attachment(
    network="net",
    container_id="c1",
    interface="eth0",
    addresses=["10.9.0.2/26"],
    gateways=["10.9.0.1"],
    service="web",
    mode="auto",
    isolation_network=None,
    state="live",
    bridge="zl-b",
    host_interface="veth1",
    mac="02:00:00:00:00:01",
    mtu=1420,
    netns="/x",
    pid=None,
    pod="",
    created_unix=0.0,
)


def with_link(name: str, link: LinkSeen | None) -> KernelSeen:
    links = {**SEEN.links, name: link} if link is not None else {k: v for k, v in SEEN.links.items() if k != name}
    return replace(SEEN, links=links)


def test_two_readers_that_agree_and_that_differ() -> None:
    assert checks_kernel.readers(SEEN.links, SEEN.links).level == "ok"
    found = checks_kernel.readers(SEEN.links, with_link("zl-b", None).links)
    assert (found.level, "zl-b: nothing here" in found.text) == ("fail", True)


@pytest.mark.parametrize(
    ("seen", "text"),
    [
        (SEEN, None),
        (with_link("veth1", None), "c1's veth1 is missing"),
        (with_link("veth1", replace(PORT, up=False)), "c1's veth1 is down"),
        (with_link("veth1", replace(PORT, master="docker0")), "c1's veth1 is on docker0, not on zl-b"),
        (with_link("veth1", replace(PORT, master="")), "c1's veth1 is on no bridge, not on zl-b"),
        (with_link("zl-b", replace(BRIDGE, up=False)), "the bridge zl-b is down"),
        (replace(SEEN, addresses={}), "the bridge zl-b lacks 10.9.0.1"),
    ],
)
def test_the_records_are_compared(seen: KernelSeen, text: str | None) -> None:
    (found,) = checks_kernel.records(seen, STATUS, [ATTACHED])
    assert found.level == ("ok" if text is None else "fail")
    assert text is None or text in found.text


def test_an_attach_without_a_bridge_and_one_under_way_are_left_out() -> None:
    routed = msgspec.structs.replace(ATTACHED, attach="routed", bridge="")
    (found,) = checks_kernel.records(with_link("veth1", replace(PORT, master="")), STATUS, [routed])
    assert found.level == "ok"
    begun = msgspec.structs.replace(ATTACHED, state="intent")
    assert checks_kernel.records(with_link("veth1", None), STATUS, [begun])[0].level == "ok"


def test_a_device_that_is_missing() -> None:
    status = msgspec.structs.replace(STATUS, wireguard=answers.WireGuard(interface="zl-g"))
    assert "zl-g is missing" in checks_kernel.records(SEEN, status, [])[0].text


def test_peers_that_are_silent_or_behind_a_narrow_path() -> None:
    assert checks_kernel.peers([], 1420) == []
    assert [f.level for f in checks_kernel.peers([peer("b")], 1420)] == ["ok"]
    silent = peer("b", alive=False, last_handshake_seconds_ago=224.0)
    (found,) = checks_kernel.peers([silent], 1420)
    assert (found.level, found.text) == ("fail", "the peer b does not answer: the last handshake was 224 s ago")
    calls_itself = peer("c", alive=False, configured_endpoints=[])
    assert checks_kernel.peers([calls_itself], 1420)[0].level == "ok"
    (found,) = checks_kernel.peers([peer("b", path_mtu=1400)], 1420)
    assert (found.level, "carries 1400 bytes" in found.text) == ("warn", True)
    assert checks_kernel.peers([peer("b", path_mtu=1480)], 1420)[0].level == "ok", "60 bytes over IPv4"
