"""What the doctor reads of the machine. Nothing is changed: what has to be tried is tried in a network namespace of its
own, which is gone when its thread is."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from cni import proc
from cni.errors import FenceFailed
from cni.host import addressing, iptables, links, netns, sysctl
from cni.host import netlink as nl
from cni.host.nft import Nft
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
    """Links of each kind, and nft texts by name, in a namespace of their own: by name empty, or what the kernel said.

    Empty altogether if there can be no namespace.
    """

    def tried() -> dict[str, str]:
        if _libc.unshare(netns.CLONE_NEWNET) != 0:
            return {}
        found = {kind: _try_link(kind) for kind in kinds}
        return found | {name: _try_rules(text) for name, text in rulesets.items()}

    return _in_thread(tried)


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
    """Tried as one transaction, and taken away again."""
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


def _in_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that dies afterwards, and with it what it did to its namespace."""
    box: list[Any] = []

    def body() -> None:
        try:
            box.extend((True, work()))
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            box.extend((False, error))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    good, value = box
    if not good:
        raise value
    return value  # type: ignore[no-any-return]


def engines() -> list[str]:
    """The userspace WireGuard engines on this machine's path."""
    return [name for name in ENGINES if shutil.which(name)]


# --- firewalls ------------------------------------------------------------------------------------------------------


def base_chains() -> dict[str, Any]:
    """Every chain of every nftables table (libnftables-json(5)). Raises FenceFailed."""
    nft = Nft()
    try:
        return nft.list_base_chains()
    finally:
        nft.close()


def input_rules() -> dict[str, list[str]]:
    """`-S INPUT` of iptables and ip6tables, where they are there and answer."""
    return iptables.of_both_families("INPUT")


# --- routes and settings ----------------------------------------------------------------------------------------------


def routes() -> list[tuple[str, str]]:
    """(destination, device) of every unicast route, in whatever table; the node's own aside. Raises OSError."""
    with nl.Netlink() as sock:
        names = {link.index: link.name for link in links.list_links(sock)}
        ask = nl.Message(nl.RTM_GETROUTE, 0, addressing.ROUTE.pack(*[0] * 9), "list routes")
        return [found for answer in sock.dump(ask) if (found := _route(answer.body, names)) is not None]


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


def rp_filters(devices: list[str]) -> dict[str, int]:
    """rp_filter of `all` and of these devices."""
    found = {name: sysctl.read(f"ipv4/conf/{name}/rp_filter") for name in ("all", *devices)}
    return {name: int(value) for name, value in found.items() if value is not None}


def tunnels() -> list[str]:
    """Devices of ours that are tunnels: WireGuard's, or a userspace engine's. Raises OSError."""
    with nl.Netlink() as sock:
        return [
            link.name
            for link in links.list_links(sock)
            if link.name.startswith("zl-") and link.kind in ("wireguard", "tun")
        ]


# --- processes --------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[int, list[str]]]:
    """(process id, words of the command) of every process in our network namespace."""
    own = netns.own()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            status = (path / "ns/net").stat()
            if (status.st_dev, status.st_ino) == own:
                words = proc.command(int(path.name))
                yield int(path.name), [os.fsdecode(word) for word in words]


def listener(path: str) -> int | None:
    """The process that listens on the Unix socket at `path` (SO_PEERCRED, unix(7)); None for nobody.

    0 if it is in another PID namespace, or if its queue is full and it cannot be asked.
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
