"""nftables: carry out rules (text) and elements (values) as one transaction, and read a table back.

`Nft` is libnftables by ctypes: nft(8)'s own library, 0.2 ms a call where starting the program costs 4. Elements
alone go to the kernel without it (nft_elements). Texts are written elsewhere; nothing here knows what a rule means.
Never `flush ruleset`: other tables are other people's.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cni.errors import FenceFailed
from cni.host import netns, nft_dump, nft_elements, nft_rules, nft_shape
from cni.host.nft_elements import Change

SONAME = "libnftables.so.1"
_JSON_OUTPUT, _TERSE = 1 << 4, 1 << 11  # NFT_CTX_OUTPUT_... (nftables/libnftables.h)


class NftError(FenceFailed):
    """The kernel or libnftables refused a text; `details` is what it said. Nothing of the text was applied."""


class NftUnavailable(NftError):
    """libnftables cannot be loaded, or does not come up: no fence can be put in force on this machine."""


class Nft:
    """nftables of the namespace the constructing thread was in, from whatever thread it is called.

    Changes wait for changes and listings for listings, but neither for the other: a listing of a full fence takes a
    third of a second. Raises NftUnavailable if the library is missing.
    """

    def __init__(self) -> None:
        lib = _load()
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._changing, self._reading = _Context(lib, self._home), _Context(lib, self._home)
        self._elements, self._elements_lock = nft_elements.Elements(), threading.Lock()
        self._dumper = nft_dump.Dumper()
        self._shapes = nft_shape.SetShapes(self._dumper)
        self._open = True

    def close(self) -> None:
        """Give contexts and sockets back. Twice is the same as once."""
        with self._changing.lock, self._reading.lock, self._elements_lock:
            if self._open:
                self._open = False
                self._changing.free()
                self._reading.free()
                self._elements.close()
                self._dumper.close()
                os.close(self._home)

    def run(self, *parts: str | Change) -> None:
        """Carry out the parts, in order, whole or not at all; empty ones change nothing.

        Beside another part, what a change takes away must be there. Raises NftError with the refusal's words.
        """
        todo = [part for part in parts if part]
        if len(todo) == 1 and isinstance(todo[0], Change):
            self.apply(todo[0])
        elif todo:
            self._changing.call("".join(part.text() if isinstance(part, Change) else part for part in todo))

    def apply(self, change: Change) -> None:
        """Carry out a change of elements, whole or not at all; what is taken away need not be there.

        With ranges libnftables does it, and refuses to take away what is not there. Raises NftError.
        """
        if change.has_ranges:
            self._changing.call(change.text())
        elif change:
            self._change(change)

    def absent(self, change: Change) -> list[str]:
        """What `change` adds and is not in force, as lines of nft's language; a missing table misses it all.

        The cost does not grow with what else there is. Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return [change.adding(e) for e in change.add if not self._elements.has(change.table, e)]
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def generation(self) -> int:
        """A number that changes with every change anybody makes to nftables here; costs next to nothing.

        Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return self._elements.generation()
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def shape(self, table: str) -> tuple[bytes, ...] | None:
        """Which chains, rules and sets the tables of that name have; equal as long as every rule is what it was.

        None while somebody changes them. Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return self._shapes.shape(table)
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def rules(self, table: str) -> nft_rules.Tables | None:
        """What the tables of that name say, of family inet and bridge: hooks, policies, the body of every rule.

        None while somebody changes them. Raises NftError.
        """
        with self._elements_lock:
            self._ensure_open()
            try:
                return nft_rules.read(self._dumper, table)
            except OSError as error:
                raise NftError("nftables could not be read", str(error)) from error

    def list_set(self, kind: str, family: str, table: str, name: str) -> dict[str, Any] | None:
        """One set or map (`kind`) with its elements, as libnftables-json(5) has it; None if it is not there. Raises
        NftError."""
        return self._list(f"list {kind} {family} {table} {name}")

    @property
    def portid(self) -> int:
        """The netlink port that changes of elements are sent from: their notifications carry it."""
        return self._elements.portid

    def refill(self, packed: Iterable[bytes]) -> None:
        """Make all elements so that `pack` packed, in one transaction; those that are there stay. Raises NftError."""
        with self._elements_lock:
            self._ensure_open()
            try:
                self._elements.refill(packed)
            except OSError as error:
                raise NftError("nftables refused elements", str(error)) from error

    def list_table(self, family: str, name: str, *, terse: bool = False) -> dict[str, Any] | None:
        """The table as libnftables-json(5) has it, counters included; None if there is no such table.

        `terse` leaves the elements of sets out. Raises NftError for any other refusal.
        """
        return self._list(f"list table {family} {name}", _TERSE if terse else 0)

    def list_base_chains(self) -> dict[str, Any]:
        """Every chain of every table on the machine (`list chains`): who else filters here. Raises NftError."""
        return self._list("list chains") or {"nftables": []}

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
        except ValueError as error:  # nft 1.0.6 writes half a document for a table with flags: not one of ours
            raise NftError("nftables could not be read", f"{command}: {error}") from error
        return listing


