"""Which program has a port of this network namespace: for the text of a problem."""

from __future__ import annotations

import os
from pathlib import Path

_TABLES = {"udp": ("udp", "udp6"), "tcp": ("tcp", "tcp6")}
_LISTENING = {"udp": "07", "tcp": "0A"}  # TCP_CLOSE and TCP_LISTEN: states of proc(5), net/tcp


def holder(protocol: str, port: int) -> str:
    """The name and the pid of a process that has the port, as `name (pid 1)`; "" if none is found. Reads all processes:
    not for every call."""
    inodes = {inode for table in _TABLES[protocol] for inode in _inodes(table, port, _LISTENING[protocol])}
    if not inodes:
        return ""
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid() and _has_one_of(process, sockets):
            try:
                name = (process / "comm").read_text().strip()
            except OSError:
                continue
            return f"{name} (pid {process.name})"
    return ""


def _inodes(table: str, port: int, state: str) -> list[str]:
    try:
        lines = Path("/proc/thread-self/net", table).read_text().splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [row[9] for row in rows if row[3] == state and int(row[1].rpartition(":")[2], 16) == port]


def _has_one_of(process: Path, sockets: set[str]) -> bool:
    try:
        return any(str(link.readlink()) in sockets for link in (process / "fd").iterdir())
    except OSError:
        return False  # it ended, or is not ours to look into
