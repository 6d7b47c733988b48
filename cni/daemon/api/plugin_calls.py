"""Carries out the calls of plugins: ADD, DEL, CHECK, GC, STATUS."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping

from cni import answers, plugin_protocol, tempdir_sweeper, verbs
from cni.daemon import call_log
from cni.daemon.api.cni_socket import CniRequest, Reply
from cni.daemon.attachments.overlay import NodeOverlay
from cni.daemon.call_times import CallTimes, code_of
from cni.daemon.events import CallFailed, Events
from cni.errors import InvalidConfig
from cni.host import netns
from cni.host.process_exit import ExitWatcher

LOGGED = ("ADD", "DEL", "CHECK")


class PluginCalls:
    """Answers plugins. Thread-safe."""

    def __init__(
        self, overlay: NodeOverlay, own: netns.NetnsId, exit_watcher: ExitWatcher, times: CallTimes, events: Events
    ) -> None:
        """`own`: the daemon's network namespace."""
        self._overlay, self._own, self._exit_watcher = overlay, own, exit_watcher
        self._times, self._events = times, events
        self._counts = {"launcher": 0, "python": 0}
        self._counting = threading.Lock()

    def answer(self, request: CniRequest) -> Reply:
        """Carry out one call. Never raises."""
        began, verb = time.monotonic(), request.env.get("CNI_COMMAND", "")
        with self._counting:
            self._counts["launcher" if plugin_protocol.LAUNCHER in request.env else "python"] += 1
        tempdir_sweeper.note(request.env.get(plugin_protocol.EXTRACTION, ""))
        result = self._serve(request)
        if verb == "ADD" and result.code == 0:
            self._watch_plugin_exit(request)
        seconds, code = time.monotonic() - began, code_of(result.error)
        self._times.note(verb, seconds, code)
        if result.error is not None:
            self._events.publish(CallFailed(verb, result.facts, code, result.error.msg))
        if verb in LOGGED:
            call_log.write("cni", verb, result.facts, seconds, result.error)
        return Reply(result.code, result.stdout.encode(), result.stderr.encode("utf-8", "replace"))

    def _serve(self, request: CniRequest) -> verbs.PluginOutput:
        refusal = netns_mismatch(request.env, self._own)
        if refusal is not None:
            return verbs.refused(refusal, request.stdin, verbs.facts_of(request.env))
        return verbs.serve(request.env, request.stdin, request.netns_fd, self._overlay, request.caller_waits)

    def counts(self) -> answers.Calls:
        """The calls so far, by what sent them."""
        with self._counting:
            return answers.Calls(**self._counts)

    def undo(self, attempt: str) -> None:
        """Undo the ADD of that attempt: its plugin was killed before the runtime had the result. Never raises."""
        self._overlay.undo_attempt(attempt)

    def _watch_plugin_exit(self, request: CniRequest) -> None:
        """Undo the ADD if its plugin process exits with an error.

        An ADD succeeds only if the process that the runtime started exits with 0. A plugin that was killed after it
        printed its result has failed, and the runtime need not call DEL (CNI 1.1.0, section 2).
        """
        pid, _, started = request.env.get(plugin_protocol.RUNTIME_PROCESS, "").partition(":")
        if pid.isdigit() and started.isdigit() and int(started):
            attempt = request.env.get(plugin_protocol.ATTEMPT, "")
            self._exit_watcher.watch(int(pid), int(started), lambda: self.undo(attempt))


def netns_mismatch(env: Mapping[str, str], own: netns.NetnsId) -> InvalidConfig | None:
    """The error (7) for a call whose plugin runs in another network namespace than this daemon: the container would be
    attached to the daemon's network, not to its runtime's. None for a call from the daemon's own namespace, from a
    plugin that could not determine its namespace, and for DEL, which only removes. Pure."""
    plugin_netns = env.get(plugin_protocol.OWN_NETNS, "")
    if plugin_netns in ("", f"{own.dev}:{own.ino}") or env.get("CNI_COMMAND") == "DEL":
        return None
    return InvalidConfig(
        f"the plugin runs in the network namespace net:[{plugin_netns.partition(':')[2]}], the overlay daemon in "
        f"net:[{own.ino}] (process {os.getpid()}): a container would be attached to another host's network",
        "run both in one network namespace, or set runDir and dataDir to those of a daemon in the plugin's",
    )
