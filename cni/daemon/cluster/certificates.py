"""The TLS context for the store, made from the certificate files and made again when a file's content changes.

The content is compared, not its time: a renewal may replace a file, write it in place, or swap a symbolic link above it
(as Kubernetes does). Files that do not belong together, as in the middle of a renewal, leave the last good context in
use and are a problem.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cni.daemon.cluster.store import UNAUTHENTICATED, StoreError

if TYPE_CHECKING:
    import ssl

READS = 3  # attempts to load files that change while they are loaded


class Certificates:
    """The certificate files of one node. Thread-safe."""

    def __init__(self, files: Mapping[str, str], server: str, note: Callable[[str, str], None]) -> None:
        """`files`: the paths of `ca_file`, `cert_file` and `key_file`, each empty if there is none; `server`: whose
        they are, in a sentence; `note`: sets the problem of a code to a text, or clears it with an empty text."""
        self._files, self._server = files, server
        self._note = note
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._loaded = b""  # the digest of the files that `_context` was made from
        self._refused = b""  # the digest of the files that were last found unusable
        self._reason = ""

    def context(self) -> ssl.SSLContext:
        """The context for a new connection. Raises StoreError if the files cannot be used and never could."""
        with self._lock:
            digest = self._digest()
            if self._context is None or digest not in (self._loaded, self._refused):
                self._load(digest)
            elif digest == self._loaded:
                self._refused = b""
                self._note("store-certificates", "")
            if self._context is None:
                raise StoreError(UNAUTHENTICATED, self._reason)
            return self._context

    def look(self) -> None:
        """Load files that have changed, so that unusable ones are a problem before a connection needs them."""
        if any(self._files.values()):
            with contextlib.suppress(StoreError):  # `context` has noted the problem
                self.context()

    def _load(self, digest: bytes) -> None:
        import ssl

        for _ in range(READS):
            try:
                context = ssl.create_default_context(cafile=self._files["ca_file"] or None)
                if self._files["cert_file"]:
                    context.load_cert_chain(self._files["cert_file"], self._files["key_file"] or None)
            except (OSError, ssl.SSLError) as error:
                fault = str(error) or type(error).__name__
            else:
                fault = ""
            before, digest = digest, self._digest()
            if before == digest:
                break
        else:
            fault = fault or "the files change while they are read"
        if not fault:
            self._context, self._loaded, self._refused = context, digest, b""
            self._note("store-certificates", "")
            return
        names = ", ".join(f"{key} {path}" for key, path in self._files.items() if path)
        goes_on = "" if self._context is None else "; connections are made with those read before"
        self._refused, self._reason = digest, f"cannot use the certificates for {self._server} ({names}): {fault}"
        self._note("store-certificates", f"{self._reason}{goes_on}")

    def _digest(self) -> bytes:
        """A digest of the files' present content; a file that cannot be read has the error instead of the content."""
        digest = hashlib.sha256()
        for path in filter(None, self._files.values()):
            try:
                content = Path(path).read_bytes()
            except OSError as error:
                content = str(error).encode()
            digest.update(b"%d " % len(content) + content)
        return digest.digest()
