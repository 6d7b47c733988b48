"""The doctor's comparison of the kernel, as a second reader has it, with our own reader and with the daemon's records;
and what the daemon tells of its peers. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cni import answers
from cni.cli.checks_machine import Finding
from cni.host.second_reader import KernelSeen, LinkSeen

SHOWN = 8  # differences that are named each
OVERHEAD = 80  # bytes of WireGuard around a packet, over IPv6 (mesh.md); over IPv4 60
RESTART = "`zlayer-cni restart` repairs what the daemon recorded; report the text if it comes again"


def readers(second: Mapping[str, LinkSeen], own: Mapping[str, LinkSeen]) -> Finding:
    """Whether pyroute2 and our own netlink code read the same links."""
    wrong = [
        f"{name}: {own.get(name, 'nothing')} here, {second.get(name, 'nothing')} by pyroute2"
        for name in sorted(second.keys() | own.keys())
        if second.get(name) != own.get(name)
    ]
    if wrong:
        return Finding("netlink", "fail", f"two readers of the kernel differ: {_some(wrong)}", "report this text")
    return Finding("netlink", "ok", f"two readers of the kernel agree on {len(own)} links")


def records(seen: KernelSeen, status: answers.Status, attachments: Sequence[answers.Attachment]) -> list[Finding]:
    """Whether the kernel has what is recorded: ports on their bridges, bridges with gateways, the WireGuard device."""
    wrong = [*_ports(seen, attachments), *_bridges(seen, status, attachments), *_device(seen, status)]
    if wrong:
        return [Finding("data path", "fail", f"the kernel differs from the records: {_some(wrong)}", RESTART)]
    text = f"the kernel has what is recorded: {len(attachments)} attachments, {len(status.services)} services"
    return [Finding("data path", "ok", text)]


def _ports(seen: KernelSeen, attachments: Sequence[answers.Attachment]) -> Iterator[str]:
    for each in attachments:
        if each.state != "live":
            continue
        port, name = seen.links.get(each.host_interface), f"{each.container_id[:12]}'s {each.host_interface}"
        if port is None:
            yield f"{name} is missing"
        elif not port.up:
            yield f"{name} is down"
        elif each.attach == "bridge" and port.master != each.bridge:
            yield f"{name} is on {port.master or 'no bridge'}, not on {each.bridge}"


def _bridges(seen: KernelSeen, status: answers.Status, attachments: Sequence[answers.Attachment]) -> Iterator[str]:
    gateways: dict[str, set[str]] = {}
    for each in attachments:
        if each.state == "live" and each.attach == "bridge":
            gateways.setdefault(each.bridge, set()).update(each.gateways)
    used = {service.bridge for service in status.services if service.attachments and service.attach == "bridge"}
    for name in sorted(used | gateways.keys()):
        bridge = seen.links.get(name)
        if bridge is None or not bridge.up:
            yield f"the bridge {name} is {'missing' if bridge is None else 'down'}"
        elif missing := gateways.get(name, set()) - seen.addresses.get(name, frozenset()):
            yield f"the bridge {name} lacks {', '.join(sorted(missing))}"


def _device(seen: KernelSeen, status: answers.Status) -> Iterator[str]:
    name = status.wireguard.interface
    if name is not None and (device := seen.links.get(name)) is not None and not device.up:
        yield f"the WireGuard device {name} is down"
    elif name is not None and name not in seen.links:
        yield f"the WireGuard device {name} is missing"


def peers(found: Sequence[answers.Peer], mtu: int) -> list[Finding]:
    """Which peers that this node calls do not answer, and to which the path is narrow. `mtu`: of containers."""
    if not found:
        return []
    silent = [peer for peer in found if not peer.alive and peer.configured_endpoints and peer.keepalive]
    fix = "look at that node (`zlayer-cni doctor`), and at every firewall between for UDP to its port"
    findings = [Finding("peers", "fail", f"{_name(peer)} does not answer: {_last(peer)}", fix) for peer in silent]
    narrow = [p for p in found if p.path_mtu is not None and p.path_mtu < mtu + OVERHEAD - 20 * _is_ipv4(p)]
    fix = "let ICMP pass and repair the path, or set mtu in the YAML: until then the routes to the peer are narrow"
    findings += [
        Finding("peers", "warn", f"the path to {_name(p)} carries {p.path_mtu} bytes, containers' MTU is {mtu}", fix)
        for p in narrow
    ]
    alive = sum(peer.alive for peer in found)
    return findings or [Finding("peers", "ok", f"{alive} of {len(found)} peers answer; none that is called is silent")]


def _is_ipv4(peer: answers.Peer) -> bool:
    return not (peer.endpoint or "").startswith("[")


def _name(peer: answers.Peer) -> str:
    return f"the peer {peer.name or peer.public_key[:10] + '...'}"


def _last(peer: answers.Peer) -> str:
    seconds = peer.last_handshake_seconds_ago
    return "there was never a handshake" if seconds is None else f"the last handshake was {seconds:.0f} s ago"


def _some(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return "; ".join(texts[:SHOWN]) + more
