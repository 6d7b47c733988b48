"""nftables: carries out rules (text) and elements (values) as one transaction, and reads tables back.

`Nft` is libnftables by ctypes: nft(8)'s own library, 0.2 ms per call where starting the program costs 4 ms. Changes of
elements alone go to the kernel without it (nft_elements). The fence writes the texts; this module does not interpret
rules. It never runs `flush ruleset`: other tables belong to other programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cni.errors import FenceFailed
from cni.host import netns, nft_contents, nft_dump, nft_elements, nft_rules, nft_shape
from cni.host.nft_elements import Change

SONAME = "libnftables.so.1"
_HANDLE, _JSON_OUTPUT, _TERSE = 1 << 3, 1 << 4, 1 << 11  # NFT_CTX_OUTPUT_... (nftables/libnftables.h)


class NftError(FenceFailed):
    """The kernel or libnftables refused a text; `details` is its message. Nothing of the text was applied."""


class NftUnavailable(NftError):
    """libnftables cannot be loaded or initialized: no fence can be put in force on this machine."""


class Nft:
    """nftables of the constructing thread's network namespace, usable from any thread.

    Changes wait for changes and listings for listings, but neither waits for the other: a listing of a full fence takes
    a third of a second. Raises NftUnavailable if the library is missing.
    """

    def __init__(self) -> None:
        lib = _load()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._changing, self._reading = _Context(lib, self._home), _Context(lib, self._home)
        self._elements, self._elements_lock = nft_elements.Elements(), threading.Lock()
        self._dumper = nft_dump.Dumper()
        self._contents = nft_dump.Dumper()
        self._shapes = nft_shape.SetShapes(self._dumper)
        self._open = True

    def close(self) -> None:
        """Frees contexts and sockets. Idempotent."""
        with self._changing.lock, self._reading.lock, self._elements_lock:
            if self._open:
                self._open = False
                self._changing.free()
                self._reading.free()
                self._elements.close()
                self._dumper.close()
                self._contents.close()
                os.close(self._home)

    def run(self, *parts: str | Change) -> None:
        """Carries out the parts, in order, all or none; empty parts change nothing.

        If there is more than one part, an element that a change deletes must exist. Raises NftError with the refusal's
        text.
        """
        todo = [part for part in parts if part]
        if len(todo) == 1 and isinstance(todo[0], Change):
            self.apply(todo[0])
        elif todo:
            self._changing.call("".join(part.text() if isinstance(part, Change) else part for part in todo))

    def apply(self, change: Change) -> None:
        """Carries out a change of elements, all or none; an element that it deletes need not exist.

        A change with ranges goes through libnftables, which refuses to delete what does not exist. Raises NftError.
        """
        if change.has_ranges:
            self._changing.call(change.text())
        elif change:
            self._change(change)

    def absent(self, change: Change) -> list[str]:
        """The elements that `change` adds and that are not in force, as lines of nft's language; all of them if the
        table is missing.

        The cost does not depend on what else the tables hold. Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return list(map(change.adding, self._elements.missing(change.table, change.add)))
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def generation(self) -> int:
        """The number of nftables' last transaction, which any program's change increases; costs next to nothing.

        Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return self._elements.generation()
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def shape(self, table: str) -> tuple[bytes, ...] | None:
        """Which chains, rules and sets the tables of that name have; equal as long as every rule is unchanged.

        None while another program changes them. Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return self._shapes.shape(table)
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def rules(self, table: str) -> nft_rules.Tables | None:
        """The content of the tables of that name, of family inet and bridge: hooks, policies, the body of every rule.

        None while another program changes them. Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return nft_rules.read(self._dumper, table)
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def contents(self, table: str) -> nft_contents.Contents | None:
        """The elements of all sets of the tables of that name, of family inet and bridge, as the kernel encodes them.

        None while another program, or `apply`, changes them. Raises NftError.
        """
        with self._reading.lock:
            self._ensure_open()
            try:
                return nft_contents.read(self._contents, table)
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def list_set(self, kind: str, family: str, table: str, name: str) -> dict[str, Any] | None:
        """One set or map (`kind`) with its elements, as in libnftables-json(5); None if it does not exist. Raises
        NftError.
        """
        return self._list(f"list {kind} {family} {table} {name}")

    @property
    def portid(self) -> int:
        """The netlink port that changes of elements are sent from; their notifications carry it."""
        return self._elements.portid

    def refill(self, packed: Iterable[bytes]) -> None:
        """Adds all elements that `pack` packed, in one transaction; those that exist stay. Raises NftError."""
        with self._elements_lock:
            self._ensure_open()
            try:
                self._elements.refill(packed)
            except OSError as error:
                raise NftError("nftables refused elements", str(error)) from error

    def list_table(self, family: str, name: str, *, terse: bool = False) -> dict[str, Any] | None:
        """The table as in libnftables-json(5), including counters; None if it does not exist.

        `terse` omits the elements of sets. Raises NftError for any other refusal.
        """
        return self._list(f"list table {family} {name}", _TERSE if terse else 0)

    def list_base_chains(self) -> dict[str, Any]:
        """Every chain of every table on the machine (`list chains`), also of other programs. Raises NftError."""
        return self._list("list chains") or {"nftables": []}

    def list_chain(self, family: str, table: str, name: str) -> dict[str, Any] | None:
        """One chain with its rules, also of other programs; None if it does not exist. Raises NftError."""
        return self._list(f"list chain {family} {table} {name}", _TERSE)

    def rule_text(self, family: str, table: str, chain: str, handle: int) -> str:
        """A rule in nft's language, also of other programs; empty if it does not exist. Raises NftError."""
        answer = self._reading.call(f"list chain {family} {table} {chain}", _HANDLE | _TERSE)
        mark = f"# handle {handle}"
        lines = (line.rpartition("#")[0].strip() for line in answer.splitlines() if line.strip().endswith(mark))
        return next(lines, "")

    def _change(self, change: Change) -> None:
        with self._elements_lock:
            self._ensure_open()
            try:
                self._elements.apply(change)
            except nft_elements.Refused as error:
                raise NftError("nftables refused a change", f"{error.strerror}: {error.line}") from error
            except (ValueError, OSError) as error:
                raise NftError("nftables could not be told a change", str(error)) from error

    def _ensure_open(self) -> None:
        if not self._open:
            raise NftUnavailable("nftables cannot be used", "the context is closed")

    def _list(self, command: str, flags: int = 0) -> dict[str, Any] | None:
        try:
            answer = self._reading.call(command, _JSON_OUTPUT | flags)
        except NftError as error:
            if "No such file or directory" in error.details:
                return None
            raise
        try:
            listing: dict[str, Any] = json.loads(answer) if answer.strip() else {"nftables": []}
        except ValueError as error:  # nft 1.0.6 prints truncated JSON for a table with flags, which ours do not have
            raise NftError("nftables could not be read", f"{command}: {error}") from error
        return listing


