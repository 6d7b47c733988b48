"""Attaches by the overlay socket on the fake kernel, beside calls of other connections."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon.events import AttachmentGone, AttachmentLive
from cni.daemon.model.records import Attachment
from cni.daemon.operations import OperationContext, containers
from cni.host import process
from cni.overlay import wire
from tests.fakes.node import NOTHING, Node

PID, NETNS_FD = 4711, 777
KEY = (containers.NETWORK, str(PID), containers.IFNAME)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    made = Node(tmp_path / "state.db")
    made.kernel.space(NETNS_FD)
    with (tmp_path / "netns").open("w+") as namespace:
        # The kernel is the fake one, and so is the process: each `open_netns` opens one namespace at one number.
        monkeypatch.setattr(process, "open_netns", lambda pid: (os.dup2(namespace.fileno(), NETNS_FD), 1))
        yield made
    made.close()


@pytest.fixture
def context(node: Node) -> OperationContext:
    made = node.operations()
    node.segments.ensure("web", "auto", keep=True)
    return made


def attach(context: OperationContext, *, ephemeral: bool) -> wire.Attached:
    return containers.attach(
        wire.LinuxPid(PID), wire.AttachContainer(wire.LinuxPid(PID), "web", False, ephemeral), context
    )


def test_the_most_recent_attach_decides_whether_a_container_is_ephemeral(node: Node, context: OperationContext) -> None:
    first = attach(context, ephemeral=False)
    for ephemeral in (True, False, True):
        assert attach(context, ephemeral=ephemeral) == first
        assert node.state.attachments[KEY].ephemeral is ephemeral
    assert len(node.kernel.veths()) == 1


def test_the_other_parts_hear_of_a_container_that_an_agent_attaches(node: Node, context: OperationContext) -> None:
    heard: list[tuple[str, Attachment]] = []
    node.base.events.subscribe(AttachmentLive, lambda event: heard.append(("live", event.attachment)))
    node.base.events.subscribe(AttachmentGone, lambda event: heard.append(("gone", event.attachment)))
    attach(context, ephemeral=False)
    (live,) = node.state.snapshot()
    attach(context, ephemeral=False)  # the same attachment
    containers.detach(wire.LinuxPid(PID), context)
    assert heard == [("live", live), ("gone", live)]


def test_a_second_attach_does_not_bring_back_what_another_connection_tears_down(
    node: Node, context: OperationContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service is torn down at the moment at which the second attach writes the record. Whatever comes first, the
    record ends with the link and the fence's elements."""
    attach(context, ephemeral=False)
    save = node.state.save
    others: list[threading.Thread] = []

    def save_beside_a_teardown(attachment: Attachment) -> None:
        if not others:
            others.append(threading.Thread(target=node.attacher.detach, args=(attachment.key,)))
            others[0].start()
            others[0].join(0.3)  # it ends now only if this thread does not hold the attachment's lock
        save(attachment)

    monkeypatch.setattr(node.state, "save", save_beside_a_teardown)
    attach(context, ephemeral=True)
    others[0].join(10)
    assert not others[0].is_alive()
    assert node.left() == NOTHING
