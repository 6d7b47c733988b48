"""The server beside dnsmasq in one run: questions a second, and how long the slowest of a hundred takes."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import dns.message
import pytest

from tests.dns.conftest import SERVER4, Names, running
from tests.kernel.toolnode import LAN4
from tests.mesh.fleet import wait_for

BAR = 0.8  # of dnsmasq's questions a second
SECONDS = "3"
NAMES = 50

pytestmark = pytest.mark.skipif(
    not shutil.which("dnsperf") or not shutil.which("dnsmasq"), reason="no dnsperf or dnsmasq here"
)


def test_as_fast_as_dnsmasq(tmp_path: Path):
    with running(tmp_path) as (node, make):
        node.attach("asker", make(), "asker")
        names = [f"svc{number}" for number in range(NAMES)]
        hosts = []
        for number, name in enumerate(names):
            addresses = [f"198.51.{number}.{last}" for last in (1, 2, 3)]
            node.register(name, *addresses)
            hosts += [f"{address} {node.full(name)[:-1]}" for address in addresses]
        (tmp_path / "hosts").write_text("\n".join(hosts) + "\n")
        (tmp_path / "questions").write_text("".join(f"{node.full(name)} A\n" for name in names))
        words = ["dnsmasq", "-k", "-C", "/dev/null", "--no-resolv", "--no-hosts", f"--listen-address={LAN4}"]
        words += ["--bind-interfaces", f"--addn-hosts={tmp_path}/hosts", "--user=root", f"--pid-file={tmp_path}/pid"]
        with subprocess.Popen(["nsenter", f"--net={node.host.path}", *words]) as other:
            try:
                wait_for(lambda: answers(node, LAN4), "dnsmasq")
                found: dict[str, list[float]] = {SERVER4: [], LAN4: []}
                assert node.process is not None
                pids = {SERVER4: node.process.pid, LAN4: other.pid}
                spent: dict[str, list[float]] = {SERVER4: [], LAN4: []}
                for server in (SERVER4, LAN4) * 3:
                    before = processor(pids[server])
                    found[server].append(questions_a_second(node, server, tmp_path / "questions"))
                    spent[server].append((processor(pids[server]) - before) / found[server][-1] / float(SECONDS))
                slow = {server: slowest_of_a_hundred(node, server, node.full("svc7")) for server in (SERVER4, LAN4)}
            finally:
                other.terminate()
    ours, theirs = max(found[SERVER4]), max(found[LAN4])
    sys.stdout.write(
        f"questions a second: {ours:,.0f}, dnsmasq {theirs:,.0f} ({ours / theirs:.2f}); of a processor's time for one: "
        f"{min(spent[SERVER4]) * 1e6:.1f} us, dnsmasq {min(spent[LAN4]) * 1e6:.1f} us; "
        f"p99 {slow[SERVER4] * 1e6:.0f} us, dnsmasq {slow[LAN4] * 1e6:.0f} us\n"
    )
    assert ours >= BAR * theirs


def answers(node: Names, server: str) -> bool:
    try:
        return bool(node.addresses("asker", node.full("svc1"), server=server))
    except ConnectionRefusedError:
        return False


def questions_a_second(node: Names, server: str, questions: Path) -> float:
    command = ["nsenter", f"--net={node.space_of('asker').path}", "dnsperf", "-s", server, "-d", str(questions)]
    out = subprocess.check_output([*command, "-c", "4", "-q", "50", "-l", SECONDS], text=True)
    lost = re.search(r"Queries lost: +(\d+)", out)
    assert lost is not None
    assert int(lost[1]) < 100, out
    speed = re.search(r"Queries per second: +([\d.]+)", out)
    assert speed is not None, out
    return float(speed[1])


def processor(pid: int) -> float:
    """Seconds of a processor that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def slowest_of_a_hundred(node: Names, server: str, name: str) -> float:
    """Seconds, the 99th percentile of single questions."""
    message = dns.message.make_query(name, "A").to_wire()
    times = []
    with node.space_of("asker").inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.settimeout(2)
        sock.connect((server, 53))
        for _ in range(5000):
            began = time.perf_counter()
            sock.send(message)
            sock.recv(4096)
            times.append(time.perf_counter() - began)
    return sorted(times)[int(len(times) * 0.99)]
