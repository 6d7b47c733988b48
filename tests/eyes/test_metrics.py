"""The metrics of a real daemon: each changes when that happens which it counts."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dns.message
import pytest

from cni import __version__
from cni.cli import metrics
from cni.daemon.api.event_stream import EventStream
from cni.daemon.call_times import CallTimes
from cni.daemon.events import Events, ProblemBegan
from cni.daemon.log_repeats import Repeats
from cni.daemon.metrics.counters import Counters
from cni.problems import Problem
from tests.eyes.calls import call, scrape
from tests.kernel import toolnode
from tests.kernel.toolnode import LAN4, OUTSIDE4, REFUSED, Node, Space, knock, until

MANY = 2000  # attachments
SERVICES = 20


MEMBERS: dict[str, tuple[str, str | None]] = {"red1": ("web", "red"), "red2": ("db", "red"), "b1": ("db", "blue")}
LISTENS = 'metrics: {listen: "127.0.0.1:9472"}\naddress_cooldown: 600\n'
UPSTREAM = f'dns: {{upstreams: ["{OUTSIDE4}"]}}\n'


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Two members of `red`, one of `blue`; metrics at an address too."""
    with toolnode.running(tmp_path_factory.mktemp("node"), MEMBERS, LISTENS + UPSTREAM) as made:
        yield made


@pytest.fixture
def make() -> Iterator[Callable[[], Space]]:
    with toolnode.spaces() as maker:
        yield maker


def test_calls_are_counted_by_verb_and_code(node: Node, make: Callable[[], Space]) -> None:
    before, space = scrape(node), make()
    assert call(node, "ADD", "c1", space)[0] == 0
    assert call(node, "CHECK", "c1", space)[0] != 0  # without prevResult
    assert call(node, "ADD", "c2", make(), service="x" * 300)[0] != 0
    assert call(node, "DEL", "c1", space)[0] == 0
    after = scrape(node)

    def grown(verb: str, code: str) -> float:
        series = f'zlayer_cni_call_seconds_count{{code="{code}",verb="{verb}"}}'
        return after.get(series, 0) - before.get(series, 0)

    assert (grown("ADD", "0"), grown("DEL", "0"), grown("CHECK", "0")) == (1, 1, 0)
    assert grown("CHECK", "7") == 1
    assert grown("ADD", "7") == 1
    assert after['zlayer_cni_call_seconds_bucket{code="0",le="+Inf",verb="ADD"}'] == 4
    assert 0 < after['zlayer_cni_call_seconds_sum{code="0",verb="ADD"}'] < 4
    form = 'zlayer_cni_calls_by_form_total{form="python"}'
    assert after[form] - before[form] == 4


def test_attachments_and_addresses_follow(node: Node, make: Callable[[], Space]) -> None:
    attached, used, cooling, free = (
        'zlayer_cni_attachments{service="cache"}',
        'zlayer_cni_addresses{family="4",service="cache",state="used"}',
        'zlayer_cni_addresses{family="4",service="cache",state="cooling"}',
        'zlayer_cni_addresses{family="4",service="cache",state="free"}',
    )
    subnets = 'zlayer_cni_subnets_free{family="4"}'
    before, spaces = scrape(node), [make(), make()]
    assert attached not in before
    for n, space in enumerate(spaces):
        assert call(node, "ADD", f"cache{n}", space, service="cache")[0] == 0
    during = scrape(node)
    assert [during[series] for series in (attached, used, cooling, free)] == [2, 2, 0, 59]
    assert before[subnets] - during[subnets] == 1
    assert call(node, "DEL", "cache0", spaces[0], service="cache")[0] == 0
    after = scrape(node)
    assert [after[series] for series in (attached, used, cooling, free)] == [1, 1, 1, 59]
    assert call(node, "DEL", "cache1", spaces[1], service="cache")[0] == 0


