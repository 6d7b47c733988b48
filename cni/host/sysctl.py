"""Kernel settings below /proc/sys/net, of the calling thread's network namespace."""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from cni.host import link_settings, netlink, private_proc

log = logging.getLogger(__name__)

_OF_HOST = "/host/proc/sys/net"  # in a container, whose own /proc/sys is read-only, the same settings are mounted here
ROOT = Path(_OF_HOST if Path(_OF_HOST).is_dir() else "/proc/sys/net")
NO_DAD = ("accept_dad", "dad_transmits", "router_solicitation_delay")
"""The settings of a link that are set to 0 so that its addresses do not wait for duplicate address detection.
accept_dad alone is not enough: the kernel detects if it is on for the link or for `all`. Without a probe to send and
without a delay before the first, the detection ends at once."""


def read(path: str) -> str | None:
    """The value of `path` (with slashes: ipv4/ip_forward); None if this kernel has no such setting."""
    try:
        return (ROOT / path).read_text().strip()
    except FileNotFoundError:
        return None


def put(path: str, value: str) -> None:
    """Set `path` to `value` without reading it first: for settings of a new link.

    No error if the kernel has no such setting, or if /proc/sys is read-only and holds the value already, or the kernel
    takes it by netlink. Raises Unwritable, OSError.
    """
    _put(path, value, f"{ROOT}/{path}", None)


def put_all(directory: str, settings: Sequence[tuple[str, str]], *, needed: bool = True) -> None:
    """`put` of each (name, value) below `directory`; without `needed` as `wish`. No error if the kernel has no such
    directory.

    The directory is looked up once, in an instance of /proc of the daemon's own if there is one (`private_proc`).
    """
    directory_fd = _directory(directory)
    if directory_fd is None:
        return
    try:
        for name, value in settings:
            try:
                _put(f"{directory}/{name}", value, name, directory_fd)
            except Unwritable:
                if needed:
                    raise
                _log_once(name)
    finally:
        os.close(directory_fd)


def _directory(directory: str) -> int | None:
    try:
        private = private_proc.open_directory(f"sys/net/{directory}")
        if private is not None:
            return private
        return os.open(f"{ROOT}/{directory}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _put(path: str, value: str, file: str, directory_fd: int | None) -> None:
    """`put`: `file` is the file of `path`, relative to `directory_fd` if that is not None."""
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    except OSError as error:
        current = read(path)
        if current not in (None, value):
            _otherwise(path, value, error)
        return
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def ensure(path: str, value: str) -> bool:
    """Set `path` to `value`; True if the value was changed, False if it was equal or there is no such setting.

    Written only if the value differs: a read-only /proc/sys with the right value is no error. Raises Unwritable,
    OSError.
    """
    current = read(path)
    if current is None or current == value:
        return False
    put(path, value)
    return True


def wish(path: str, value: str) -> None:
    """As `put`, for a setting without which the overlay works: that it cannot be written is logged once for each kind.
    Raises OSError."""
    try:
        put(path, value)
    except Unwritable:
        _log_once(path.rpartition("/")[2])


def refuse_read_only(path: str, value: str) -> None:
    """Raises Unwritable if `path` cannot be set to `value` because /proc/sys is read-only."""
    if read(path) not in (None, value) and not os.access(ROOT / path, os.W_OK):
        raise Unwritable(path, value, errno.EROFS)


def forward(link: str, *, six: bool) -> None:
    """Let the kernel forward packets that come in by a link, of IPv4 and, with `six`, of IPv6. Raises Unwritable,
    OSError.

    A new link has the setting of `default`, which may be 0 on a host whose ip_forward is 1. IPv4 reads the setting of
    the link; IPv6 reads that of `all`, but answers for proxied neighbours (proxy_ndp) only if the link's own is on.
    """
    ensure(f"ipv4/conf/{link}/forwarding", "1")
    if six and read(f"ipv6/conf/{link}/disable_ipv6") == "0":
        wish(f"ipv6/conf/{link}/forwarding", "1")


# --- a read-only /proc/sys ------------------------------------------------------------------------------------------


class Unwritable(OSError):
    """A setting has another value than the overlay needs, and cannot be written."""

    def __init__(self, path: str, value: str, code: int) -> None:
        super().__init__(code, os.strerror(code))
        key = "net." + path.replace(".", "\0").replace("/", ".").replace("\0", "/")  # the notation of sysctl(8)
        self._text = f"{key} is {read(path)}, must be {value}, and cannot be written: {self.strerror}"

    def __str__(self) -> str:
        return self._text


def _otherwise(path: str, value: str, error: OSError) -> None:
    """Set a link's setting by netlink, which takes those of IPv4. Raises Unwritable, NetlinkError."""
    family, _, rest = path.partition("/conf/")
    link, _, setting = rest.partition("/")
    if family == "ipv4" and setting in link_settings.IPV4_NUMBERS and link not in ("all", "default"):
        with netlink.Netlink() as socket:
            link_settings.set_ipv4(socket, link, setting, value)
    elif (family, setting, value) == ("ipv6", "disable_ipv6", "1"):
        with netlink.Netlink() as socket:
            # No link-local address, and so no IPv6.
            link_settings.set_gen_mode(socket, link, link_settings.GEN_MODE_NONE)
    else:
        raise Unwritable(path, value, error.errno or errno.EROFS) from error


@functools.lru_cache(64)
def _log_once(kind: str) -> None:
    log.warning("/proc/sys is read-only, so %s of the overlay's links keeps its value: the overlay works without", kind)
