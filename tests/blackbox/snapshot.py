"""Everything one can see of a network namespace, as plain text that can be compared.

    before = take(netns, files=[run_dir])
    ...
    assert settle(before, lambda: take(netns, files=[run_dir])) == []

Left out is only what changes by itself: counters, timers, handles, neighbour states, lifetimes, and whether a
bridge has carrier (its ports say it, and the kernel is a second late). Neighbours that never answered (FAILED,
INCOMPLETE) are no state and are left out too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

if __package__:
    from .harness.netns import in_thread, inside, processes_in
else:  # imported by its path
    from harness.netns import in_thread, inside, processes_in  # type: ignore[import-not-found,no-redef]

Section = dict[str, str]
Snapshot = dict[str, Section]

QUESTIONS = ("link show", "addr show", "route show table all", "rule show", "neigh show", "neigh show proxy")
VOLATILE = {
    "stats",
    "stats64",
    "valid_life_time",
    "preferred_life_time",
    "handle",
    "expires",
    "packets",
    "bytes",
    "hello_timer",
    "tcn_timer",
    "topology_change_timer",
    "gc_timer",
    "hold_timer",
    "message_age_timer",
    "forward_delay_timer",
    "used",
    "confirmed",
    "updated",
    "probes",
    "refcnt",
    "topology_change",
    "topology_change_detected",
    "tentative",
}
QUIET_SYSCTLS = {"nf_conntrack_count", "nf_conntrack_max", "stable_secret"}


def take(
    netns: str | Path | None = None,
    *,
    files: Iterable[str | Path] = (),
    content: bool = False,
    processes: bool = True,
    fds: bool = False,
) -> Snapshot:
    """The whole state of the namespace at `netns` (None: the caller's), and of the trees below `files`.

    `content` adds a digest of each file; `fds` the number of open descriptors of each process in the namespace.
    """
    work = _inside_view
    view = inside(netns, work) if netns is not None else in_thread(work)
    if processes and netns is not None:
        running = _staying(netns)
        view["processes"] = {str(pid): command for pid, command in running.items()}
        if fds:
            view["fds"] = {str(pid): str(_open_fds(pid)) for pid in running}
    roots = [Path(root) for root in files]
    view["files"] = {key: value for root in roots for key, value in _tree(root, content)}
    view["mounts"] = dict(_mounts_below(roots))
    return view


def diff(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for each thing that came (+), went (-) or changed (~); nothing for equal snapshots."""
    lines = []
    for section in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(section, {}), after.get(section, {})
        lines += [f"- {section} {key}: {old[key]}" for key in old if key not in new]
        lines += [f"+ {section} {key}: {new[key]}" for key in new if key not in old]
        lines += [
            f"~ {section} {key}: {_changed(old[key], new[key])}" for key in old if key in new and old[key] != new[key]
        ]
    return lines


def settle(before: Snapshot, again: Callable[[], Snapshot], patience: float = 10.0) -> list[str]:
    """The difference to `before` once it is gone, or when `patience` seconds are over: kernels clean up late."""
    deadline = time.monotonic() + patience
    while (left := diff(before, again())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _changed(old: str, new: str) -> str:
    """Only the members that differ, where both are JSON objects."""
    if old.startswith("{") and new.startswith("{"):
        a, b = json.loads(old), json.loads(new)
        keys = sorted({*a, *b})
        return ", ".join(f"{key}: {a.get(key)!r} -> {b.get(key)!r}" for key in keys if a.get(key) != b.get(key))
    return f"{old!r} -> {new!r}"


def _inside_view() -> Snapshot:
    four, six = _ip("-4"), _ip("-6")
    view: Snapshot = {"links": {}, "addresses": {}, "routes": {}, "rules": {}, "neighbours": {}}
    for link in four[0]:
        if link.get("linkinfo", {}).get("info_kind") == "bridge":
            link["flags"] = sorted(set(link["flags"]) - {"NO-CARRIER", "LOWER_UP"})
            del link["operstate"]
        view["links"][link["ifname"]] = _text(link)
    for family in (four, six):
        for link in family[1]:
            for address in link.get("addr_info", []):
                key = f"{link['ifname']} {address.get('local')}/{address.get('prefixlen')}"
                view["addresses"][key] = _text(address)
        for route in family[2]:
            route["flags"] = sorted(set(route.get("flags", [])) - {"linkdown", "dead"})
        _number(view["routes"], family[2], _route_name)
        _number(view["rules"], family[3], lambda r: f"{r.get('priority')}")
        for entry in [*family[4], *family[5]]:
            states = set(entry.pop("state", []))
            if not states & {"FAILED", "INCOMPLETE"}:
                entry["state"] = sorted(states & {"PERMANENT", "NOARP"})
                view["neighbours"][f"{entry.get('dst')} dev {entry.get('dev')}"] = _text(entry)
    view["fdb"], view["qdiscs"] = _fdb(), _qdiscs()
    view["nftables"] = _nftables()
    view["sysctls"] = dict(_sysctls(Path("/proc/sys/net")))
    return view


def _ip(family: str) -> list[Any]:
    """The answers to QUESTIONS, in their order, from one process."""
    asked = "".join(f"{question}\n" for question in QUESTIONS)
    done = subprocess.run(
        ["ip", family, "-d", "-j", "-force", "-batch", "-"], input=asked, capture_output=True, text=True, check=False
    )
    answers, rest, decoder = [], done.stdout.strip(), json.JSONDecoder()
    while rest:
        value, end = decoder.raw_decode(rest)
        answers.append([item for item in value if item])
        rest = rest[end:].strip()
    assert len(answers) == len(QUESTIONS), f"ip {family}: {len(answers)} answers\n{done.stdout}\n{done.stderr}"
    return answers


def _route_name(route: dict[str, Any]) -> str:
    return f"{route.get('dst')} dev {route.get('dev')} table {route.get('table', 'main')}"


def _fdb() -> Section:
    entries = json.loads(_output(["bridge", "-j", "fdb"]) or "[]")
    return {
        f"{e.get('mac')} dev {e.get('ifname')} vlan {e.get('vlan')} {e.get('flags')}": e["state"]
        for e in entries
        if e.get("state") in {"permanent", "static"}
    }


def _qdiscs() -> Section:
    entries = json.loads(_output(["tc", "-j", "qdisc", "show"]) or "[]")
    return {f"{e.get('dev')} {e.get('parent', 'root')}": e.get("kind", "") for e in entries}


def _nftables() -> Section:
    objects = json.loads(_output(["nft", "-j", "list", "ruleset"]) or "{}").get("nftables", [])
    section: Section = {}
    for thing in objects:
        ((kind, body),) = thing.items()
        if kind == "metainfo":
            continue
        if isinstance(body.get("elem"), list):
            body["elem"] = sorted(body["elem"], key=lambda item: json.dumps(item, sort_keys=True))
        place = " ".join(str(body.get(key)) for key in ("family", "table", "chain", "name") if body.get(key))
        _number(section, [body], lambda _, label=f"{kind} {place}": label)  # type: ignore[misc]
    return section


def _sysctls(root: Path) -> Iterator[tuple[str, str]]:
    for folder, _, names in os.walk(root):
        for name in names:
            if name in QUIET_SYSCTLS:
                continue
            path = Path(folder, name)
            # Some cannot be read at all (flush), some vanish with their interface.
            with contextlib.suppress(OSError):
                yield str(path.relative_to(root)), path.read_text(errors="replace").strip()


def _tree(root: Path, content: bool) -> Iterator[tuple[str, str]]:
    for folder, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(folder, name)
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                text = stat.filemode(status.st_mode)
                if content and stat.S_ISREG(status.st_mode):
                    text += " " + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
                yield str(path), text


def _mounts_below(roots: list[Path]) -> Iterator[tuple[str, str]]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        point = Path(line.split()[4])
        if any(point.is_relative_to(root) for root in roots):
            yield str(point), line.rsplit(" - ", 1)[-1]


def _staying(netns: str | Path) -> dict[int, str]:
    """The processes there that are not about to end: a daemon's helper lives for some milliseconds."""
    running = processes_in(netns)
    deadline = time.monotonic() + 1.0
    while len(running) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
        before, running = running, processes_in(netns)
        running = {pid: command for pid, command in running.items() if before.get(pid) == command}
        if running.keys() == before.keys():
            break
    return running


def _open_fds(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return -1


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _number(section: Section, items: list[Any], label: Callable[[Any], str]) -> None:
    """Several things may have one label; they are told apart by their order."""
    for item in items:
        name, number = label(item), 1
        key = name
        while key in section:
            number += 1
            key = f"{name} #{number}"
        section[key] = _text(item)


def _text(value: Any) -> str:
    return json.dumps(_quiet(value), sort_keys=True)


def _quiet(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _quiet(item) for key, item in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_quiet(item) for item in value]
    return value
