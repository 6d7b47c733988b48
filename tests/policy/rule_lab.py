"""A node whose policy rules stay in the kernel without a daemon, and a set of packets whose fate is known: what each
rule of the policies is for.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kernel.test_policy import HEAD, becomes, policies
from tests.kernel.toolnode import OUTSIDE4, OUTSIDE6, Node, ip, knock, reached, running

WAIT = 0.35  # seconds in which a packet arrives
EAR = 4545
VIRTUAL = {4: "198.51.100.1", 6: "2001:db8:51::1"}
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = {"TCP": TCP, "UDP": UDP}
BASE = ("policies", "policies_output", "policies_redirect", "policies_bridge", "judge", "judge_untracked", "by_host")
RULES = {
    "web": "{podSelector: {matchLabels: {zlayer.io/name: web}}, policyTypes: [Ingress, Egress], ingress: ["
    "{from: [{podSelector: {matchLabels: {zlayer.io/name: far}}}], ports: [{port: 80}, {port: 90, endPort: 92}]},"
    "{from: [{ipBlock: {cidr: 192.0.2.0/24, except: [192.0.2.128/25]}}, {ipBlock: {cidr: '2001:db8:2::/64'}}]},"
    "{ports: [{protocol: UDP, port: 53}]}], egress: ["
    "{to: [{podSelector: {matchLabels: {zlayer.io/name: near}}}], ports: [{protocol: UDP, port: 54}]}]}",
    "in": "{podSelector: {matchLabels: {zlayer.io/name: inner}}, policyTypes: [Ingress]}",
    "out": "{podSelector: {matchLabels: {zlayer.io/name: outer}}, policyTypes: [Egress]}",
    "free": "{podSelector: {matchLabels: {zlayer.io/name: free}}, ingress: [{}], egress: [{}]}",
}
CONTAINERS: dict[str, tuple[str, str | None]] = {
    **dict.fromkeys(("web", "near", "inner", "outer", "free"), ("web", None)),
    **dict.fromkeys(("far", "other", "unheard"), ("db", None)),
}
FLOWS: dict[tuple[str, str, str, int], bool] = {
    ("far", "web", "TCP", 80): True,
    ("far", "web", "TCP", 91): True,
    ("far", "web", "TCP", 81): False,
    ("far", "web", "UDP", 80): False,
    ("other", "web", "TCP", 80): False,
    ("near", "web", "TCP", 80): False,
    ("near", "web", "UDP", 53): True,
    ("other", "web", "UDP", 53): True,
    ("outside", "web", "TCP", 7): True,
    ("node", "web", "TCP", 80): True,
    ("web", "near", "UDP", 54): True,
    ("web", "near", "TCP", 54): False,
    ("web", "far", "TCP", 80): False,
    ("web", "outside", "TCP", 80): False,
    ("near", "inner", "TCP", 80): False,
    ("inner", "near", "TCP", 80): True,
    ("inner", "far", "UDP", 80): True,
    ("outer", "near", "TCP", 80): False,
    ("near", "outer", "TCP", 80): True,
    ("near", "free", "TCP", 80): True,
    ("far", "free", "UDP", 9): True,
    ("free", "far", "TCP", 80): True,
    ("far", "near", "TCP", 80): True,
    ("near", "unheard", "TCP", 80): False,
    ("unheard", "near", "UDP", 80): False,
}
"""Whether a flow is answered, in each family."""
SERVICE = {("web", 80): True, ("near", 53): True, ("near", 80): False, ("far", 80): True, ("other", 80): False}
"""Whether a flow to a service's address, whose endpoint is `web`, is answered."""
HEARD: dict[tuple[str, str, str], bool] = {
    ("near", "web", "broadcast"): False,
    ("web", "near", "broadcast"): False,
    ("near", "free", "broadcast"): False,
    ("near", "web", "all nodes"): False,
    ("web", "near", "all nodes"): False,
    ("near", "web", "link-local"): False,
    ("web", "near", "link-local"): False,
    ("near", "inner", "broadcast"): False,
    ("inner", "near", "broadcast"): True,
    ("outer", "near", "all nodes"): False,
    ("inner", "near", "link-local"): True,
    ("near", "outer", "link-local"): True,
    ("inner", "near", "source link-local"): True,
    ("near", "outer", "source link-local"): True,
    ("inner", "near", "target link-local"): True,
    ("near", "outer", "target link-local"): True,
    ("near", "inner", "untracked 4"): False,
    ("near", "inner", "untracked 6"): False,
    ("outer", "near", "untracked 4"): False,
    ("outer", "near", "untracked 6"): False,
    ("near", "free", "untracked 4"): True,
    ("near", "free", "untracked 6"): True,
    ("near", "inner", "handed on 4"): False,
    ("near", "inner", "handed on 6"): False,
    ("near", "free", "handed on 4"): True,
}
"""Whether a datagram arrives, by sender, receiver and form."""


