"""The metrics as text, from values: names, labels, bounds; and the HTTP around them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from cni import answers
from cni.daemon.call_times import BOUNDS, CallTimes
from cni.daemon.metrics import endpoint, families, kinds, node
from cni.daemon.metrics.path_bytes import PathBytes
from cni.daemon.metrics.reading import Process, Reading
from cni.daemon.model import usage
from cni.daemon.model.records import Service
from cni.problems import Problem

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/metrics.md").read_text("utf-8")
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def peer(name: str, key: str = KEY, **more: object) -> answers.Peer:
    values: dict[str, object] = {
        "device": "zl-g",
        "service": None,
        "name": name,
        "public_key": key,
        "endpoint": "192.0.2.7:51420",
        "configured_endpoints": ["192.0.2.7:51420"],
        "last_handshake_unix": 1700000000,
        "last_handshake_seconds_ago": 3.0,
        "alive": True,
        "direct": True,
        "rx_bytes": 10,
        "tx_bytes": 20,
        "allowed_ips": [],
        "keepalive": 25,
        "path_mtu": 1500,
        "on_device": True,
    }
    return answers.Peer(**{**values, **more})


def text_of(reading: Reading) -> str:
    return families.render(reading, "text/plain")[1].decode()


def samples(text: str) -> dict[str, float]:
    """Each series with its value."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            assert series not in found, series
            found[series] = float(value)
    return found


def test_the_page_has_a_row_for_each_metric() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
    wanted = [
        (kinds.PREFIX + kind.name, "histogram", ", ".join(f"`{label}`" for label in kind.labels) or "-", kind.text)
        for kind in node.HISTOGRAMS
    ]
    for several, prefix in ((families.METRICS, kinds.PREFIX), (node.PROCESS, "")):
        for kind in several:
            name = prefix + kind.name + ("_total" if kind.kind == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in kind.labels) or "-"
            wanted.append((name, kind.kind, labels, kind.text))
    assert sorted(rows) == sorted(wanted)


def test_a_reading_becomes_text() -> None:
    times = CallTimes()
    for seconds in (0.0004, 0.003, 60.0):
        times.note("ADD", seconds, 0)
    times.note("ADD", 0.5, 11)
    times.note("EXEC", 0.5, 4)
    reading = Reading(
        version="1.2.3",
        calls=times.read(),
        callers={"launcher": 3, "python": 2},
        attachments={"web": 2},
        usages=(usage.Usage("web", 4, 2, 1, 61),),
        spare_slots={4: 1000},
        queued=4,
        counts=Counter({"collected": 5, "reconciled": 7, "peer-health": 1}),
        fence_in_force=True,
        fence_repairs=2,
        drops={("red", "between networks"): (3, 180), ("-", "foreign MAC"): (1, 60), ("", "between networks"): (0, 0)},
        peers=(peer("b"),),
        peer_bytes=PathBytes().note((peer("b"),)),
        store_up=False,
        problems=(Problem("store-unreachable", "x"), Problem("store-unreachable", "y")),
        process=Process(1.5, 1 << 20, 40, 1700000000.5),
        failed=("peers",),
    )
    found = samples(text_of(reading))
    expected = {
        'zlayer_cni_info{version="1.2.3"}': 1,
        'zlayer_cni_call_seconds_bucket{code="0",le="0.001",verb="ADD"}': 1,
        'zlayer_cni_call_seconds_bucket{code="0",le="0.005",verb="ADD"}': 2,
        'zlayer_cni_call_seconds_bucket{code="0",le="10.0",verb="ADD"}': 2,
        'zlayer_cni_call_seconds_bucket{code="0",le="+Inf",verb="ADD"}': 3,
        'zlayer_cni_call_seconds_count{code="11",verb="ADD"}': 1,
        'zlayer_cni_call_seconds_sum{code="11",verb="ADD"}': 0.5,
        'zlayer_cni_call_seconds_count{code="4",verb="other"}': 1,
        'zlayer_cni_calls_by_form_total{form="launcher"}': 3,
        'zlayer_cni_attachments{service="web"}': 2,
        'zlayer_cni_addresses{family="4",service="web",state="used"}': 2,
        'zlayer_cni_addresses{family="4",service="web",state="cooling"}': 1,
        'zlayer_cni_addresses{family="4",service="web",state="free"}': 58,
        'zlayer_cni_subnets_free{family="4"}': 1000,
        "zlayer_cni_delete_queue": 4,
        "zlayer_cni_gc_freed_total": 5,
        'zlayer_cni_reconcile_total{result="complete"}': 7,
        "zlayer_cni_fence_in_force": 1,
        "zlayer_cni_fence_mended_total": 2,
        'zlayer_cni_fence_drops_total{network="red",rule="between networks"}': 3,
        'zlayer_cni_fence_drop_bytes_total{network="-",rule="foreign MAC"}': 60,
        'zlayer_cni_peer_handshake_timestamp_seconds{peer="b"}': 1700000000,
        'zlayer_cni_peer_bytes_total{direction="received",path="direct",peer="b"}': 10,
        'zlayer_cni_peer_path{path="direct",peer="b"}': 1,
        'zlayer_cni_path_changes_total{change="health"}': 1,
        "zlayer_cni_store_up": 0,
        'zlayer_cni_problem{code="store-unreachable",severity="warning"}': 1,
        "process_cpu_seconds_total": 1.5,
        'zlayer_cni_scrape_failed{part="peers"}': 1,
    }
    by_sorted = {_sorted(series): value for series, value in found.items()}
    assert {series: by_sorted.get(_sorted(series)) for series in expected} == {
        series: pytest.approx(value) for series, value in expected.items()
    }


