"""systemd-resolved's settings of a link, by `resolvectl`: which server answers for which domains. Set for a link, they
leave /etc/resolv.conf and every other link as they are, and end with the link."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from cni.host import addressing, links, netlink, sysctl

RUNNING = Path("/run/systemd/resolve/stub-resolv.conf")  # written by the service at its start
STUBS = ("127.0.0.53", "127.0.0.54")  # where it answers the programs of the host
RESOLV_CONF, NSSWITCH = Path("/etc/resolv.conf"), Path("/etc/nsswitch.conf")
PATIENCE = 5.0  # seconds; a call takes some 10 ms
LINK_MTU = 1500


def is_running() -> bool:
    """Whether systemd-resolved serves this host."""
    return RUNNING.exists()


def is_asked() -> bool:
    """Whether the programs of the host ask systemd-resolved: by resolv.conf(5), or by nss-resolve(8)."""
    named = any(line.split()[1:2] == [stub] for line in _lines(RESOLV_CONF) for stub in STUBS)
    return named or any(line.startswith("hosts:") and "resolve" in line.split() for line in _lines(NSSWITCH))


def ensure_link(name: str, peer: str, addresses: Sequence[links.Interface]) -> int:
    """A link of the host with these addresses and no other, on which systemd-resolved sends questions; its index.

    One end of a veth: systemd-resolved passes over `lo`, and over links without carrier or address. Idempotent. Raises
    OSError.
    """
    socket = netlink.Netlink()
    try:
        link = links.find_link(socket, name)
        if link is None:
            link = _create(socket, name, peer)
        elif link.kind != "veth":
            raise OSError(f"{name} is a {link.kind or 'plain'} link of another program")
        sysctl.wish(f"ipv6/conf/{peer}/disable_ipv6", "1")
        sysctl.wish(f"ipv6/conf/{name}/disable_ipv6", "0" if any(a.version == 6 for a in addresses) else "1")
        links.set_up(socket, link.peer)
        links.set_up(socket, link.index)
        held = [each for index, each in addressing.list_addresses(socket, link.index) if not each.ip.is_link_local]
        for address in set(held) - set(addresses):
            addressing.remove_address(socket, link.index, address)
        for address in addresses:
            addressing.ensure_address(socket, link.index, address)
        return link.index
    finally:
        socket.close()


def _create(socket: netlink.Netlink, name: str, peer: str) -> links.Link:
    own, other = (bytes((0x02, *os.urandom(5))) for _ in range(2))
    port = links.Port(name, links.mac_text(own), 0, LINK_MTU, peer, links.mac_text(other))
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        links.create_port(socket, port, here)
    finally:
        os.close(here)
    made = links.find_link(socket, name)
    if made is None:
        raise OSError(f"{name} was removed while it was made")
    return made


def remove_link(name: str) -> None:
    """Remove the link, and with it what systemd-resolved was told. Idempotent. Raises OSError."""
    socket = netlink.Netlink()
    try:
        links.remove_link(socket, name)
    finally:
        socket.close()


def configure(link: str, servers: Sequence[str], domains: Sequence[str]) -> None:
    """Have systemd-resolved ask `servers` for `domains` and what is below them, and for nothing else. Idempotent.
    Raises OSError with what it says."""
    routed = [f"~{domain}" for domain in domains]
    if settings_of(link) == (list(servers), routed):
        return
    for words in (
        ("dns", link, *servers),
        ("domain", link, *routed),
        ("default-route", link, "no"),
        ("llmnr", link, "no"),
        ("mdns", link, "no"),
        ("dnssec", link, "no"),
        ("dnsovertls", link, "no"),
    ):
        _resolvectl(*words)


def settings_of(link: str) -> tuple[list[str], list[str]]:
    """The servers and the domains of a link. Raises OSError."""
    servers, domains = (_resolvectl(word, link).partition("):")[2].split() for word in ("dns", "domain"))
    return servers, domains


def _resolvectl(*words: str) -> str:
    try:
        done = subprocess.run(
            ["resolvectl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(f"resolvectl {' '.join(words)}: no answer in {PATIENCE:g} s") from error
    if done.returncode:
        raise OSError(f"resolvectl {' '.join(words)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
