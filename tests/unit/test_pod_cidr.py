"""The podCIDR of a Node as the pool: which are refused, and what a daemon starts with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cni.daemon.cluster.kubernetes.api_server import ApiServer
from cni.daemon.cluster.kubernetes.pod_cidr import pool_of, slice_of, with_pool
from cni.daemon.model.slots import part_of
from cni.daemon.settings import Cluster, Kubernetes, Settings
from cni.daemon.settings_file import SettingsFile
from cni.errors import InvalidConfig, TryAgainLater

CLUSTERS = ("10.200.0.0/16", "fd00:200::/48")


def test_the_podcidr_of_the_first_ip_version_is_the_pool() -> None:
    assert pool_of(["fd00:200:0:1::/64", "10.200.3.0/24"], CLUSTERS, "n") == "10.200.3.0/24"
    assert slice_of("10.200.3.0/24") == "10.200.3.0/26"
    assert part_of(CLUSTERS[0], "10.200.3.0/24") == "10.200.3.0/24"


@pytest.mark.parametrize(
    ("cidrs", "words"),
    [
        ([], ("n1", "IPv4", "--allocate-node-cidrs")),
        (["fd00:200:0:1::/64"], ("n1", "IPv4")),
        (["10.244.3.0/24"], ("10.244.3.0/24", "n1", "10.200.0.0/16")),
        (["10.0.0.0/8"], ("10.0.0.0/8", "not inside")),
        (["10.200.3.0/26"], ("10.200.3.0/26", "too small")),
    ],
)
def test_what_does_not_fit_the_overlay_is_refused_with_both(cidrs: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidConfig) as refused:
        pool_of(cidrs, CLUSTERS, "n1")
    assert all(word in f"{refused.value.msg} {refused.value.details}" for word in words)


@contextmanager
def api(spec: dict[str, Any]) -> Iterator[str]:
    """An HTTP server that answers with a Node of that spec; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"metadata": {"name": self.path.rpartition("/")[2]}, "spec": spec}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_start_without_the_api_server_takes_what_was_told_last(tmp_path: Path) -> None:
    with api({"podCIDR": "10.200.3.0/24", "podCIDRs": ["10.200.3.0/24"]}) as url:
        config = Kubernetes(server=url, pod_cidr=True)
        settings = Settings(data_dir=str(tmp_path / "data"), cluster=Cluster(kubernetes=config))
        running = with_pool(settings, "n1", ApiServer(config, lambda *_: None))
        assert (running.service_cidr, running.slice_cidr) == ("10.200.3.0/24", "10.200.3.0/26")
    assert with_pool(settings, "n1", ApiServer(config, lambda *_: None)) == running
    (tmp_path / "data/pod-cidrs.json").unlink()
    with pytest.raises(TryAgainLater, match="n1"):
        with_pool(settings, "n1", ApiServer(config, lambda *_: None))


def test_the_pool_counts_as_no_change_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "overlayd.yaml"
    path.write_text("cluster: {kubernetes: {server: 'http://192.0.2.1', pod_cidr: true}}\n")
    file = SettingsFile(str(path), str(tmp_path), {})
    with api({"podCIDR": "10.200.3.0/24"}) as url:
        running = with_pool(file.read(), "n1", ApiServer(Kubernetes(server=url), lambda *_: None))
    assert running.service_cidr == "10.200.3.0/24" and file.notes(running) == []


@pytest.mark.parametrize("line", ["service_cidr: 10.200.3.0/24", "slice_cidr: 10.200.3.0/26"])
def test_the_file_names_no_pool_of_its_own_besides(tmp_path: Path, line: str) -> None:
    path = tmp_path / "overlayd.yaml"
    path.write_text(f"cluster: {{kubernetes: {{pod_cidr: true}}}}\n{line}\n")
    with pytest.raises(InvalidConfig, match="pod_cidr"):
        SettingsFile(str(path), str(tmp_path), {}).read()


def test_a_machine_that_is_no_node_has_none(tmp_path: Path) -> None:
    path = tmp_path / "overlayd.yaml"
    path.write_text("cluster: {kubernetes: {pod_cidr: true, external_node: edge-1}}\n")
    with pytest.raises(InvalidConfig, match="podCIDR"):
        SettingsFile(str(path), str(tmp_path), {}).read()