@dataclass
class Lab:
    """The node, its rules as they were listed, and what sends."""

    node: Node
    dump: str

    def nft(self, text: str) -> None:
        """A batch for nft. Raises CalledProcessError."""
        self.node.host.inside(lambda: subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True))

    def restore(self) -> None:
        """The rules as they were listed."""
        self.nft(f"delete table inet zlayer_cni\ndelete table bridge zlayer_cni\n{self.dump}")

    def rules(self) -> list[tuple[str, str, str, int]]:
        """The rules of policies that a packet can reach: family, chain, comment, handle."""
        found = []
        ended: set[str] = set()  # the chains whose rules so far let no packet on
        for family in ("bridge", "inet"):
            command = ["nft", "-j", "list", "table", family, "zlayer_cni"]
            listed = self.node.host.inside(functools.partial(subprocess.check_output, command))
            for item in json.loads(listed)["nftables"]:
                rule: dict[str, Any] = item.get("rule", {})
                if not rule or rule["chain"] in ended or not rule["chain"].startswith(("pol_", *BASE)):
                    continue
                found.append((family, rule["chain"], rule.get("comment", ""), rule["handle"]))
                if rule["expr"] == [{"return": None}]:
                    ended.add(rule["chain"])
        return found

    def faults(self) -> list[str]:
        """What of the known packets has another fate."""
        for space in (self.node.host, *self.node.boxes.values()):
            space.ip("neigh flush all")
        expected: dict[tuple[str, ...], bool] = {
            (client, server, protocol, str(port), str(family)): passes
            for (client, server, protocol, port), passes in FLOWS.items()
            for family in (4, 6)
        }
        seen = self._answered(expected)
        return [
            *(f"{' '.join(flow)}: {seen[flow]}" for flow, passes in expected.items() if seen[flow] != passes),
            *self._misheard(),
            *self._by_service(),
        ]

    def _target(self, name: str, family: int) -> str:
        if name == "outside":
            return OUTSIDE4 if family == 4 else OUTSIDE6
        return self.node.address(name, family)

    def _answered(self, flows: dict[tuple[str, ...], bool]) -> dict[tuple[str, ...], bool]:
        knocks = {
            flow: knock(
                self.node.space_of(flow[0]), self._target(flow[1], int(flow[4])), int(flow[3]), KINDS[flow[2]], None
            )
            for flow in flows
        }
        seen = dict.fromkeys(flows, False)
        deadline = time.monotonic() + 10 * WAIT
        settled = time.monotonic() + WAIT
        while time.monotonic() < deadline:
            for flow, sock in knocks.items():
                seen[flow] = seen[flow] or reached(sock)
            if time.monotonic() > settled and all(seen[flow] for flow, passes in flows.items() if passes):
                break
            time.sleep(0.02)
        for sock in knocks.values():
            sock.close()
        return seen

    def _misheard(self) -> list[str]:
        faults = []
        for form in sorted({form for _, _, form in HEARD}):
            family = socket.AF_INET6 if form == "all nodes" or form[-1] in "6l" else socket.AF_INET
            pairs = {pair[:2]: arrives for pair, arrives in HEARD.items() if pair[2] == form}
            with contextlib.ExitStack() as stack:
                ears = {}
                for name in {receiver for _, receiver in pairs}:
                    ear = self.node.space_of(name).inside(lambda: _ear(family))  # noqa: B023 - it is called at once
                    ears[name] = stack.enter_context(ear)
                for sender, receiver in pairs:
                    self._send(sender, receiver, form, family)
                time.sleep(WAIT / 2)
                heard = {name: _senders(ear) for name, ear in ears.items()}
            for (sender, receiver), arrives in pairs.items():
                if (sender in heard[receiver]) != arrives:
                    faults.append(f"{sender} {receiver} {form}: {not arrives}")
        return faults

    def _send(self, sender: str, receiver: str, form: str, family: socket.AddressFamily) -> None:
        node, text = self.node, sender.encode()
        match form.split(maxsplit=1)[0]:
            case "broadcast":
                target = "255.255.255.255"
            case "all":
                target = "ff02::1"
            case "link-local" | "target":
                target = link_local(node, receiver)
            case _:
                target = node.address(receiver, 4 if family is socket.AF_INET else 6)
        if form.startswith("handed on"):  # as a transparent proxy and IPVS send
            source = node.address(sender, 4 if family is socket.AF_INET else 6)
            node.host.inside(lambda: _as_another(family, source, target, text))
        else:
            source = ""
            if form == "source link-local":
                source = link_local(node, sender)
            elif form == "target link-local":
                source = node.address(sender, 6)
            port = 4999 if "untracked" in form else 0  # which the host's rule leaves out of connection tracking
            node.space_of(sender).inside(lambda: _datagram(family, target, text, (source, port)))

    def _by_service(self) -> list[str]:
        """Flows to a service's address, as kube-proxy translates it."""
        kinds = {53: UDP, 80: TCP}
        with contextlib.ExitStack() as stack:
            socks = {}
            for flow in itertools.product(SERVICE, (4, 6)):
                (client, port), family = flow
                sock = knock(self.node.space_of(client), VIRTUAL[family], port, kinds[port], None)
                socks[flow] = stack.enter_context(sock)
            seen = dict.fromkeys(socks, False)
            began = time.monotonic()
            while time.monotonic() < began + 10 * WAIT:
                seen = {flow: seen[flow] or reached(sock) for flow, sock in socks.items()}
                if time.monotonic() > began + WAIT and all(seen[flow] for flow in socks if SERVICE[flow[0]]):
                    break
                time.sleep(0.02)
        return [f"by service {flow}: {arrived}" for flow, arrived in seen.items() if arrived != SERVICE[flow[0]]]


