"""How the plugin gets here: one call of the runtime, carried out in this process in front of a foreign overlayd."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Mapping

from cni import verbs
from cni.errors import CniError
from cni.host import netns
from cni.netconf.request import version_of
from cni.netconf.result import render_error
from cni.upstream.service import ForeignOverlay


def run_foreign(
    env: Mapping[bytes, bytes], stdin: bytes, socket: str, run_dir: str, seconds: float
) -> tuple[int, bytes, bytes]:
    """Serve the call: exit code, stdout, stderr. Never raises a CniError: it is rendered.

    `env` are the CNI_* variables as the runtime gave them, `socket` is where the daemon listens, `run_dir` where
    attachments are remembered, `seconds` what the verb may still take.
    """
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="zlayer-cni: %(message)s")
    logging.getLogger("cni.overlay").setLevel(logging.ERROR)
    call = {os.fsdecode(key): os.fsdecode(value) for key, value in env.items()}
    fd, more = open_netns(call.get("CNI_NETNS", ""))
    try:
        overlay = ForeignOverlay(socket, run_dir, seconds)
        spoken = verbs.serve({**call, **more}, stdin, fd, overlay, wanted())
    except CniError as error:
        return 1, (render_error(error, version_of(stdin)) + "\n").encode(), b""
    finally:
        if fd is not None:
            os.close(fd)
    return spoken.code, spoken.stdout.encode(), spoken.stderr.encode("utf-8", "replace")


def open_netns(path: str) -> tuple[int | None, dict[str, str]]:
    """The container's namespace, and the variables the verbs read beside it: what was wrong with it, and which is the
    plugin's own (`cni/verbs.py`, `_target`)."""
    own = netns.own()
    more = {"OWN_NETNS": f"{own.dev}:{own.ino}"}
    if not path:
        return None, more
    try:
        return netns.open_path(path), more
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or 22
        return None, {**more, "NETNS_ERROR": errno.errorcode.get(number, "EINVAL")}


def wanted() -> Callable[[], bool]:
    """Whether the runtime still waits. In the single file, what it started (and kills) is our parent."""
    parent = os.environ.get("ZLAYER_CNI_PARENT", "")
    return lambda: not parent.isdigit() or os.getppid() == int(parent)
