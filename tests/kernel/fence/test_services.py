"""Which container reaches which by a service's virtual address or a host port, with the node's DNAT as kube-proxy
writes it: the table of docs/isolation.md, measured, for the flat mesh and members of a network, in both families.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from .lab import LAN4, LAN6, ROUTED, Lab, Place, opened

VIRTUAL = {"same": 2, "other": 3, "self": 1}  # the last part of the virtual addresses
DAD = {"accept_dad": 1, "enhanced_dad": 0}
PORT, HOST_PORT = 8080, 31080
# Cell by cell: with bridge-nf-call 0, and with 1.
CELLS = {
    "pod to pod, same bridge": (True, True),
    "pod to service to a pod on the same bridge": (False, True),
    "pod to service to a pod on another bridge": (True, True),
    "pod to service to itself": (True, True),
    "pod to its own host port": (True, True),
    "node to service": (True, True),
}


def rules(family: str, one: Place, same: Place, other: Place) -> str:
    """DNAT of three services and a host port; a container that reaches itself is masqueraded, as kube-proxy does."""
    ip, kind = ("ip6", "six") if family == "ip6" else ("ip", "four")
    mine, targets = getattr(one, kind), {"self": one, "same": same, "other": other}
    to = {name: f"[{getattr(p, kind)}]" if ip == "ip6" else getattr(p, kind) for name, p in targets.items()}
    dnat = "\n".join(f"{ip} daddr {virtual(family, name)} tcp dport 80 dnat to {to[name]}:{PORT}" for name in targets)
    host = LAN6 if ip == "ip6" else LAN4
    dnat += f"\n{ip} daddr {host} tcp dport {HOST_PORT} dnat to {to['self']}:{PORT}"
    return f"""
    table {ip} zlt_kube {{
      chain pre {{
        type nat hook prerouting priority -100
        {dnat}
      }}
      chain out {{
        type nat hook output priority -100
        {dnat}
      }}
      chain post {{
        type nat hook postrouting priority 90
        {ip} saddr {mine} {ip} daddr {mine} masquerade
      }}
    }}
    """


def virtual(family: str, name: str) -> str:
    return f"fd00:96::{VIRTUAL[name]}" if family == "ip6" else f"10.96.0.{VIRTUAL[name]}"


@contextlib.contextmanager
def listening(family: str, *places: Place) -> Iterator[None]:
    """A listener in each place: the kernel completes connections, and nothing more is asked."""
    sockets = []
    for place in places:
        made = place.space.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET, socket.SOCK_STREAM)
        made.bind((place.six if family == "ip6" else place.four, PORT))
        made.listen()
        sockets.append(made)
    yield
    for made in sockets:
        made.close()


def connects(family: str, src: Place, address: str, port: int) -> bool:
    with src.space.socket(socket.AF_INET6 if family == "ip6" else socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.connect_ex((address, port))
        _, ready, _ = select.select([], [sock], [], 2.5)  # a lost neighbour request is sent again after a second
        return bool(ready) and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@pytest.mark.parametrize("family", ["ip", "ip6"])
@pytest.mark.parametrize("network", ["flat", "red"])
def test_the_table_of_services(lab: Lab, family: str, network: str) -> None:
    one, same, other = (lab.places[f"{network}-{name}"] for name in ("web", "web2", "db"))
    nf_call = int(lab.host.run("cat", "/proc/sys/net/bridge/bridge-nf-call-iptables"))
    lab.host.run("nft", "-f", "-", stdin=rules(family, one, same, other))
    direct, host = (same.six, LAN6) if family == "ip6" else (same.four, LAN4)
    lab.host.ip("route add 10.96.0.0/24 dev up0", "route add fd00:96::/64 dev up0")  # a node has a default route
    node = Place("node", lab.host, "", "")
    with listening(family, one, same, other):
        seen = {
            "pod to pod, same bridge": connects(family, one, direct, PORT),
            "pod to service to a pod on the same bridge": connects(family, one, virtual(family, "same"), 80),
            "pod to service to a pod on another bridge": connects(family, one, virtual(family, "other"), 80),
            "pod to service to itself": connects(family, one, virtual(family, "self"), 80),
            "pod to its own host port": connects(family, one, host, HOST_PORT),
            "node to service": connects(family, node, virtual(family, "same"), 80),
        }
    # Without a bridge every packet passes connection tracking, whatever bridge-nf-call says.
    assert seen == {cell: marks[nf_call] or ROUTED for cell, marks in CELLS.items()}


@pytest.mark.parametrize(
    "omit", [None, "bridge between group frame back to its port"], ids=["whole", "without-the-rule"]
)
@pytest.mark.skipif(ROUTED, reason="a port without a bridge is in no hairpin mode, and hears no own probe")
def test_duplicate_address_detection_does_not_hear_itself(omit: str | None) -> None:
    """A kernel without enhanced_dad (RFC 7527) takes its own probe for another's, unless the fence drops it."""
    with opened(omit) as lab:
        me = lab.places["red-web"]
        settings = {f"net__ipv6__conf__{link}__{name}": on for link in ("all", "eth0") for name, on in DAD.items()}
        me.space.sysctl(**settings)
        me.space.ip(f"addr del {me.six}/64 dev eth0", f"addr add {me.six}/64 dev eth0")

        def state() -> str:
            lines = me.space.run("ip", "-6", "addr", "show", "dev", "eth0").splitlines()
            return next(line for line in lines if f" {me.six}/" in line)

        end = time.monotonic() + 10
        while "dadfailed" not in (last := state()) and "tentative" in last and time.monotonic() < end:
            time.sleep(0.05)
    assert ("dadfailed" in last) is (omit is not None)
    assert ("tentative" in last) is (omit is not None)