def link_local(node: Node, name: str) -> str:
    """The container's link-local address."""
    words = ip("-n", node.space_of(name).name, "-6", "addr", "show", "dev", "eth0", "scope", "link").split()
    return words[words.index("inet6") + 1].partition("/")[0]


def _ear(family: socket.AddressFamily) -> socket.socket:
    ear = socket.socket(family, UDP)
    ear.bind(("", EAR))
    ear.setblocking(False)
    return ear


def _senders(ear: socket.socket) -> set[str]:
    names = set()
    with contextlib.suppress(BlockingIOError):
        while True:
            names.add(ear.recv(64).decode())
    return names


def _datagram(family: socket.AddressFamily, target: str, text: bytes, source: tuple[str, int]) -> None:
    with socket.socket(family, UDP) as mouth, contextlib.suppress(OSError):
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        mouth.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        if family is socket.AF_INET:
            mouth.bind(source)
        else:
            mouth.bind((*source, 0, _index(source[0])))
        mouth.sendto(text, (target, EAR) if family is socket.AF_INET else (target, EAR, 0, _index(target)))


def _index(target: str) -> int:
    return socket.if_nametoindex("eth0") if target.startswith(("fe80", "ff02")) else 0


def _as_another(family: socket.AddressFamily, source: str, target: str, text: bytes) -> None:
    with socket.socket(family, UDP) as mouth, contextlib.suppress(OSError):
        if family is socket.AF_INET:
            mouth.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
        else:
            mouth.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT
        mouth.bind((source, 0))
        mouth.sendto(text, (target, EAR))


def _others(node: Node) -> str:
    """Rules of other programs: a service's address, and flows that are not tracked."""
    web4, web6 = node.address("web", 4), node.address("web", 6)
    return f"""
table inet others {{
    chain raw {{ type filter hook prerouting priority -300; udp sport 4999 notrack; }}
    chain nat {{ type nat hook prerouting priority -100;
        ip daddr {VIRTUAL[4]} dnat ip to {web4}
        ip6 daddr {VIRTUAL[6]} dnat ip6 to {web6}
    }}
    chain back {{ type nat hook postrouting priority 100;
        ip saddr {web4} ip daddr {web4} masquerade
        ip6 saddr {web6} ip6 daddr {web6} masquerade
    }}
}}
"""


@contextlib.contextmanager
def opened(directory: Path, nf_call: str) -> Iterator[Lab]:
    """The node with its policies in force, and its daemon killed, so that no rule comes back by itself."""
    (directory / "policies").mkdir()
    with running(directory, CONTAINERS, settings=f"policies: {directory}/policies\n") as node:
        for tool in ("iptables", "ip6tables"):
            setting = Path(f"/proc/sys/net/bridge/bridge-nf-call-{tool}")
            node.host.inside(functools.partial(setting.write_text, nf_call))
        for space in (node.host, node.outside, *node.boxes.values()):
            _answer_always(space.inside)
        policies(node, **{name: HEAD % name + spec for name, spec in RULES.items()})
        assert becomes(node, "near", "inner", 80, False)
        process = node.process
        assert process is not None
        process.kill()
        process.wait(10)
        node.process = None
        for way in ("in", "out"):
            for v in (4, 6):
                element = f"{{ {node.address('unheard', v)} : jump pol_unknown }}"
                node.host.nft(f"add element inet zlayer_cni pol_{way}{v} {element}")
        dump = "".join(node.host.nft(f"list table {family} zlayer_cni") for family in ("inet", "bridge"))
        lab = Lab(node, dump)
        lab.nft(_others(node))
        yield lab


def _answer_always(inside: Callable[[Callable[[], object]], object]) -> None:
    for name in ("ipv4/icmp_ratelimit", "ipv6/icmp/ratelimit", "ipv4/icmp_msgs_per_sec", "ipv4/icmp_msgs_burst"):
        path, value = Path("/proc/sys/net", name), "100000" if "msgs" in name else "0"
        inside(functools.partial(_write, path, value))


def _write(path: Path, value: str) -> None:
    if path.exists():
        path.write_text(value)
