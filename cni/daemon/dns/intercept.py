"""Answers what containers ask any other DNS server (`dns: {intercept: true}`).

nftables leads such questions to sockets of this component. A name of the overlay is answered from the node's names;
every other name is asked of the server that the container had asked, which connection tracking tells, so a container
whose resolv.conf was written before its network existed resolves the overlay's names and no others in another way.
"""

from __future__ import annotations

import logging
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path

from cni.daemon.dns.handler import Handle
from cni.daemon.dns.inbox import Inbox
from cni.daemon.dns.server import TICK, Datagram, Listener, listen, send
from cni.daemon.dns.stream import Streams
from cni.daemon.model import dns_intercept
from cni.daemon.model.dns_upstreams import NameServer
from cni.daemon.problem_board import ProblemBoard
from cni.host import original_destination
from cni.host.nft import Nft
from cni.host.original_destination import OriginalDestinations
from cni.host.worker import Crew, beat

log = logging.getLogger(__name__)

CODE = "dns-not-intercepted"
PORT = 53530  # of the sockets, if it is free; the rules name the port that they have
NOTE = "dns-intercept"  # the file in the run directory that says that the table may exist
COMPARE = 10.0  # seconds between two comparisons of the table with the kernel


class Intercept:
    """The sockets and the nftables table of one node. `start`, `stop`, `remove` are for the daemon's main thread."""

    def __init__(
        self,
        *,
        handle: Handle,
        inbox: Inbox,
        addresses: Callable[[], list[str]],
        ranges: Callable[[], tuple[str, ...]],
        run_dir: str,
        wanted: bool,
        board: ProblemBoard,
        crew: Crew,
    ) -> None:
        """`addresses`: the node's own; `ranges`: the overlay's; both now. `wanted`: what the settings say."""
        self._handle, self._inbox, self._addresses, self._ranges = handle, inbox, addresses, ranges
        self._note, self._wanted, self._board = Path(run_dir, NOTE), wanted, board
        self._listeners: dict[str, Listener] = {}
        self._selector = selectors.DefaultSelector()
        self._streams = Streams(handle, self._selector, _asked_by_tcp)
        self._flows: OriginalDestinations | None = None
        self._nft: Nft | None = None
        self._compared = float("-inf")
        self._stopped = False
        self._worker = crew.worker("dns-intercept", self._run)

    def start(self) -> None:
        """Lead the questions here, or undo what an earlier daemon did. Raises CniError, OSError."""
        if not self._wanted:
            self.remove()
            return
        self._keep(time.monotonic())
        self._worker.start()

    def stop(self) -> None:
        """Stop the thread, and close the sockets. The table stays: a daemon that starts again has the same port."""
        self._worker.retire()
        self._stopped = True
        self._worker.join(2 * TICK)
        self._streams.close()
        for listener in self._listeners.values():
            listener.close()

    def remove(self) -> None:
        """Remove the table, if this or an earlier daemon has made it. Idempotent. Raises CniError, OSError."""
        if self._note.exists():
            nft = self._nft or Nft()
            nft.run(dns_intercept.removal())
            self._note.unlink(missing_ok=True)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        due = 0.0
        while not self._stopped:
            for key, _ in self._selector.select(TICK):
                key.data()
            now = time.monotonic()
            if now >= due:
                due = now + TICK
                beat(TICK)
                self._keep(now)
                self._streams.sweep(now)

    def _keep(self, now: float) -> None:
        """Follow the node's addresses, and keep the table in force; what prevents it becomes a problem."""
        with self._board.step(CODE, "", "containers' DNS questions are not intercepted"):
            changed = self._follow()
            if changed or now - self._compared >= COMPARE:
                self._load()
                self._compared = now

    def _follow(self) -> bool:
        """Open the sockets at the node's addresses, close others; whether any changed. Raises OSError."""
        wanted, changed = self._addresses(), False
        for address in self._listeners.keys() - set(wanted):
            listener = self._listeners.pop(address)
            listener.unregister(self._selector)
            self._inbox.forget(listener.udp)
            listener.close()
            changed = True
        for address in wanted:
            if address not in self._listeners:
                self._open_at(address)
                changed = True
        return changed

    def _open_at(self, address: str) -> None:
        try:
            listener = listen(address, PORT)
        except OSError as error:
            log.warning("port %d of %s is taken, another one is used: %s", PORT, address, error)
            listener = listen(address, 0)
        self._listeners[address] = listener
        listener.register(self._selector, self._receive, self._streams.accept)

    def _load(self) -> None:
        ports = {address: listener.port for address, listener in self._listeners.items()}
        text = dns_intercept.ruleset(self._ranges(), ports)
        if self._nft is None:
            self._nft = Nft()
        if not dns_intercept.is_in_force(text, self._nft.list_table(dns_intercept.FAMILY, dns_intercept.TABLE)):
            self._note.touch(0o600)
            self._nft.run(text)
            log.info("containers' DNS questions are led to port %s", ", ".join(f"{a} {p}" for a, p in ports.items()))

    def _receive(self, sock: socket.socket) -> None:
        own = sock.getsockname()[:2]
        if self._flows is None:
            self._flows = OriginalDestinations()
        for message, sender in self._inbox.read(sock):
            try:
                found = self._flows.of_datagram(sender[:2], own)
            except OSError as error:
                log.debug("whom %s asked is not known: %s", sender[0], error)
                found = None
            asked = NameServer(*found) if found is not None else None
            answer = self._handle(message, sender[0], "udp", Datagram(sock, sender), asked)
            if answer is not None:
                send(sock, answer, sender)


def _asked_by_tcp(sock: socket.socket) -> NameServer | None:
    try:
        found = original_destination.of_connection(sock)
    except OSError:
        return None
    return NameServer(*found) if found is not None else None
