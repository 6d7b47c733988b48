"""What a NAT is called (model/nat_behaviour.py), which configuration counts, and which datagrams pass the filter."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from cni.daemon.model import nat_behaviour, stun
from cni.daemon.model.nat_behaviour import Observation
from cni.daemon.nat.rules import NatRules, in_effect
from cni.daemon.nat.server_round import AGAIN, ServerRound
from cni.daemon.settings import Nat
from cni.daemon.settings_reader import parse
from cni.errors import InvalidConfig
from cni.host import wg_port
from cni.overlay import wire

OWN = (ipaddress.ip_address("192.168.1.2"),)


def seen(*pairs: tuple[str, str]) -> list[Observation]:
    def place(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
        host, _, port = text.rpartition(":")
        return ipaddress.ip_address(host), int(port)

    return [Observation(place(server), place(mapped)) for server, mapped in pairs]


ONE, ONE_B, TWO = "198.51.100.1:3478", "198.51.100.1:3479", "198.51.100.2:3478"
A, B, C = "203.0.113.9:51420", "203.0.113.9:1024", "203.0.113.9:1025"


@pytest.mark.parametrize(
    ("observed", "mapping"),
    [
        ([], "unknown"),
        ([(ONE, "192.168.1.2:51420")], "none"),
        ([(ONE, "192.168.1.2:9")], "unknown"),
        ([(ONE, A)], "unknown"),
        ([(ONE, A), (ONE, A)], "unknown"),
        ([(ONE, A), (TWO, A)], "endpoint-independent"),
        ([(ONE, A), (ONE_B, A), (TWO, B)], "address-dependent"),
        ([(ONE, A), (ONE_B, B), (TWO, C)], "address-and-port-dependent"),
        ([(ONE, A), (TWO, B)], "address-and-port-dependent"),
    ],
)
def test_the_mapping(observed: list[tuple[str, str]], mapping: str) -> None:
    assert nat_behaviour.mapping_of(OWN, 51420, seen(*observed)) == mapping


@pytest.mark.parametrize(
    ("address", "port", "filtering"),
    [
        (True, None, "endpoint-independent"),
        (False, True, "address-dependent"),
        (False, False, "address-and-port-dependent"),
        (None, None, "unknown"),
    ],
)
def test_the_filtering(address: bool | None, port: bool | None, filtering: str) -> None:
    assert nat_behaviour.filtering_of(address, port) == filtering


def test_the_names() -> None:
    assert nat_behaviour.kind_of("none", "unknown") == "no NAT"
    assert nat_behaviour.kind_of("none", "address-dependent") == "no NAT, behind a firewall"
    assert nat_behaviour.kind_of("endpoint-independent", "endpoint-independent") == "full cone"
    assert nat_behaviour.kind_of("endpoint-independent", "unknown") == "cone"
    assert nat_behaviour.kind_of("address-dependent", "unknown") == "symmetric"
    assert nat_behaviour.kind_of("unknown", "unknown") == "behind NAT"


def test_the_yaml_comes_before_the_agent_and_without_both_it_is_off() -> None:
    agent = wire.NatConfig(enabled=True, stun_servers=("a.example:1", "nonsense"))
    assert in_effect(None, None) == NatRules()
    assert in_effect(None, agent) == NatRules(True, (("a.example", 1),), ("nonsense",), 10)
    assert in_effect(Nat(stun=("198.51.100.1:3478",)), agent) == NatRules(True, (("198.51.100.1", 3478),))
    assert not in_effect(Nat(enabled=False), agent).enabled
    assert not in_effect(None, wire.NatConfig()).enabled  # `{}` on the wire (contract 2.6)


def test_the_numbers_of_an_agent_take_effect() -> None:
    def rules(**numbers: int) -> NatRules:
        return in_effect(None, wire.NatConfig(enabled=True, **numbers))

    assert rules().refresh == NatRules().refresh == 45.0
    assert rules(stun_refresh_interval_secs=60).refresh == 60.0
    assert rules(stun_refresh_interval_secs=1).refresh == 5.0
    assert rules(stun_refresh_interval_secs=2**64 - 1).refresh > 1e19
    assert (rules().most_candidates, rules(max_candidate_pairs=3).most_candidates) == (10, 3)
    assert rules(hole_punch_timeout_secs=1) == rules()
    for given, most in ((0, 100), (7, 7), (2**64 - 1, 10_000)):
        relay = wire.Relay(3478, "198.51.100.4:3478", given, "secret")
        server = in_effect(None, wire.NatConfig(enabled=True, relay_server=relay)).server
        assert server is not None
        assert server.max_sessions == most


def test_a_round_of_stun_begins_at_the_interval_and_sooner_without_an_answer() -> None:
    round_, servers = ServerRound(lambda name: ()), [("198.51.100.1", 3478)]
    round_.refresh(servers, 60.0, 100.0)
    assert len(round_.requests(100.0)) == 1
    assert round_.next_round(servers, 60.0) == 100.0 + AGAIN
    round_.refresh(servers, 60.0, 100.0 + AGAIN)
    ((_, request),) = round_.requests(105.0)
    mapped = struct.pack("!HHBBHI", stun.XOR_MAPPED, 8, 0, 1, 9, 7)
    assert round_.take(struct.pack("!HHI", 0x0101, len(mapped), stun.MAGIC_COOKIE) + request[8:20] + mapped, 105.1)
    assert round_.next_round(servers, 60.0) == 165.0
    round_.refresh(servers, 60.0, 164.9)
    assert round_.requests(164.9) == []
    round_.refresh(servers, 60.0, 165.0)
    assert len(round_.requests(165.0)) == 1


def test_a_server_that_is_none_is_named_with_key_and_value() -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse("nat: {stun: [stun.example]}\n", "x.yaml")
    assert caught.value.code == 7
    assert "nat.stun: stun.example: not host:port" in caught.value.msg
    with pytest.raises(InvalidConfig, match="stun is meant"):
        parse("nat: {stunn: []}\n")


def passes(program: bytes, packet: bytes) -> bool:
    """Run the filter as the kernel does: a load beyond the packet drops it."""
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    at = accumulator = index = 0
    while True:
        operation, if_true, if_false, k = code[at]
        at += 1
        match operation:
            case 0xB1:
                index = 4 * (packet[k] & 15)
            case 0x01:
                index = k
            case 0x48 | 0x40:
                size = 2 if operation == 0x48 else 4
                if index + k + size > len(packet):
                    return False
                accumulator = int.from_bytes(packet[index + k : index + k + size], "big")
            case 0x15:
                at += if_true if accumulator == k else if_false
            case 0x06:
                return k != 0
            case _:
                raise AssertionError(operation)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("options", [0, 4])
def test_the_filter_passes_the_patterns_at_the_port_alone(version: int, options: int) -> None:
    head = bytes([0x45 + options // 4]) + bytes(19 + options) if version == 4 else b""
    patterns = (((0, 0x11111111), (8, 0x22222222)), ((4, stun.MAGIC_COOKIE),))
    program = wg_port.program(version, 51420, patterns)

    def datagram(port: int, payload: bytes) -> bytes:
        return head + struct.pack("!HHHH", 9, port, 8 + len(payload), 0) + payload

    request = stun.request(bytes(12))
    first = bytes.fromhex("11111111000000002222222200000000")
    assert passes(program, datagram(51420, request))
    assert passes(program, datagram(51420, first))
    assert not passes(program, datagram(51421, request))
    assert not passes(program, datagram(51420, first[:8] + bytes(8)))
    assert not passes(program, datagram(51420, bytes(148)))
    assert not passes(program, datagram(51420, b""))
