"""What must hold at a quiet point: records, links, leases, fence and containers tell one story.

Everything is read from the kernel by other means than the daemon's own: `ip`, `nft`, SQLite. Only what no record
shows (addresses held in memory, locks) comes from the daemon, by the question that `inside.py` adds.
"""

from __future__ import annotations

import ipaddress
import json
import re
import sqlite3
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .machine import RUN_NETNS, Machine

PORT = re.compile(r"zl-[0-9a-f]{10}-v")


@dataclass(frozen=True)
class Live:
    """A container that its runtime believes to be attached: what ADD said."""

    cid: str
    path: str
    addresses: tuple[str, ...]
    host_end: str


def faults(on: Machine, live: Mapping[str, Live]) -> list[str]:
    """What is not as it should be, a line each; nothing when all is well. `live` by container id."""
    told = {each["container_id"]: each for each in on.ask("attachments")}
    seen = on.inside(_look)
    memory = on.ask("memory")
    found = [*_against_belief(told, live), *_against_kernel(told, seen)]
    try:
        found += [*_against_fence(on, told, seen), *_against_disk(on, told, memory)]
    except sqlite3.Error as error:
        found.append(f"the records cannot be read: {error}")
    if memory["locks"]:
        found.append(f"{memory['locks']} locks are held, and no call runs")
    found += [f"a deletion waits: {path.name}" for path in sorted((on.run_dir / "deletions").glob("*"))
              if path.name != ".lock"]  # fmt: skip
    return found


def _look() -> dict[str, Any]:
    """The kernel's side: host ends, addresses inside every namespace, every string in the fence's sets."""
    links = _json("ip", "-d", "-j", "link", "show", "type", "veth")
    ports = {link["ifname"]: link for link in links if PORT.fullmatch(link["ifname"])}
    spaces = {}
    for path in RUN_NETNS.iterdir():
        entries = _json("nsenter", f"--net={path}", "ip", "-j", "addr", "show")
        spaces[str(path)] = {
            entry["ifname"]: [f"{a['local']}/{a['prefixlen']}" for a in entry["addr_info"] if a["scope"] == "global"]
            for entry in entries
            if entry and entry["ifname"] != "lo"
        }
    objects = _json("nft", "-j", "list", "ruleset").get("nftables", [])
    return {"ports": ports, "spaces": spaces, "words": set(_words(objects)), "up": _json("ip", "-j", "link")}


def _json(*command: str) -> Any:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return json.loads(done.stdout or "[]")


def _words(objects: list[Any]) -> Iterator[str]:
    """Every string among the elements of sets and maps, whatever the set."""
    stack = [body.get("elem", []) for each in objects for kind, body in each.items() if kind in ("set", "map")]
    while stack:
        item = stack.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list):
            stack += item


def _against_belief(told: Mapping[str, Any], live: Mapping[str, Live]) -> Iterator[str]:
    for cid in told.keys() - live.keys():
        yield f"{cid} is recorded ({told[cid]['state']}, {told[cid]['addresses']}) and not attached"
    for cid in live.keys() - told.keys():
        yield f"{cid} is attached ({live[cid].addresses}) and not recorded"
    for cid in told.keys() & live.keys():
        record, belief = told[cid], live[cid]
        if record["state"] != "live":
            yield f"{cid} is attached and recorded as {record['state']}"
        if sorted(record["addresses"]) != sorted(belief.addresses):
            yield f"{cid} was told {belief.addresses}, recorded is {record['addresses']}"
        if (record["host_interface"], record["netns"]) != (belief.host_end, belief.path):
            yield f"{cid} is recorded elsewhere: {record['host_interface']} {record['netns']}"


def _against_kernel(told: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[str]:
    ports = {each["host_interface"]: each for each in told.values()}
    for name in seen["ports"].keys() - ports.keys():
        yield f"the link {name} is there, and no record of it"
    for name in ports.keys() - seen["ports"].keys():
        yield f"the link {name} of {ports[name]['container_id']} is not there"
    for name in ports.keys() & seen["ports"].keys():
        link, record = seen["ports"][name], ports[name]
        if link.get("master", "") != record["bridge"] or "UP" not in link["flags"]:
            where = f"on {record['bridge']}" if record["bridge"] else "on no bridge"
            yield f"the link {name} is not up {where}: {link.get('master')} {link['flags']}"
    expected = {each["netns"]: {each["interface"]: each["addresses"]} for each in told.values()}
    for path, inside in seen["spaces"].items():
        if inside != expected.get(path, {}):
            yield f"{path} has {inside}, recorded is {expected.get(path, {})}"
    counts = Counter(a for inside in seen["spaces"].values() for held in inside.values() for a in held)
    yield from (f"{address} is there {count} times" for address, count in counts.items() if count > 1)


def _against_fence(on: Machine, told: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[str]:
    ports = {each["host_interface"] for each in told.values()}
    in_fence = {word for word in seen["words"] if PORT.fullmatch(word)}
    yield from (f"the fence still has {name}" for name in in_fence - ports)
    yield from (f"the fence lacks {name}" for name in ports - in_fence)
    inside = {address.partition("/")[0] for each in told.values() for address in each["addresses"]}
    fenced = {word for word in seen["words"] if _is_a_containers(word, on)}
    yield from (f"the fence still has {address}" for address in fenced - inside)
    yield from (f"the fence lacks {address}" for address in inside - fenced)


def _is_a_containers(word: str, on: Machine) -> bool:
    """Whether it is an address of a service's subnet, and not the gateway's."""
    try:
        address = ipaddress.ip_address(word)
    except ValueError:
        return False
    subnets = [ipaddress.ip_network(s) for body in on.stored("service").values() for s in json.loads(body)["subnets"]]
    return any(address in s and address not in (s[0], s[1], s[-1]) for s in subnets if s.version == address.version)


def _against_disk(on: Machine, told: Mapping[str, Any], memory: Mapping[str, Any]) -> Iterator[str]:
    stored = [json.loads(body) for body in on.stored("attachment").values()]
    on_disk = {each["container"]: sorted(held["address"] for held in each["addresses"]) for each in stored}
    in_memory = {cid: sorted(each["addresses"]) for cid, each in told.items()}
    if on_disk != in_memory:
        yield f"on disk is {_only(on_disk, in_memory)}, in memory {_only(in_memory, on_disk)}"
    leased = Counter(a.partition("/")[0] for held in in_memory.values() for a in held)
    leased.update(on.stored("lease").keys())
    if dict(leased) != memory["held"]:
        yield f"held is {_only(memory['held'], leased)}, and should be {_only(leased, memory['held'])}"


def _only(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in one.items() if other.get(key) != value}


def stray_files(on: Machine) -> list[str]:
    """Half-written files in our directories."""
    roots = (on.run_dir, on.data_dir)
    return [str(path) for root in roots for path in Path(root).rglob("*") if path.suffix in (".tmp", ".new")]
