"""In front of ZLayer's daemon: an attachment that a policy selects is refused with 105."""

from __future__ import annotations

from pathlib import Path

import pytest

from cni.errors import FenceFailed
from cni.host.netns import NetnsId
from cni.netconf.configuration import NetConf
from cni.netconf.environment import Call
from cni.netconf.intent import Intent
from cni.upstream import policies
from cni.upstream.attach import Wanted
from cni.verbs import AttachCall, Target

POLICY = (
    "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a, namespace: net},"
    " spec: {podSelector: {matchLabels: {zlayer.io/service: web, tier: front}}, policyTypes: [Egress]}}"
)


def wanted(service: str = "web", network: str = "net", tier: str = "front") -> Wanted:
    call = Call(command="ADD", container_id="c1", ifname="eth0")
    wish = Intent(service=service, mode="auto", isolation_network=None, labels=(("tier", tier),))
    return Wanted(AttachCall(call, NetConf(name=network)), wish, Target(3, "/run/netns/a"), NetnsId(4, 77))


def test_what_a_policy_selects_is_refused_and_nothing_else(tmp_path: Path) -> None:
    policies.refuse(str(tmp_path / "missing"), wanted())
    policies.refuse(str(tmp_path), wanted())
    (tmp_path / "a.yaml").write_text(POLICY)
    with pytest.raises(FenceFailed, match=r"a\.yaml: the network policy net/a selects it") as refused:
        policies.refuse(str(tmp_path), wanted())
    assert refused.value.code == 105
    policies.refuse(str(tmp_path), wanted(service="db"))
    policies.refuse(str(tmp_path), wanted(network="other"))
    policies.refuse(str(tmp_path), wanted(tier="back"))


def test_a_file_that_cannot_be_read_refuses_all(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(POLICY.replace("Egress", "Both"))
    with pytest.raises(FenceFailed, match=r"spec\.policyTypes"):
        policies.refuse(str(tmp_path), wanted(service="db"))