def test_a_dropped_packet_counts_for_its_network_and_rule(node: Node) -> None:
    """As nft itself lists the counters of the network's rule, in both tables."""
    series = 'zlayer_cni_fence_drops_total{network="red",rule="between networks"}'
    octets = 'zlayer_cni_fence_drop_bytes_total{network="red",rule="between networks"}'
    rules = [
        {**drop, "name": drop["rule"]} for drop in node.ask("networks")["drops"] if drop["isolation_network"] == "red"
    ]
    before = scrape(node)
    with knock(node.boxes["red1"], node.address("b1"), 80, socket.SOCK_DGRAM, None):
        assert until(lambda: scrape(node)[series] > before[series], 5)

    def agrees() -> bool:
        counted = sum(node.drops(rule) for rule in rules if rule["rule"] == "between networks")
        return counted == scrape(node)[series] > 0

    assert until(agrees, 10)
    assert scrape(node)[octets] - before[octets] >= 31  # IPv4, UDP, and three bytes


def test_the_fence_is_in_force_and_its_repair_is_counted(node: Node) -> None:
    before = scrape(node)
    assert before["zlayer_cni_fence_in_force"] == 1
    node.host.nft("flush chain inet zlayer_cni forward")
    assert until(lambda: scrape(node)["zlayer_cni_fence_mended_total"] > before["zlayer_cni_fence_mended_total"], 15)
    problem = 'zlayer_cni_problem{code="fence-repaired",severity="warning"}'
    assert until(lambda: scrape(node).get(problem) == 1, 5)
    assert scrape(node)["zlayer_cni_problems_begun_total"] > before["zlayer_cni_problems_begun_total"]


def test_changes_of_the_fence_are_timed(node: Node, make: Callable[[], Space]) -> None:
    """An attach changes elements; a repair loads rules."""
    elements, rules = (f'zlayer_cni_fence_changes_seconds_count{{kind="{kind}"}}' for kind in ("elements", "rules"))
    before = scrape(node)
    space = make()
    assert call(node, "ADD", "timed", space)[0] == 0
    after = scrape(node)
    assert after[elements] > before[elements]
    took = after['zlayer_cni_fence_changes_seconds_sum{kind="elements"}'] / after[elements]
    assert 0 < took < 0.1, took
    node.host.nft("flush chain inet zlayer_cni to_host")
    assert until(lambda: scrape(node)[rules] > before[rules], 15)
    assert call(node, "DEL", "timed", space)[0] == 0


@contextlib.contextmanager
def name_server(space: Space) -> Iterator[None]:
    """A server that answers each question with "no such data", after 20 ms."""
    sock = space.inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.bind((OUTSIDE4, 53))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while (received := sock.recvfrom(4096))[0]:
                message, sender = received
                time.sleep(0.02)
                answer = dns.message.make_response(dns.message.from_wire(message), recursion_available=True)
                sock.sendto(answer.to_wire(), sender)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # wakes the thread
        thread.join(5)
        sock.close()


