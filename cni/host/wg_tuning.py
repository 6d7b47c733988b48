"""Tunes a userspace engine from outside: the buffers of its sockets, whether their packets may be fragmented, and
receive packet steering of its device.

An engine writes each decrypted packet into its device, and the kernel then delivers that packet into the container
before the engine can read the next one. Meanwhile the engine's socket overflows (15 to 20 of 100 packets are lost at
full load, measured with wireguard-go 0.0.20220316 and the default of 208 KiB). So the socket gets a larger buffer,
which newer engines set themselves, and other processors handle the packets of the device (receive packet steering).
Figures: docs/mesh.md.

The engine's datagrams carry the bit "don't fragment", and ignore the kernel's path cache, which any ICMP message can
change: the daemon measures paths through the tunnel (`cni/daemon/reconcile/path_prober.py`), and that needs packets
that no node fragments.

All of it is optional: what cannot be set is not reported, and nothing fails.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
from pathlib import Path

from cni.host import nlmsg

ROOM = 4 << 20
"""Bytes of the buffers of an engine's socket, for each direction."""

SYSFS = Path("/sys/class/net")
_PIDFD_GETFD = 438  # the same number on every architecture (Linux 5.6)
_MTU_DISCOVER = {socket.AF_INET: (socket.IPPROTO_IP, 10), socket.AF_INET6: (socket.IPPROTO_IPV6, 23)}
_DONT, _PROBE = 0, 3  # IP_PMTUDISC_DONT: packets may be fragmented; IP_PMTUDISC_PROBE: never, and no path cache

_libc = ctypes.CDLL(None, use_errno=True)


def tune(pid: int, name: str, index: int, port: int, fragments: bool = False) -> None:
    """Enlarge the buffers of the engine's sockets on UDP `port`, set whether their datagrams may be fragmented, and
    distribute the packets that device `name` (link `index`) receives over all processors.

    Idempotent. Must be repeated: an engine opens new sockets when its port changes.
    """
    with contextlib.suppress(OSError):
        _each_socket(pid, port, _DONT if fragments else _PROBE)
    with contextlib.suppress(OSError):
        _spread(name, index)


def _each_socket(pid: int, port: int, discover: int) -> None:
    handle = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("socket:"):  # noqa: PTH115
                    _tune_socket(handle, int(entry.name), port, discover)
    finally:
        os.close(handle)


def _tune_socket(handle: int, number: int, port: int, discover: int) -> None:
    copy = _libc.syscall(_PIDFD_GETFD, handle, number, 0)
    if copy < 0:
        return
    with socket.socket(fileno=copy) as ours:
        if ours.family not in (socket.AF_INET, socket.AF_INET6) or ours.type != socket.SOCK_DGRAM:
            return
        if ours.getsockname()[1] != port:
            return
        option = _MTU_DISCOVER[ours.family]
        if ours.getsockopt(*option) != discover:
            ours.setsockopt(*option, discover)
        for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            if ours.getsockopt(socket.SOL_SOCKET, buffer) < ROOM:
                nlmsg.widen(ours, buffer, ROOM // 2)  # the kernel doubles the value (socket(7))


def _spread(name: str, index: int) -> None:
    device = SYSFS / name
    if int((device / "ifindex").read_text()) != index:
        return  # /sys shows another network namespace
    all_processors = processors(os.cpu_count() or 1)
    for queue in (device / "queues").glob("rx-*"):
        chosen = queue / "rps_cpus"
        if int(chosen.read_text().replace(",", ""), 16) == 0 and int(all_processors.replace(",", ""), 16) > 1:
            chosen.write_text(all_processors)


def processors(count: int) -> str:
    """The mask of the first `count` processors in the kernel's notation: hexadecimal, a comma every 32 bits."""
    digits = f"{(1 << count) - 1:x}"
    groups: list[str] = []
    while digits:
        digits, group = digits[:-8], digits[-8:]
        groups.insert(0, group)
    return ",".join(groups)
