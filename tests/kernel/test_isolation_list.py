"""`isolation` in a network list: open while a container of the list is attached, on this node, over a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from cni.cli import ask
from tests.chaos.machine import Machine, machine

from .test_routed import DUAL, Pod

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]
LISTED = {"reach": ["service/dns"], "from": ["service/monitor"]}


@pytest.fixture
def on() -> Iterator[Machine]:
    with machine("source", DUAL) as made:
        made.start_daemon()
        yield made


def _why(on: Machine, src: str, dst: str) -> Any:
    return json.loads(ask.request(str(on.run_dir), "why", {"SRC": src, "DST": dst, "PORT": ""}))


def test_a_list_opens_while_it_has_a_container(on: Machine) -> None:
    attach = os.environ.get("ZLAYER_TEST_ATTACH", "bridge")
    member = Pod(on, "m", service="vault", attach=attach, isolationNetwork="red")
    dns, monitor = (Pod(on, name, service=name, attach=attach) for name in ("dns", "monitor"))
    flows = [(member, dns), (monitor, member)]

    def opened() -> list[bool]:
        seen = [src.reaches(*dst.addresses, wait="0.3") for src, dst in flows]
        told = [_why(on, src.addresses[0], dst.addresses[0])["paths"][0]["allowed"] for src, dst in flows]
        assert told == seen, "what why tells"
        return seen

    assert opened() == [False, False]
    listed = [Pod(on, name, service="any", attach=attach, isolation=LISTED) for name in ("one", "two")]
    assert opened() == [True, True]
    assert not dns.reaches(*member.addresses, wait="0.3"), "the other way"
    late = Pod(on, "late", service="dns", attach=attach)
    assert member.reaches(*late.addresses), "a container of the service that comes later"
    listed[0].delete()
    assert opened() == [True, True]
    on.signal_daemon(signal.SIGKILL)
    on.start_daemon()
    assert opened() == [True, True], "by the records"
    listed[1].delete()
    assert opened() == [False, False]
    assert not member.reaches(*late.addresses, wait="0.3")
