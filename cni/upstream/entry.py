"""The entry point of the plugin in front of ZLayer's overlayd: carries out one call of the runtime in this process."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping

from cni import plugin_protocol, verbs
from cni.errors import CniError
from cni.host import netns
from cni.netconf.request import version_of
from cni.netconf.result import render_error
from cni.upstream.service import ForeignOverlay


def run_foreign(
    env: Mapping[bytes, bytes], stdin: bytes, socket: str, run_dir: str, seconds: float
) -> tuple[int, bytes, bytes]:
    """Serve the call; returns exit code, stdout, stderr. Never raises a CniError: it is rendered.

    `env` are the CNI_* variables as set by the runtime, `socket` is the daemon's socket, `run_dir` the directory of the
    records, `seconds` the time that is left for the verb.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="zlayer-cni: %(message)s")
    logging.getLogger("cni.overlay").setLevel(logging.ERROR)
    call = {os.fsdecode(key): os.fsdecode(value) for key, value in env.items()}
    fd, more = open_netns(call.get("CNI_NETNS", ""))
    try:
        overlay = ForeignOverlay(socket, run_dir, seconds)
        spoken = verbs.serve({**call, **more}, stdin, fd, overlay, runtime_waits())
    except CniError as error:
        return 1, (render_error(error, version_of(stdin)) + "\n").encode(), b""
    finally:
        if fd is not None:
            os.close(fd)
    return spoken.code, spoken.stdout.encode(), spoken.stderr.encode("utf-8", "replace")


def open_netns(path: str) -> tuple[int | None, dict[str, str]]:
    """A descriptor of the container's namespace, and the variables that the verbs read about it: the error of opening
    it, and the plugin's own namespace (`cni/verbs.py`, `_target`)."""
    own = netns.own()
    more = {plugin_protocol.OWN_NETNS: f"{own.dev}:{own.ino}"}
    if not path:
        return None, more
    try:
        return netns.open_path(path), more
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or 22
        return None, {**more, plugin_protocol.NETNS_ERROR: errno.errorcode.get(number, "EINVAL")}


def runtime_waits() -> Callable[[], bool]:
    """Returns a function: whether the runtime still waits. In the single file the runtime started (and kills) the
    parent of this process."""
    parent = os.environ.get("ZLAYER_CNI_PARENT", "")
    return lambda: not parent.isdigit() or os.getppid() == int(parent)
