"""Releases what services no longer need: further subnets, subnets in the host's networks, and empty services."""

from __future__ import annotations

import ipaddress
import logging
import time

from cni.daemon.attachments.segments import Segments
from cni.daemon.attachments.service_limits import Idle
from cni.daemon.model.records import Service
from cni.daemon.state.state import State
from cni.errors import CniError
from cni.host.worker import beat

EMPTY = 60.0  # seconds that an empty service keeps its bridge, so that the service's next pod finds it

log = logging.getLogger(__name__)


class SegmentRelease:
    """Releases subnets and segments of one node."""

    def __init__(self, state: State, segments: Segments) -> None:
        self._state, self._segments = state, segments
        self._idle = Idle()
        self._empty_since: dict[str, float] = {}
        self._leaving: set[str] = set()  # ephemeral services that could not be taken down at once

    def release_unused(self, name: str, mode: str, ephemeral: bool) -> None:
        """After a detach: release the subnets, and the ephemeral service, that are no longer needed. A failure is
        logged and tried again at the next reconcile. Never raises OSError or CniError."""
        try:
            self.shrink(name, mode)
            if ephemeral or name in self._leaving:
                self.teardown_if_empty(name, mode)
            self._leaving.discard(name)
            self._idle.note(name, self._state.in_use(name), time.monotonic())
        except (OSError, CniError) as error:
            log.warning("service %s could not release what it no longer needs: %s", name, error)
            if ephemeral:
                self._leaving.add(name)

    def shrink(self, name: str, mode: str) -> None:
        """Release further subnets without an address in use, their gateways first. Raises OSError."""
        with self._segments.holding(name, mode) as segment:
            service = self._state.service(segment)
            if service is None or len(service.subnets) <= len(self._state.cidrs):
                return
            for subnet in self._state.idle_slots(segment):
                self._segments.withdraw(service, subnet)
                self._state.shrink_service(segment, [subnet])

    def shrink_all(self) -> None:
        """Release the subnets that services no longer need, for every service."""
        for service in self._state.services.values():
            beat()
            self.release_unused(service.name, service.mode, ephemeral=False)

    def vacate(self) -> None:
        """Release empty subnets in which no new address may be given out. A service without containers loses its bridge
        and subnets, and gets other subnets at its next attach."""
        for service in self._state.services.values():
            if self._is_usable(service):
                continue
            self.shrink(service.name, service.mode)
            with self._segments.holding(service.name, service.mode):
                current = self._state.service(service.name)
                if current is None or self._state.in_use(service.name) or self._is_usable(current):
                    continue
                self._segments.dismantle(service)
                self._state.empty_service(service.name)

    def _is_usable(self, service: Service) -> bool:
        return all(self._state.is_usable(ipaddress.ip_network(subnet)) for subnet in service.subnets)

    def release_idle(self, kept: int) -> int:
        """Tear down empty services that an ADD made, the longest empty first, until at most `kept` are left. Returns
        how many were torn down. The caller holds no segment's lock. Never raises: a service that fails stays."""
        released = 0
        for service in self._idle.over(self._state.idle_services(), kept):
            try:
                with self._segments.holding(service.name, service.mode):
                    if self._state.service(service.name) == service and not self._state.in_use(service.name):
                        self._segments.teardown(service.name)
                        released += 1
            except (OSError, CniError) as error:
                log.warning("the empty service %s could not give its subnet back: %s", service.name, error)
        if released:
            log.info("%d services without a container gave their subnets back", released)
        return released

    def release_empty(self, now: float) -> None:
        """Tear down services that an ADD made and that have had no user for `EMPTY` seconds. `now`: seconds of the
        monotonic clock. A service that an agent set up stays until an agent tears it down."""
        names = [service.name for service in self._state.idle_services()]
        self._empty_since = {name: self._empty_since.get(name, now) for name in names}
        for name, since in self._empty_since.items():
            if now - since >= EMPTY:
                beat()
                log.info("service %s has had no user for %g s: it gives its subnets back", name, EMPTY)
                self.teardown_if_empty(name, "auto")

    def teardown_if_empty(self, name: str, mode: str) -> None:
        """After an ephemeral attachment was removed: tear the service down if it has no user. The shared bridge
        stays."""
        if mode == "shared":
            return
        with self._segments.holding(name, mode):
            service = self._state.service(name)
            if service is not None and not self._state.in_use(name):
                self._segments.teardown(name)