class _Context:
    """One libnftables context and its lock, bound to one network namespace."""

    def __init__(self, lib: ctypes.CDLL, home: int) -> None:
        self.lock = threading.Lock()
        self._lib, self._home = lib, home
        self._ctx = lib.nft_ctx_new(0)
        if not self._ctx:
            raise NftUnavailable("nftables cannot be used", "libnftables gave no context")
        lib.nft_ctx_buffer_output(self._ctx)
        lib.nft_ctx_buffer_error(self._ctx)

    def free(self) -> None:
        """Frees the context; no call may follow. The caller holds the lock."""
        self._lib.nft_ctx_free(self._ctx)
        self._ctx = None

    def call(self, text: str, flags: int = 0) -> str:
        """Runs a text and returns its output. Raises NftError with the library's message."""
        with self.lock:
            if not self._ctx:
                raise NftUnavailable("nftables cannot be used", "the context is closed")
            self._lib.nft_ctx_output_set_flags(self._ctx, flags)
            with self._at_home():
                refused = self._lib.nft_run_cmd_from_buffer(self._ctx, text.encode())
            output: bytes = self._lib.nft_ctx_get_output_buffer(self._ctx) or b""
            errors: bytes = self._lib.nft_ctx_get_error_buffer(self._ctx) or b""
        if refused:
            raise NftError("nftables refused a change", errors.decode(errors="replace").strip())
        return output.decode(errors="replace")

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        """Keeps the calling thread in the context's namespace: the library may reopen its socket during a call."""
        if netns.own() == netns.identify(self._home):
            yield
        else:
            with netns.entered(self._home):
                yield


def _load() -> ctypes.CDLL:
    """Loads libnftables: the copy in the frozen program if there is one, else the system's."""
    bundle: str | None = getattr(sys, "_MEIPASS", None)
    bundled = [str(Path(bundle, SONAME))] if bundle and Path(bundle, SONAME).exists() else []
    errors = []
    for library in [*bundled, SONAME]:
        try:
            return _declare(ctypes.CDLL(library))
        except (OSError, AttributeError) as error:
            errors.append(f"{library}: {error}")
    raise NftUnavailable("nftables cannot be used: install libnftables (Debian: libnftables1)", "; ".join(errors))


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the functions' argument and result types; ctypes would truncate a pointer that it takes for an int."""
    ctx = ctypes.c_void_p
    for name, result, arguments in (
        ("nft_ctx_new", ctx, [ctypes.c_uint32]),
        ("nft_ctx_free", None, [ctx]),
        ("nft_ctx_buffer_output", ctypes.c_int, [ctx]),
        ("nft_ctx_buffer_error", ctypes.c_int, [ctx]),
        ("nft_ctx_output_set_flags", None, [ctx, ctypes.c_uint]),
        ("nft_ctx_get_output_buffer", ctypes.c_char_p, [ctx]),
        ("nft_ctx_get_error_buffer", ctypes.c_char_p, [ctx]),
        ("nft_run_cmd_from_buffer", ctypes.c_int, [ctx, ctypes.c_char_p]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib
