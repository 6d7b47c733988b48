"""A packet that network policies drop: `drops`, `why`, `networks` and the metrics name the policies."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.eyes.calls import scrape
from tests.kernel.test_policy import HEAD, WEB, becomes, policies
from tests.kernel.toolnode import Node, knock, running, until

pytestmark = pytest.mark.root
ALSO = HEAD % "also" + "{podSelector: {matchLabels: {zlayer.io/service: web}}}"
RULE = "ingress: net/also, net/web"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    (tmp_path / "policies").mkdir()
    containers: dict[str, tuple[str, str | None]] = {"web": ("web", None), "other": ("db", None)}
    with running(tmp_path, containers, settings=f"policies: {tmp_path}/policies\n") as made:
        yield made


def test_a_packet_that_policies_drop_names_them(node: Node) -> None:
    policies(node, web=WEB, also=ALSO)
    assert becomes(node, "other", "web", 81, False)
    words = ("drops", "--follow", "--json", "--run-dir", node.run_dir)
    with node.program(*words, stdout=subprocess.PIPE) as reader:
        try:
            assert until(lambda: f"/{RULE}" in node.host.nft("list ruleset"), 10)
            with knock(node.boxes["other"], node.address("web"), 81, socket.SOCK_DGRAM, None):
                assert reader.stdout is not None
                line = json.loads(reader.stdout.readline())
        finally:
            reader.terminate()
    assert (line["rule"], line["destination"], line["destination_port"]) == (RULE, node.address("web"), 81)
    (path,) = (path for path in node.why("other", "web", "81/udp")["paths"] if path["family"] == 4)
    assert (path["rule"]["name"], path["rule"]["chain"]) == (RULE, line["chain"])
    assert "net/also, net/web" in path["reason"]
    (counted,) = [drop for drop in node.ask("networks")["drops"] if drop["rule"] == RULE]
    assert counted["packets"] == node.drops(path["rule"]) > 0
    assert scrape(node)[f'zlayer_cni_fence_drops_total{{network="-",rule="{RULE}"}}'] > 0
