"""Reads the node for one scrape: values alone, without names of metrics.

No lock of the attach path is held while anything is counted. A part that cannot be read is left out and named in
`failed`; the other parts are served.
"""

from __future__ import annotations

import logging
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from cni import __version__, answers
from cni.daemon.api import tool_fence, tool_mesh
from cni.daemon.api.tool_context import ToolContext
from cni.daemon.call_times import CallTimes
from cni.daemon.durations import Times
from cni.daemon.metrics.counters import Counters
from cni.daemon.metrics.path_bytes import ByPath, PathBytes
from cni.daemon.model import relay_pairs, usage
from cni.errors import CniError
from cni.host import nft_counters, nft_dump
from cni.plugin import delete_queue
from cni.problems import Problem

if TYPE_CHECKING:
    from cni.daemon.cluster.sync import ClusterSync

log = logging.getLogger(__name__)
T = TypeVar("T")

STORE_DOWN = {"store-unreachable", "store-not-etcd"}  # the problems that mean that etcd does not answer
PAGE = os.sysconf("SC_PAGE_SIZE")  # bytes


@dataclass(frozen=True, slots=True)
class Process:
    """The daemon's process: seconds of processor time, bytes of resident memory, open descriptors, Unix seconds of its
    start."""

    cpu: float
    memory: int
    descriptors: int
    started: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The node at one scrape. `drops`: packets and bytes by (isolation network or chain, rule); `relayed`: datagrams
    and bytes; `store_up`: None without a store; `store_lag`: revisions that the store is ahead, None if unknown; `dns`:
    what the DNS server has counted, empty without one; `seconds`: what the reading took; `failed`: the parts that could
    not be read."""

    version: str = __version__
    calls: Mapping[tuple[str, ...], Times] = field(default_factory=dict)
    callers: Mapping[str, int] = field(default_factory=dict)
    attachments: Mapping[str, int] = field(default_factory=dict)
    unfinished: int = 0
    usages: tuple[usage.Usage, ...] = ()
    spare_slots: Mapping[int, int] = field(default_factory=dict)
    queued: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    fence_in_force: bool = False
    fence_repairs: int = 0
    fence_changes: Mapping[tuple[str, ...], Times] = field(default_factory=dict)
    drops: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    peers: tuple[answers.Peer, ...] = ()
    peer_bytes: ByPath = field(default_factory=dict)
    relay_pairs: int = 0
    relayed: tuple[int, int] = (0, 0)
    store_up: bool | None = None
    store_lag: int | None = None
    dns: Mapping[str, int] = field(default_factory=dict)
    upstream_took: Times | None = None
    problems: tuple[Problem, ...] = ()
    process: Process | None = None
    seconds: float = 0.0
    failed: tuple[str, ...] = ()


class Reader:
    """Reads one node. For one thread at a time."""

    def __init__(self, context: ToolContext, times: CallTimes, counters: Counters, cluster: ClusterSync | None) -> None:
        self._context, self._times, self._counters = context, times, counters
        self._cluster, self._by_path = cluster, PathBytes()
        self._failed: list[str] = []

    def read(self) -> Reading:
        """The node now. Never raises CniError, OSError."""
        began, context = time.monotonic(), self._context
        self._failed = []
        attachments, view = context.state.snapshot(), context.state.pool_view()
        calls = context.calls()
        nothing: list[Problem] = []
        problems = self._part("problems", context.conditions.problems, nothing)
        queue = self._part("queue", lambda: delete_queue.names(context.settings.run_dir), None)
        no_peers: list[answers.Peer] = []
        peers = tuple(self._part("peers", lambda: tool_mesh.peers(context, {}), no_peers))
        return Reading(
            calls=self._times.read(),
            callers={"launcher": calls.launcher, "python": calls.python},
            attachments=Counter(attachment.service for attachment in attachments),
            unfinished=sum(1 for attachment in attachments if attachment.state != "live"),
            usages=tuple(usage.usages(view)),
            spare_slots=view.spare_slots,
            queued=None if queue is None else len(queue),
            counts=self._counters.read(),
            fence_in_force=not context.fence.trouble(),
            fence_repairs=context.fence.repairs(),
            fence_changes=context.fence.changes_took(),
            drops=self._part("drops", lambda: tool_fence.drops_by_network(context), {}),
            peers=peers,
            peer_bytes=self._by_path.note(peers),
            relay_pairs=sum(pair.is_joined for pair in context.registry.relay_pairs.all().values()),
            relayed=self._part("relay", _relayed, (0, 0)),
            store_up=None if context.settings.cluster is None else STORE_DOWN.isdisjoint(p.code for p in problems),
            store_lag=self._cluster.lag if self._cluster is not None else None,
            dns=dict(context.dns.handler.counts) if context.dns.server is not None else {},
            upstream_took=context.dns.forwarding.took() if context.dns.forwarding is not None else None,
            problems=tuple(problems),
            process=self._part("process", _process, None),
            seconds=time.monotonic() - began,
            failed=tuple(self._failed),
        )

    def _part(self, name: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except (OSError, CniError) as error:
            log.warning("metrics are without %s: %s", name, error)
            self._failed.append(name)
            return otherwise


def _relayed() -> tuple[int, int]:
    """The datagrams and bytes that pairs of other nodes have sent through this node. Raises OSError."""
    counts = nft_counters.read(relay_pairs.TABLE, {"ip": nft_dump.IP})
    return next((count for (_, _, rule), count in counts.items() if rule == relay_pairs.RELAYED), (0, 0))


def _process() -> Process:
    """This process, by getrusage(2) and proc(5). Raises OSError."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123
        memory = int(file.read().split()[1]) * PAGE
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return Process(
        cpu=used.ru_utime + used.ru_stime,
        memory=memory,
        descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        started=round(time.time() - age, 2),
    )
