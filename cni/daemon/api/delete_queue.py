"""Carries out the deletions that plugins queued while no daemon answered: before the sockets open, and at every
reconcile (a daemon that was stopped with SIGSTOP finds them at the next one)."""

from __future__ import annotations

import json
import logging

from cni import plugin_protocol, proc
from cni.daemon.api import cni_socket
from cni.daemon.state.state import State
from cni.plugin import delete_queue

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds to wait for plugins that are writing to the queue


def drain(run_dir: str, state: State, handler: cni_socket.Handler) -> None:
    """Carry out the queued deletions. A deletion that failed and may succeed later stays queued; a void or unreadable
    deletion is removed."""
    with delete_queue.Lock(run_dir, whole=True, patience=PATIENCE) as lock:
        if not lock.held:
            return
        delete_queue.sweep(run_dir)
        for name, body in delete_queue.entries(run_dir):
            request = cni_socket.parse(body, None, lambda: True)
            if request is not None and not _is_void(request, state):
                reply = handler(request)
                if reply.code:
                    log.warning("queued deletion %s: %s", name, reply.stdout.decode("utf-8", "replace").strip())
                    if _may_pass(reply.stdout):
                        continue
            delete_queue.remove(run_dir, name)


def _may_pass(stdout: bytes) -> bool:
    """Whether the same deletion could succeed later; a malformed request cannot."""
    try:
        code = json.loads(stdout)["code"]
    except (ValueError, KeyError, TypeError):
        return False
    return code not in delete_queue.PERMANENT_ERRORS


def _is_void(request: cni_socket.CniRequest, state: State) -> bool:
    """Whether a deletion is from another boot, or older than the attachment that has its key now."""
    boot = proc.boot_id()
    if request.env.get(plugin_protocol.BOOT_ID, boot) != boot:
        return True
    queued = request.env.get(plugin_protocol.QUEUED_NS, "")
    if not queued.isdigit():
        return False
    attachment_id = (request.env.get("CNI_CONTAINERID", ""), request.env.get("CNI_IFNAME", ""))
    newer = [a for a in state.snapshot() if (a.container, a.ifname) == attachment_id and a.made_at > int(queued) / 1e9]
    return bool(newer)
