"""Which fault explains a cell: the readings of each fault give its code and no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cni import answers
from cni.cli.connectivity import report
from cni.cli.connectivity.accept import node_of
from cni.cli.connectivity.causes import CAUSES, Readings, Symptom, cause, of_attach

GOOD = Readings(device="zl-t", tunnels=frozenset({"zl-t"}))
HERE = Symptom(kind="other service", should=True)
FAR = Symptom(kind="other node", should=True, far=True)


@pytest.mark.parametrize(
    ("code", "symptom", "readings"),
    [
        ("mtu", replace(FAR, kind="mtu", small_arrives=True), GOOD),
        ("mtu", replace(FAR, small_arrives=True, narrow=True), GOOD),
        ("rp-filter", HERE, replace(GOOD, reverse=("br",))),
        ("route-missing", FAR, replace(GOOD, device="eth0")),
        ("route-missing", FAR, replace(GOOD, device="")),
        ("udp-dropped", FAR, replace(GOOD, silent=True)),
        ("wrong-key", FAR, replace(GOOD, silent=True, heard=True)),
        ("bridge-nf-call", replace(HERE, bridged=True, only_bridged=True), replace(GOOD, filters_bridged=True)),
        ("foreign-drop", HERE, replace(GOOD, denied=True)),
        ("foreign-drop", replace(HERE, bridged=True), replace(GOOD, filters_bridged=True, denied=True)),
        ("stale-address", HERE, replace(GOOD, own=True)),
        ("wrong-subnet", FAR, replace(GOOD, behind=False, device="eth0")),
        ("fence-dormant", replace(HERE, should=False), replace(GOOD, dormant=True)),
        ("fence-dormant", HERE, replace(GOOD, dormant=True)),
        ("clock", replace(FAR, kind="clocks"), GOOD),
        ("leak", replace(HERE, should=False), GOOD),
        ("unexplained", HERE, GOOD),
        ("unexplained", replace(FAR, small_arrives=True), GOOD),
    ],
)
def test_a_fault_has_its_code(code: str, symptom: Symptom, readings: Readings) -> None:
    assert cause(symptom, readings) == code
    assert code in CAUSES


def test_a_full_pool_is_told_by_the_errors_number() -> None:
    assert (of_attach(104), of_attach(105)) == ("pool-full", "attach-failed")


def peer(*allowed: str, on_device: bool = True, service: str | None = None) -> answers.Peer:
    return answers.Peer(
        device="d",
        service=service,
        name="two",
        public_key="k",
        endpoint=None,
        configured_endpoints=[],
        last_handshake_unix=None,
        last_handshake_seconds_ago=None,
        alive=True,
        direct=True,
        rx_bytes=0,
        tx_bytes=0,
        allowed_ips=list(allowed),
        keepalive=None,
        path_mtu=None,
        on_device=on_device,
    )


@pytest.mark.parametrize(
    ("source", "known"),
    [("10.2.0.1", "two"), ("10.3.0.7", "two"), ("10.2.0.2", None), ("10.9.0.1", None), ("fd00::1", "two")],
)
def test_only_a_node_address_of_a_known_peer_may_ask(source: str, known: str | None) -> None:
    allowed = ("10.2.0.0/26", "10.3.0.7/32", "fd00::/120")
    assert node_of([peer(*allowed)], source) == known
    assert node_of([peer(*allowed, on_device=False)], source) is None
    assert node_of([peer(*allowed, service="web")], source) is None


def cell(got: bool | None, code: str | None = None) -> answers.Cell:
    return answers.Cell(
        kind="tcp <&>",
        source="flat",
        destination="other",
        address="10.0.0.1",
        expected=True,
        predicted=True,
        rule=None,
        got=got,
        ok=code is None,
        code=code,
        text='does "not" arrive',
        remedy="a < b",
        seconds=0.5,
    )


def test_the_reports() -> None:
    cells = [cell(True), cell(False, "mtu"), cell(None)]
    result = answers.Connectivity(ok=False, version="1", node='n"1', cells=cells, codes=["mtu"], seconds=1.0)
    from xml.etree import ElementTree

    suite = ElementTree.fromstring(report.as_junit(result))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    failure = suite.find(".//failure")
    assert failure is not None and failure.get("type") == "mtu"
    text = report.as_text(result)
    assert "1 of 2 checks are as they should be, 1 were not run" in text
    assert f"mtu: {CAUSES['mtu'][0]}" in text and CAUSES["mtu"][1] in text
