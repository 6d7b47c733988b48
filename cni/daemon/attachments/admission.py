"""The one call by which both sockets attach a container, with the limits that hold for both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from cni.daemon.attachments.attach import Attacher
from cni.daemon.attachments.request import AttachRequest
from cni.daemon.attachments.segment_release import SegmentRelease
from cni.daemon.attachments.service_limits import Rate
from cni.daemon.model.records import Attachment
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.errors import PoolExhausted, TryAgainLater


class Admission:
    """Admits attach requests of one node. Thread-safe."""

    def __init__(
        self,
        settings: Settings,
        state: State,
        attacher: Attacher,
        release: SegmentRelease,
        refuse: Callable[[], None],
    ) -> None:
        """`refuse` raises CniError while the node is not in service."""
        self._settings, self._state, self._attacher = settings, state, attacher
        self._release, self._refuse = release, refuse
        self._rate, self._rate_guard = Rate(settings.new_services_per_minute), threading.Lock()

    def attach(self, request: AttachRequest) -> Attachment:
        """Make the attachment. A new service counts against the limit of `request.asker`, and empty services give their
        subnets back for it.

        Raises InvalidConfig while the node is not in service, TryAgainLater if the asker made too many new services in
        this minute, and what `Attacher.attach` raises.
        """
        self._refuse()
        if request.mode != "shared" and self._state.service(request.service) is None:
            self._count_new_service(request.service, request.asker)
            self._release.release_idle(self._settings.idle_services)
        while True:
            try:
                return self._attacher.attach(request)
            except PoolExhausted:
                left = len(self._state.idle_services())
                if not left or not self._release.release_idle(left - 1):
                    raise

    def _count_new_service(self, service: str, asker: str) -> None:
        with self._rate_guard:
            seconds = self._rate.take(asker, time.monotonic())
        if seconds:
            askers = f"the pods of namespace {asker}" if asker else "containers"
            raise TryAgainLater(
                f"service {service} is new, and {askers} brought about {self._settings.new_services_per_minute} within "
                "a minute, which is the most (new_services_per_minute)",
                f"the next one is possible in {seconds:.1f} s",
            )
