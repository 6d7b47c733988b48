"""Forwarded answers that are kept, beside dnsmasq with the same server behind it, in one run."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message
import pytest

from tests.dns.conftest import SERVER4, Names, running
from tests.dns.servers import Server, records
from tests.dns.test_speed import BAR, NAMES, SECONDS, processor, questions_a_second, slowest_of_a_hundred
from tests.kernel.toolnode import LAN4, OUTSIDE4

pytestmark = pytest.mark.skipif(
    not shutil.which("dnsperf") or not shutil.which("dnsmasq"), reason="no dnsperf or dnsmasq here"
)


def three(query: dns.message.Message, server: Server, transport: str) -> list[bytes]:
    """Three addresses, for longer than the test lasts."""
    name = query.question[0].name
    return [records(query, *(f"{name} 250 A 198.51.100.{last}" for last in (1, 2, 3))).to_wire()]


@contextlib.contextmanager
def dnsmasq(node: Names, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    words = ["dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root"]
    words += [f"--listen-address={LAN4}", f"--server={OUTSIDE4}", "--cache-size=4096", f"--pid-file={directory}/pid"]
    with subprocess.Popen(["nsenter", f"--net={node.host.path}", *words]) as process:
        try:
            end = time.monotonic() + 10
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    node.addresses("asker", "n1.example.", server=LAN4)
                    break
                assert time.monotonic() < end
                time.sleep(0.1)
            yield process
        finally:
            process.terminate()


def test_kept_answers_are_as_fast_as_dnsmasqs(tmp_path: Path) -> None:
    with running(tmp_path, f"dns: {{upstreams: [{OUTSIDE4}]}}\n") as (node, make):
        node.add("asker", make(), "asker", None)
        (tmp_path / "questions").write_text("".join(f"n{number}.example. A\n" for number in range(NAMES)))
        with node.outside.inside(lambda: Server(three, address=OUTSIDE4, port=53)), dnsmasq(node, tmp_path) as other:
            assert node.process is not None
            pids = {SERVER4: node.process.pid, LAN4: other.pid}
            speeds: dict[str, list[float]] = {SERVER4: [], LAN4: []}
            costs: dict[str, list[float]] = {SERVER4: [], LAN4: []}
            for server in (SERVER4, LAN4) * 3:
                before = processor(pids[server])
                speeds[server].append(questions_a_second(node, server, tmp_path / "questions"))
                costs[server].append((processor(pids[server]) - before) / speeds[server][-1] / float(SECONDS))
            slow = {server: slowest_of_a_hundred(node, server, "n7.example.") for server in (SERVER4, LAN4)}
    ours, theirs = max(speeds[SERVER4]), max(speeds[LAN4])
    sys.stdout.write(
        f"questions a second: {ours:,.0f}, dnsmasq {theirs:,.0f} ({ours / theirs:.2f}); of a processor's time"
        f" for one: {min(costs[SERVER4]) * 1e6:.1f} us, dnsmasq {min(costs[LAN4]) * 1e6:.1f} us; "
        f"p99 {slow[SERVER4] * 1e6:.0f} us, dnsmasq {slow[LAN4] * 1e6:.0f} us\n"
    )
    assert ours >= BAR * theirs
