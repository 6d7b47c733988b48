"""A peer whose endpoint no node was told: the one that was learned of it outlives the engine and the daemon."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3

import pytest

from cni.daemon.precheck import STORE_NAME

from .fleet import Node, arrives, fleet, link, run, seconds_until, wait_for

pytestmark = pytest.mark.root


def records(node: Node) -> str:
    """What the node has recorded of its devices."""
    with contextlib.closing(sqlite3.connect(f"file:{node.directory}/run/{STORE_NAME}?mode=ro", uri=True)) as store:
        return str(store.execute("SELECT * FROM record WHERE kind = 'device'").fetchall())


def test_the_endpoint_of_a_peer_behind_a_nat_outlives_engine_and_daemon() -> None:
    with fleet("l") as made:
        public, hidden = made.node(1, start=False), made.node(2, start=False)
        link(public, hidden)
        for node in (public, hidden):
            node.settings["peers"][0]["keepalive"] = 25
        del public.settings["peers"][0]["endpoint"]
        public.start()
        hidden.start()
        here, there = public.container(), hidden.container()
        arrives(there, here)
        engine = public.engine()
        if not engine:
            pytest.skip("the kernel's engine cannot be killed")
        key = str(hidden.status().public_key)
        run("ip", "-n", public.name, "link", "add", "other0", "type", "bridge")  # causes a pass
        wait_for(lambda: hidden.underlay in records(public), "the endpoint is recorded", 20)
        for daemon_too in (False, True):
            wait_for(lambda: public.status().peer_count == 1, "the peer")
            os.kill(public.engine(), signal.SIGKILL)
            if daemon_too:
                public.end(signal.SIGKILL)
                public.start()
            wait_for(lambda before=engine: public.engine() not in (0, before), "another engine")  # type: ignore[misc]
            engine = public.engine()
            assert seconds_until(lambda: here.pings(there.address, wait=1), "the peer", 90) < 10
            assert f"{hidden.underlay}:" in public.wg("show", public.device, "endpoints").split(key)[1]
