"""Port mapping (model/port_mapping.py): the bytes of RFC 6886 and RFC 6887, and what is asked when."""

from __future__ import annotations

import ipaddress

import pytest

from cni.daemon.model import port_mapping
from cni.daemon.model.port_mapping import LIFETIME, PATIENCE, REST, PortMapping

OWN, OUT = ipaddress.ip_address("192.168.1.2"), ipaddress.ip_address("203.0.113.6")
NONCE = bytes(range(12))
V4 = "00000000000000000000ffff"


def mapping() -> PortMapping:
    return PortMapping(OWN, 51420, NONCE, 0.0)


def pcp(result: int = 0, port: int = 40000, lifetime: int = 3600, nonce: bytes = NONCE) -> bytes:
    head = bytes.fromhex("0281 00") + bytes([result]) + lifetime.to_bytes(4, "big") + bytes(16)
    return head + nonce + bytes.fromhex("11 000000 c8dc") + port.to_bytes(2, "big") + bytes.fromhex(V4) + OUT.packed


def pmp(port: int = 40001, lifetime: int = 3600, internal: int = 51420) -> bytes:
    ports = internal.to_bytes(2, "big") + port.to_bytes(2, "big")
    return bytes.fromhex("0081 0000 00000001") + ports + lifetime.to_bytes(4, "big")


def test_a_request_of_pcp_byte_for_byte() -> None:
    (request,) = mapping().advance(0.0)
    head = f"0201 0000 {LIFETIME:08x} {V4} c0a80102"
    assert request == bytes.fromhex(f"{head} {NONCE.hex()} 11 000000 c8dc c8dc {V4} 00000000")
    assert len(request) == 60


def test_a_mapping_by_pcp_is_renewed_after_half_its_lifetime() -> None:
    made = mapping()
    made.advance(0.0)
    made.take(pcp(), 0.1)
    assert made.place == (OUT, 40000)
    assert made.protocol == "PCP"
    assert made.advance(1799.0) == []
    (again,) = made.advance(1801.0)
    assert again[-18:] == (40000).to_bytes(2, "big") + bytes.fromhex(V4) + OUT.packed
    made.advance(3700.0)
    assert made.place is None, "not renewed"


@pytest.mark.parametrize(
    "data", [pcp(nonce=bytes(12)), pmp(internal=1), b"", b"\x02\x81", b"\x00\x81\x00\x00", pcp()[:40]]
)
def test_what_is_no_answer_to_the_request_is_refused(data: bytes) -> None:
    made = mapping()
    made.advance(0.0)
    with pytest.raises(ValueError):
        made.take(data, 0.1)
    assert made.place is None


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "version"])
def test_a_router_without_pcp_is_asked_by_nat_pmp(silent: bool) -> None:
    made = mapping()
    made.advance(0.0)
    at = PATIENCE if silent else 0.1
    if silent:
        while made.due() < PATIENCE:
            made.advance(made.due())
        made.advance(PATIENCE)
    else:
        made.take(bytes.fromhex("0081 0001 00000001 0000000000000000"), at)
    address, request = made.advance(at)
    assert address == b"\0\0"
    assert request == bytes.fromhex(f"0001 0000 c8dc c8dc {LIFETIME:08x}")
    made.take(bytes.fromhex("0080 0000 00000001") + OUT.packed, at + 0.1)
    made.take(pmp(), at + 0.1)
    assert made.place == (OUT, 40001)
    assert made.protocol == "NAT-PMP"


def test_a_router_without_either_is_left_alone() -> None:
    made, now, sent = mapping(), 0.0, 0
    while now < REST:
        sent += len(made.advance(now))
        now = max(made.due(), now + 0.01)
    assert made.place is None
    assert sent == len(port_mapping.REPEATS) * 3


def test_a_refusal_is_told() -> None:
    made = mapping()
    made.advance(0.0)
    made.take(pcp(result=2), 0.1)
    assert (made.place, made.refusal) == (None, 2)
    assert made.advance(10.0) == []
