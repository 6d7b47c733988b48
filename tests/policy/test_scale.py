"""Many policies and pods on one node: how long changes take, and that an ADD and a packet pay for their own alone.

The fence works on the kernel's tables in a namespace of its own; the attachments are records without links, because
the rules do not depend on links. `-s` shows the figures.
"""

from __future__ import annotations

import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cni.daemon.events import Events
from cni.daemon.model.records import AssignedAddress, Attachment
from cni.daemon.parts_fence import build_fence
from cni.daemon.policy import reader
from cni.daemon.policy.model import NAMESPACE_LABEL, Pod, Policy, Rule
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.daemon.state.store import Store
from tests.kernel.toolnode import Space, spaces

pytestmark = [pytest.mark.root, pytest.mark.long]
PODS, HERE, OF_NAMESPACE = 5000, 100, 50


def policies(count: int) -> list[Policy]:
    """Policies of 100 namespaces, each of one app of its namespace: three peers, and two ports."""
    return [
        reader.read_object(
            {
                "apiVersion": "networking.k8s.io/v1",
                "kind": "NetworkPolicy",
                "metadata": {"name": f"p{number}", "namespace": f"ns{number % 100}"},
                "spec": {
                    "podSelector": {"matchLabels": {"app": f"app{number // 100}"}},
                    "ingress": [
                        {
                            "from": [
                                {"podSelector": {"matchLabels": {"app": f"app{(number // 100 + 1) % 10}"}}},
                                {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: f"ns{number * 7 % 100}"}}},
                                {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}},
                            ],
                            "ports": [{"port": 80}, {"port": 8000, "endPort": 8010}],
                        }
                    ],
                },
            }
        )
        for number in range(count)
    ]


def pods() -> dict[str, Pod]:
    """Pods of 100 namespaces, ten apps in each."""
    made = {}
    for number in range(PODS):
        namespace, app = f"ns{number // OF_NAMESPACE}", f"app{number % 10}"
        address = f"10.{100 + number // 60000}.{number // 250}.{number % 250 + 1}"
        made[f"{namespace}/pod{number}"] = Pod(namespace, f"pod{number}", {"app": app}, (address,))
    return made


def attachment(name: str, number: int) -> Attachment:
    """A pod of this node."""
    addresses = (
        AssignedAddress(f"10.200.{number // 250}.{number % 250 + 2}/26", "10.200.0.1"),
        AssignedAddress(f"fd00:200::{number + 2:x}/120", "fd00:200::1"),
    )
    return Attachment(
        network="net",
        container=name,
        ifname="eth0",
        state="live",
        service="web",
        mode="auto",
        isolation=None,
        bridge="zl-aaaaaaaaaa-b",
        host_veth=f"zl-{number:010x}-v",
        host_mac="02:00:00:00:00:01",
        mac=f"0a:58:00:00:{number // 256:02x}:{number % 256:02x}",
        addresses=addresses,
        mtu=1420,
        netns=(4, number),
        sandbox="/run/netns/x",
        pod=name,
    )


class Scene:
    """A fence in a namespace, with all pods known and some of them here."""

    def __init__(self, directory: Path, count: int) -> None:
        settings = Settings(cluster_cidr="10.200.0.0/16", cluster_cidr6="fd00:200::/48")
        events = Events()
        state = State(Store(directory / f"state{count}"), settings, events)
        self.fence = build_fence(state, settings, False, lambda: True, lambda: ())
        self.fence.enforcement.begin()
        assert self.fence.enforcement.load() and not self.fence.status.trouble()
        self.change = self.fence.members.change_policies
        self.pods, self.names = pods(), {f"ns{n}": {NAMESPACE_LABEL: f"ns{n}"} for n in range(100)}
        self.change(lambda table: table.follow_cluster(self.names, self.pods, whole=True))
        for number, name in enumerate(list(self.pods)[: HERE * 50 : 50]):
            self.fence.members.add_port(attachment(name, number))
        self.policies = policies(count)
        self.whole = timed(lambda: self.change(lambda table: table.set_policies("all", self.policies)))

    def one_policy(self) -> float:
        changed = [*self.policies[1:], policies(1)[0]]
        changed[-1] = reader_with(changed[-1])
        return timed(lambda: self.change(lambda table: table.set_policies("all", changed)))

    def one_label(self) -> float:
        name, pod = next(iter(self.pods.items()))
        other = Pod(pod.namespace, pod.name, {"app": "app5"}, pod.addresses)
        return timed(lambda: self.change(lambda table: table.follow_cluster(None, {name: other})))

    def adds(self) -> list[float]:
        """Seconds of the fence's part of an ADD of a pod whose policies have a chain already."""
        taken = []
        names = list(self.pods)
        for number in range(30):
            one = attachment(names[number * 50 + 10], 2000 + number)
            taken.append(timed(lambda one=one: self.fence.members.add_port(one)))  # type: ignore[misc]
            self.fence.members.remove_port(one)
        return taken


def reader_with(policy: Policy) -> Policy:
    """The policy with one rule more."""
    return replace(policy, ingress=(*(policy.ingress or ()), Rule()))


def timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def rss() -> float:
    """MiB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def inside(space: Space, work: Callable[[], dict[str, float]]) -> dict[str, float]:
    return space.inside(work)


def measure(directory: Path, count: int) -> dict[str, float]:
    before = rss()
    scene = Scene(directory, count)
    ports = scene.fence.status.desired.ports
    assert sum(bool(port.policy) for port in ports) >= (HERE if count >= 1000 else 1)
    text_of_chain = max(
        len(chain.rules) for chain in scene.fence.status.desired.policies.chains if chain.name.startswith("pol_in")
    )
    figures = {
        "all policies, s": scene.whole,
        "one policy, ms": 1000 * scene.one_policy(),
        "one pod's label, ms": 1000 * scene.one_label(),
        "ADD's fence, ms": 1000 * statistics.median(scene.adds()),
        "rules a packet meets at most": float(text_of_chain),
        "memory, MiB": rss() - before,
    }
    assert not scene.fence.enforcement.load(), "the kernel holds what is desired"
    return figures


def test_an_add_and_a_packet_pay_the_same_with_1000_policies_as_with_10(tmp_path: Path) -> None:
    with spaces() as make:
        few = inside(make(), lambda: measure(tmp_path, 10))
        many = inside(make(), lambda: measure(tmp_path, 1000))
    table = [f"{name:32} {few[name]:10.2f} {value:10.2f}" for name, value in many.items()]
    sys.stderr.write("\n".join(["", f"{'policies':32} {10:10} {1000:10}", *table, ""]))
    assert many["rules a packet meets at most"] == few["rules a packet meets at most"]
    assert many["all policies, s"] < 5 and many["one policy, ms"] < 1000 and many["one pod's label, ms"] < 1000
    assert threading.active_count() < 50