def _sorted(series: str) -> tuple[str, ...]:
    name, _, labels = series.partition("{")
    return (name, *sorted(re.findall(r'\w+="[^"]*"', labels)))


def test_labels_are_bounded() -> None:
    many = 2 * kinds.MOST
    reading = Reading(
        attachments={f"s{n}": n + 1 for n in range(many)},
        usages=tuple(usage.Usage(f"s{n}", 4, n, 0, 61) for n in range(many)),
        drops={(f"n{n}", "between networks"): (n, n) for n in range(many)},
        peers=tuple(peer(f"p{n}", f"{n:044}", rx_bytes=n) for n in range(many)),
    )
    found = samples(text_of(reading))
    counts = Counter(series.partition("{")[0] for series in found)
    assert counts["zlayer_cni_attachments"] == kinds.MOST + 1
    assert found['zlayer_cni_attachments{service="other"}'] == sum(range(1, kinds.MOST + 1))
    assert counts["zlayer_cni_addresses"] == 3 * (kinds.MOST + 1)
    assert counts["zlayer_cni_fence_drops_total"] == kinds.MOST + 1
    assert counts["zlayer_cni_peer_path"] == kinds.MOST
    assert sum(v for s, v in found.items() if s.startswith("zlayer_cni_fence_drops_total")) == sum(range(many))
    assert not re.search(r"192\.0\.2|51420", text_of(reading)), "no endpoint is a label"


def test_peers_of_one_name_are_told_apart() -> None:
    keys = ("a" * 43 + "=", "b" * 43 + "=", "c" * 43 + "=")
    reading = Reading(peers=(peer("x", keys[0]), peer("x", keys[1]), peer("", keys[2], alive=False)))
    paths = [series for series in samples(text_of(reading)) if series.startswith("zlayer_cni_peer_path{")]
    assert sorted(paths) == [
        'zlayer_cni_peer_path{path="direct",peer="x aaaaaaaaaa"}',
        'zlayer_cni_peer_path{path="direct",peer="x bbbbbbbbbb"}',
        'zlayer_cni_peer_path{path="none",peer="cccccccccc"}',
    ]


def test_bytes_count_for_the_path_on_which_they_passed() -> None:
    divided = PathBytes()
    divided.note((peer("b", rx_bytes=10, tx_bytes=20),))
    found = divided.note((peer("b", rx_bytes=15, tx_bytes=20, path="relayed"),))
    key = peer("b").public_key
    assert found == {(key, "direct"): {"received": 10, "sent": 20}, (key, "relayed"): {"received": 5, "sent": 0}}
    found = divided.note((peer("b", rx_bytes=3, tx_bytes=0, path="relayed"),))  # added to the device again
    assert found[key, "relayed"] == {"received": 8, "sent": 0}
    assert divided.note(()) == {}


def test_every_metric_has_a_test_that_makes_it_move() -> None:
    """A test of a running daemon names it: in the part eyes, or where the thing itself is tested."""
    sources = "".join(
        path.read_text("utf-8")
        for part in ("eyes", "nat", "mesh")
        for path in (ROOT / "tests" / part).glob("test_*.py")
    )
    names = [kind.name for kind in (*families.METRICS, *node.HISTOGRAMS)]
    assert [name for name in names if not re.search(rf"zlayer_cni_{name}(_total|_count|_bucket)?\b", sources)] == []


def test_openmetrics_is_served_to_a_client_that_asks_for_it() -> None:
    content_type, body = families.render(Reading(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_a_duration_is_counted_at_its_bound() -> None:
    times = CallTimes()
    for bound in BOUNDS:
        times.note("DEL", bound, 0)
    assert times.read()["DEL", "0"].counts == (*[1] * len(BOUNDS), 0)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x", None),
        (b"HEAD /metrics?x=1 HTTP/1.0", None),
        (b"GET / HTTP/1.1", "404"),
        (b"POST /metrics HTTP/1.1", "405"),
        (b"\x16\x03\x01", "400"),
        (b"GET /metrics", "400"),
    ],
)
def test_requests(raw: bytes, status: str | None) -> None:
    refused = endpoint.refusal(endpoint.parse(raw))
    assert (refused and refused[0].partition(" ")[0]) == status


def test_an_answer_is_whole() -> None:
    raw = endpoint.answer("200 OK", "text/plain", b"abc")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert (b"Content-Length: 3" in head, body) == (True, b"abc")
    assert endpoint.answer("200 OK", "text/plain", b"abc", with_body=False).endswith(b"\r\n\r\n")


# --- the addresses that are counted ---------------------------------------------------------------------------------


def view(used: int, cooling: int = 0, spare: int = 0, subnets: tuple[str, ...] = ("10.9.0.64/26",)) -> usage.PoolView:
    import ipaddress

    service = Service(name="web", mode="auto", bridge="zl-web-b", subnets=subnets)
    hosts = [ipaddress.ip_address("10.9.0.66") + n for n in range(used + cooling)]
    return usage.PoolView((service,), tuple(hosts[:used]), tuple(hosts[used:]), {4: spare})


def test_usage_counts_the_subnets_of_a_service() -> None:
    (found,) = usage.usages(view(10, 5))
    assert (found.used, found.cooling, found.free, found.capacity) == (10, 5, 46, 61)


def test_addresses_run_out_at_80_percent_of_all_that_the_service_could_have() -> None:
    assert usage.running_out(usage.usages(view(48)), {4: 0}) == {}
    assert usage.running_out(usage.usages(view(49)), {4: 1}) == {}
    ((subject, text),) = usage.running_out(usage.usages(view(45, 4)), {4: 0}).items()
    assert subject == "web 4"
    assert text == (
        "service web has taken 49 of 61 IPv4 addresses, 4 of them cooling down (80%), and this node can get no further"
        " subnets"
    )