def test_questions_and_the_answers_of_other_servers_are_counted(node: Node) -> None:
    (server,) = node.ask("status")["dns"]["served"][:1]
    zone = node.ask("status")["dns"]["zone"]

    def ask(name: str) -> None:
        question = dns.message.make_query(name, "A").to_wire()
        with node.boxes["red1"].inside(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
            sock.settimeout(5)
            sock.sendto(question, (server, 53))
            assert sock.recv(4096)

    before = scrape(node)
    with name_server(node.outside):
        ask(f"web.{zone}")
        ask(f"nothing.{zone}")
        ask("example.org")
    after = scrape(node)
    grown = {
        result: after[series] - before[series]
        for result in ("answered", "absent", "forwarded", "refused", "malformed", "strangers")
        if (series := f'zlayer_cni_dns_queries_total{{result="{result}"}}')
    }
    assert grown == {"answered": 1, "absent": 1, "forwarded": 1, "refused": 0, "malformed": 0, "strangers": 0}
    assert after["zlayer_cni_dns_upstream_seconds_count"] - before.get("zlayer_cni_dns_upstream_seconds_count", 0) == 1
    assert 0.02 <= after["zlayer_cni_dns_upstream_seconds_sum"] < 4


def test_the_processes_own(node: Node) -> None:
    before = scrape(node)
    assert before[f'zlayer_cni_info{{version="{__version__}"}}'] == 1
    assert 0 < before["zlayer_cni_scrape_seconds"] < 1
    assert abs(before["process_start_time_seconds"] - time.time()) < 3600
    with contextlib.ExitStack() as held:
        for _ in range(20):
            sock = held.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(f"{node.run_dir}/cni.sock")
        assert until(lambda: scrape(node)["process_open_fds"] >= before["process_open_fds"] + 20, 5)
    assert until(lambda: scrape(node)["process_cpu_seconds_total"] > before["process_cpu_seconds_total"], 5)
    assert scrape(node)["process_resident_memory_bytes"] > 10 << 20


def test_a_collection_and_a_comparison_are_counted(node: Node, make: Callable[[], Space]) -> None:
    before, space = scrape(node), make()
    assert call(node, "ADD", "dead", space)[0] == 0
    (link,) = [link for link in space.links() if link == "eth0"]
    space.ip(f"link del {link}")
    assert until(lambda: scrape(node)["zlayer_cni_gc_freed_total"] == before["zlayer_cni_gc_freed_total"] + 1, 40)
    series = 'zlayer_cni_reconcile_total{result="complete"}'
    assert scrape(node)[series] >= before[series] + 2


def test_attachments_under_way_are_counted(node: Node, make: Callable[[], Space]) -> None:
    assert scrape(node)["zlayer_cni_attachments_unfinished"] == 0
    ended = threading.Event()

    def attach(name: str, space: Space) -> None:
        while not ended.is_set():
            call(node, "ADD", name, space)
            call(node, "DEL", name, space)

    threads = [threading.Thread(target=attach, args=(f"busy{n}", make())) for n in range(4)]
    for thread in threads:
        thread.start()
    try:
        assert until(lambda: scrape(node)["zlayer_cni_attachments_unfinished"] > 0, 20)
    finally:
        ended.set()
        for thread in threads:
            thread.join(20)
    assert until(lambda: scrape(node)["zlayer_cni_attachments_unfinished"] == 0, 5)


def test_a_part_that_cannot_be_read_is_told(node: Node) -> None:
    """The other parts are served."""
    queue, aside = Path(node.run_dir, "deletions"), Path(node.run_dir, "aside")
    queue.rename(aside)
    queue.touch()
    try:
        found = scrape(node)
    finally:
        queue.unlink()
        aside.rename(queue)
    assert found['zlayer_cni_scrape_failed{part="queue"}'] == 1
    assert "zlayer_cni_delete_queue" not in found
    assert found["zlayer_cni_fence_in_force"] == 1
    assert 'zlayer_cni_scrape_failed{part="queue"}' not in scrape(node)


def test_a_queued_deletion_is_counted(node: Node) -> None:
    """A file that cannot be read as a request is removed by the next look."""
    directory = Path(node.run_dir, "deletions")
    (directory / ("0" * 32)).write_bytes(b"x")
    assert scrape(node)["zlayer_cni_delete_queue"] == 1
    assert until(lambda: scrape(node)["zlayer_cni_delete_queue"] == 0, 25)


def test_the_address_serves_the_same(node: Node) -> None:
    def get(request: bytes) -> bytes:
        with node.host.inside(lambda: socket.create_connection(("127.0.0.1", 9472), 10)) as sock:
            sock.sendall(request)
            data = b""
            while chunk := sock.recv(1 << 16):
                data += chunk
        return data

    assert b"\nzlayer_cni_info{" in get(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert get(b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404")
    assert get(b"HEAD /metrics HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")
    assert get(b"GET /metrics HTTP/1.1\r\n" + b"x" * 9000 + b"\r\n\r\n") == b""
    with knock(node.outside, LAN4, 9472, socket.SOCK_STREAM, None) as sock:
        assert until(lambda: sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == REFUSED, 5)


def test_the_socket_is_for_root_and_comes_back(node: Node) -> None:
    path = Path(node.run_dir, "metrics.sock")
    assert path.stat().st_mode & 0o777 == 0o660
    path.unlink()
    assert until(path.exists, 5)
    assert scrape(node)["zlayer_cni_fence_in_force"] == 1


def test_a_taken_port_is_a_problem_and_nothing_else(tmp_path: Path) -> None:
    with toolnode.spaces() as maker:
        made = Node(tmp_path, maker(), maker())
        made.settings += 'metrics: {listen: "127.0.0.1:9472"}\n'
        with made.host.inside(lambda: socket.create_server(("127.0.0.1", 9472))):
            try:
                made.host.ip("link set lo up")
                made.start()
                problems = made.ask("status")["problem_details"]
                assert [problem["code"] for problem in problems if problem["code"] != "node-setting"] == [
                    "metrics-closed"
                ]
                assert "127.0.0.1:9472" in problems[0]["text"]
                assert scrape(made)['zlayer_cni_problem{code="metrics-closed",severity="warning"}'] == 1
            finally:
                made.close()


def test_a_scrape_of_2000_attachments_takes_less_than_100_ms(tmp_path: Path) -> None:
    with toolnode.spaces() as maker:
        made = Node(tmp_path, maker(), maker())
        try:
            made.start()
            space = maker()
            for n in range(MANY):
                if n % 50 == 0:
                    space = maker()
                more = {"service": f"s{n % SERVICES}", "isolationNetwork": f"n{n % 100}"}
                code, out = call(made, "ADD", f"c{n}/eth{n % 50}", space, **more)
                assert code == 0, out
            scrape(made)  # the first one imports the library
            seconds = []
            for _ in range(10):
                began = time.monotonic()
                found = scrape(made)
                seconds.append(time.monotonic() - began)
            assert sum(value for series, value in found.items() if series.startswith("zlayer_cni_attachments{")) == MANY

            assert statistics.median(seconds) < 0.1
        finally:
            made.close()


def test_no_daemon_is_told(tmp_path: Path) -> None:
    from cni.cli.ask import NoDaemon

    with pytest.raises(NoDaemon):
        metrics.scrape(str(tmp_path / "metrics.sock"))
    assert os.geteuid() == 0


def test_what_is_counted_and_told_costs_an_add_less_than_a_twentieth(node: Node, make: Callable[[], Space]) -> None:
    """The work that an ADD does for metrics, events and the log's repeats, beside what an ADD takes in the daemon."""
    spaces = [make() for _ in range(20)]
    for n, space in enumerate(spaces):
        assert call(node, "ADD", f"cost{n}", space)[0] == 0
    found = scrape(node)
    labels = '{code="0",verb="ADD"}'
    add = found[f"zlayer_cni_call_seconds_sum{labels}"] / found[f"zlayer_cni_call_seconds_count{labels}"]

    times, stream, counters, repeats, events = CallTimes(), EventStream(), Counters(), Repeats(), Events()
    events.subscribe(ProblemBegan, stream.on_event)
    events.subscribe(ProblemBegan, counters.on_problem)
    event, seconds = ProblemBegan(Problem("disk-full", "x")), []
    for _ in range(5):
        began = time.perf_counter()
        for n in range(1000):
            times.note("ADD", 0.003, 0)
            events.publish(event)
            repeats.due(float(n))
            repeats.writes(("cni.daemon.call_log", 20, f"verb=ADD attachment=c{n}/eth0"), float(n))
        seconds.append((time.perf_counter() - began) / 1000)
    assert min(seconds) < add / 20, f"{min(seconds) * 1e6:.1f} us of {add * 1e3:.1f} ms"