def rules_of(text: str, table: str) -> nft_rules.Tables:
    """What the kernel makes of a text: loaded in a network namespace of its own, which is gone afterwards.

    What `Nft.rules` reads here can be compared with it. Costs some 10 ms. Raises NftError, OSError.
    """
    with ThreadPoolExecutor(1, "scratch") as pool:  # the namespace ends with the thread and its sockets
        return pool.submit(_rules_of, text, table).result()


def _rules_of(text: str, table: str) -> nft_rules.Tables:
    netns.leave()
    nft = Nft()
    try:
        nft.run(text)
        found = nft.rules(table)
        assert found is not None, "nothing else is in this namespace"
        return found
    finally:
        nft.close()


class _Context:
    """One libnftables context and its lock, at home in one namespace."""

    def __init__(self, lib: ctypes.CDLL, home: int) -> None:
        self.lock = threading.Lock()
        self._lib, self._home = lib, home
        self._ctx = lib.nft_ctx_new(0)
        if not self._ctx:
            raise NftUnavailable("nftables cannot be used", "libnftables gave no context")
        lib.nft_ctx_buffer_output(self._ctx)
        lib.nft_ctx_buffer_error(self._ctx)

    def free(self) -> None:
        """Give it back; nobody may call it afterwards. The caller holds the lock."""
        self._lib.nft_ctx_free(self._ctx)
        self._ctx = None

    def call(self, text: str, flags: int = 0) -> str:
        """Run a text; its output. Raises NftError with the library's words."""
        with self.lock:
            if not self._ctx:
                raise NftUnavailable("nftables cannot be used", "the context is closed")
            self._lib.nft_ctx_output_set_flags(self._ctx, flags)
            with self._at_home():
                refused = self._lib.nft_run_cmd_from_buffer(self._ctx, text.encode())
            output: bytes = self._lib.nft_ctx_get_output_buffer(self._ctx) or b""
            said: bytes = self._lib.nft_ctx_get_error_buffer(self._ctx) or b""
        if refused:
            raise NftError("nftables refused a change", said.decode(errors="replace").strip())
        return output.decode(errors="replace")

    @contextlib.contextmanager
    def _at_home(self) -> Iterator[None]:
        """Hold the calling thread in our namespace: the library may open its socket anew in mid-call."""
        if netns.own() == netns.identify(self._home):
            yield
        else:
            with netns.entered(self._home):
                yield


def _load() -> ctypes.CDLL:
    """libnftables: the copy beside the frozen program if it brought one, else the system's."""
    bundle: str | None = getattr(sys, "_MEIPASS", None)
    places = [str(Path(bundle, SONAME))] if bundle and Path(bundle, SONAME).exists() else []
    said = []
    for place in [*places, SONAME]:
        try:
            return _declare(ctypes.CDLL(place))
        except (OSError, AttributeError) as error:
            said.append(f"{place}: {error}")
    raise NftUnavailable("nftables cannot be used: install libnftables (Debian: libnftables1)", "; ".join(said))


def _declare(lib: ctypes.CDLL) -> ctypes.CDLL:
    """Say what the functions take and give; a pointer taken for an int loses its upper half."""
    ctx = ctypes.c_void_p
    for name, gives, takes in (
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
        function.restype, function.argtypes = gives, takes
    return lib
