"""The Windows containers that one manager has attached with `autoclean`: namespace GUID to service and address."""

import logging
import re
import threading

log = logging.getLogger("cni.overlay")

_GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII | re.IGNORECASE)


def canonical_guid(text: str) -> str:
    """`text` in lower case. Raises ValueError unless it is a bare GUID: 32 hex digits in groups of 8-4-4-4-12."""
    if not _GUID.fullmatch(text):
        raise ValueError(f"not a namespace GUID: {text!r}")
    return text.lower()


class HcnAttachments:
    """Which namespaces are still attached. The daemon owns them; this is the caller's list.

    A handle that is no GUID is logged and not kept, as in ZLayer's client. Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, str]] = {}

    def add(self, guid: str, service: str, ip: str) -> None:
        """Keep a namespace."""
        try:
            key = canonical_guid(guid)
        except ValueError as e:
            log.warning("attach_container_hcn: %s; it is not kept for cleaning up", e)
            return
        with self._lock:
            self._held[key] = (service, ip)

    def remove(self, guid: str) -> None:
        """Drop a namespace; an unknown one is fine."""
        try:
            key = canonical_guid(guid)
        except ValueError as e:
            log.warning("detach_container_hcn: %s; nothing is kept under it", e)
            return
        with self._lock:
            self._held.pop(key, None)

    def clear(self) -> None:
        """Drop all."""
        with self._lock:
            self._held.clear()

    def snapshot(self) -> dict[str, tuple[str, str]]:
        """A copy: GUID, in lower case, to (service, address)."""
        with self._lock:
            return dict(self._held)
