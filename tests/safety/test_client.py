"""The Python client in front of the frozen program: each of its public names, and the examples of docs/protocol.md."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cni import naming
from cni.overlay.manager import OverlayManager
from tests.fakes.client_calls import CALLS, CLUSTER, PORT, SLICE, Stage, set_up
from tests.mesh.fleet import ROOT, Fleet, Node

PROGRAM = Path(os.environ.get("ZLAYER_PROGRAM", ROOT / "dist/zlayer-cni.d/zlayer-cni"))
PAGE = ROOT / "docs/protocol.md"


@contextlib.contextmanager
def one_node(tag: str) -> Iterator[Node]:
    """A node whose overlay an agent will set up."""
    fleet = Fleet(tag)
    try:
        node = fleet.node(1, start=False, slice_cidr=SLICE, address_cooldown=0)
        node.program = (str(PROGRAM),)
        node.start()
        yield node
    finally:
        fleet.clean()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One daemon for all calls, each of which leaves it as it was."""
    with one_node("sc") as node, tempfile.TemporaryDirectory() as empty:
        manager = OverlayManager("prod", "42", CLUSTER, SLICE, PORT, socket=node.socket)
        set_up(manager)
        yield Stage(
            manager, lambda: node.unattached().process.pid, Path(empty), naming.service_bridge("prod", "42", "web")
        )
        manager.close()


@pytest.mark.parametrize("name", CALLS)
def test_each_public_name_does_what_it_must(stage: Stage, name: str) -> None:
    call = CALLS[name]
    call.prepare(stage)
    call.run(stage)
    call.undo(stage)
    assert stage.manager.status().service_count == 2


def test_the_examples_of_the_protocol_page_run() -> None:
    """All of them, one after the other: what is printed is what their comments say."""
    script = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL))
    assert script.count("overlay.") > 10
    printed = io.StringIO()
    with one_node("se") as node, contextlib.redirect_stdout(printed):
        space: dict[str, Any] = {"pid": node.unattached().process.pid}
        exec(compile(script.replace("/var/run/zlayer-overlayd.sock", node.socket), str(PAGE), "exec"), space)
        status = space["overlay"].status()
        space["overlay"].close()
    told, refused, address = printed.getvalue().splitlines()
    assert told == "zl-prod-42-g 10.200.0.17"
    assert refused.startswith("no service bridge for service no-such-service; call ")
    assert address == "10.200.0.18"
    assert space["token"].startswith("zledge1.")
    assert (status.service_count, status.peer_count) == (2, 0)
