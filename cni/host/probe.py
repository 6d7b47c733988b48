"""The readings of the machine for `doctor`. Changes nothing: what has to be tried runs in a new network namespace,
which ends with its thread."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from cni import proc
from cni.errors import FenceFailed
from cni.host import addressing, forwarding, iptables, links, netns, sysctl
from cni.host import netlink as nl
from cni.host.forward_rules import Flow
from cni.host.nft import Nft
from cni.host.nft_forward import Obstacle, firewall_obstacles, input_obstacles
from cni.host.short_thread import in_thread
from cni.peer_credentials import Peer

T = TypeVar("T")
ENGINES = ("wireguard-go", "boringtun-cli", "boringtun")
_RT_LOCAL = 255  # the table of the node's own addresses
_libc = ctypes.CDLL(None, use_errno=True)


def capabilities(pid: int | str = "self") -> tuple[int, int]:
    """(effective user id, effective capabilities) of a process. Raises OSError."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["Uid"].split()[1]), int(fields["CapEff"].strip(), 16)


# --- the kernel -----------------------------------------------------------------------------------------------------


def try_kernel(kinds: Iterable[str], rulesets: Mapping[str, str]) -> dict[str, str]:
    """Create a link of each kind and load each nft text in a new namespace; returns for each name the kernel's error,
    or "" if it worked. Empty if no namespace can be created.
    """

    def body() -> dict[str, str]:
        if _libc.unshare(netns.CLONE_NEWNET) != 0:
            return {}
        results = {kind: _try_link(kind) for kind in kinds}
        return results | {name: _try_rules(text) for name, text in rulesets.items()}

    return in_thread(body)


def _try_link(kind: str) -> str:
    body = nl.ifinfo() + nl.text(links.IFLA_IFNAME, f"try-{kind}"[:15])
    body += nl.attribute(links.IFLA_LINKINFO, nl.text(1, kind))
    try:
        with nl.Netlink() as sock:
            sock.send([nl.Message(nl.RTM_NEWLINK, nl.F_CREATE | nl.F_EXCL, body, f"create a {kind}")])
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _try_rules(ruleset: str) -> str:
    """Load the ruleset as one transaction, and remove it; returns the error, or ""."""
    try:
        nft = Nft()
        try:
            nft.run(ruleset)
            nft.run("".join(f"add table {family} t\ndelete table {family} t\n" for family in ("bridge", "inet")))
        finally:
            nft.close()
    except FenceFailed as error:
        return (error.details or error.msg).strip().splitlines()[0]
    return ""


def engines() -> list[str]:
    """The userspace WireGuard engines on this machine's PATH."""
    return [name for name in ENGINES if shutil.which(name)]


# --- firewalls ------------------------------------------------------------------------------------------------------


def obstacles(clusters: Sequence[str], own: str) -> list[str]:
    """Other programs' chains that drop what containers send, outside iptables' filter table: a sentence for each.
    `own`: our tables. Raises FenceFailed.
    """
    nft = Nft()
    try:
        native = [obstacle.describe(clusters) for obstacle in firewall_obstacles(nft, clusters, own)]
    finally:
        nft.close()
    legacy = iptables.legacy_denials(clusters)
    return native + [iptables.describe_denial(chain, rule) for chain, rule in legacy.items()]


def base_chains() -> dict[str, Any]:
    """Every chain of every nftables table (libnftables-json(5)). Raises FenceFailed."""
    nft = Nft()
    try:
        return nft.list_base_chains()
    finally:
        nft.close()


def input_rules() -> dict[str, list[str]]:
    """The output of `-S INPUT` of iptables and ip6tables; a command that is missing or fails is left out."""
    return iptables.of_both_families("INPUT")


def filter_rules() -> dict[str, list[str]]:
    """The output of `-S` of every kind of iptables, in both families: every chain of the table filter."""
    return iptables.filters()


def closed_inputs(flow: Flow, own: str) -> list[Obstacle]:
    """Other programs' native nftables chains that drop what arrives by the flow. `own`: our tables. Raises
    FenceFailed."""
    nft = Nft()
    try:
        return input_obstacles(nft, flow, own)
    finally:
        nft.close()


# --- routes and settings ----------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str]]:
    """(destination, device) of every unicast route of all tables but `local`. Raises OSError."""
    with nl.Netlink() as sock:
        names = {link.index: link.name for link in links.list_links(sock)}
        ask = nl.Message(nl.RTM_GETROUTE, 0, addressing.ROUTE.pack(*[0] * 9), "list routes")
        return [route for answer in sock.dump(ask) if (route := _route(answer.body, names)) is not None]


def _route(body: bytes, names: dict[int, str]) -> tuple[str, str] | None:
    family, prefix, _, _, table, _, _, kind, _ = addressing.ROUTE.unpack_from(body)
    raw = nl.attributes(body[12:])
    destination = raw.get(addressing.RTA_DST)
    if family not in (links.AF_INET, links.AF_INET6) or kind != links.RTN_UNICAST or table == _RT_LOCAL:
        return None
    if destination is None:
        text = f"{'0.0.0.0' if family == links.AF_INET else '::'}/{prefix}"
    else:
        text = f"{ipaddress.ip_address(destination)}/{prefix}"
    return text, names.get(int.from_bytes(raw.get(addressing.RTA_OIF, b""), sys.byteorder), "")


def not_forwarding() -> list[str]:
    """The links that forward no IPv4 packet and should. Raises OSError."""
    with nl.Netlink() as sock:
        return forwarding.not_forwarding(sock, lambda: links.list_links(sock))


def rp_filters(devices: list[str]) -> dict[str, int]:
    """rp_filter of `all` and of these devices."""
    values = {name: sysctl.read(f"ipv4/conf/{name}/rp_filter") for name in ("all", *devices)}
    return {name: int(value) for name, value in values.items() if value is not None}


def tunnels() -> list[str]:
    """Our tunnel devices: of the kernel's WireGuard, or of a userspace engine. Raises OSError."""
    with nl.Netlink() as sock:
        return [
            link.name
            for link in links.list_links(sock)
            if link.name.startswith("zl-") and link.kind in ("wireguard", "tun")
        ]


# --- processes --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[int, list[str]]]:
    """(PID, arguments) of every process in this process's network namespace."""
    own = netns.own()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (path / "ns/net").stat()
            if (status.st_dev, status.st_ino) == own:
                arguments = proc.command(int(path.name))
                yield int(path.name), [os.fsdecode(argument) for argument in arguments]


def listener(path: str) -> int | None:
    """The PID of the process that listens on the Unix socket at `path` (SO_PEERCRED, unix(7)); None if no process does.

    0 if the process is in another PID namespace, or if its queue is full.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        try:
            sock.connect(path)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        return Peer(sock).pid
