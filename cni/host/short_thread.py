"""A thread for one piece of work, with which changes to its namespace or its capabilities end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from cni.host import netns

T = TypeVar("T")


def in_thread(work: Callable[[], T], name: str | None = None) -> T:
    """Run `work` in a new thread called `name`, and wait for its end; returns its result. Raises what `work` raises."""
    done: list[T] = []
    failed: list[BaseException] = []

    def body() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=body, name=name)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def inside(fd: int, work: Callable[[], T]) -> T:
    """Run `work` in a new thread inside the network namespace `fd`; a socket that it opens stays there. Raises OSError
    if the namespace cannot be entered, and what `work` raises."""

    def body() -> T:
        with netns.entered(fd):
            return work()

    return in_thread(body)
