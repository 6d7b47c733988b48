"""What stands between containers and everybody else: our nftables tables, kept in step with the attachments.

The texts are `texts.py`'s; this runs them, one transaction a change, and remembers which networks have members. Whoever
is not admitted is closed, so a failure here never opens anything: the attach fails instead.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from cni.daemon.books.records import Attachment
from cni.daemon.books.state import State
from cni.daemon.fence import compare, texts
from cni.daemon.fence.values import TABLE, Node, Port
from cni.daemon.fence.views import (
    Beyond,
    Network,
    bridge_of,
    bridges,
    change_of_remotes,
    on_the_hosts_networks,
    port_of,
)
from cni.daemon.settings import Settings
from cni.errors import FenceFailed
from cni.host import iptables
from cni.host.nft import Nft

log = logging.getLogger(__name__)

__all__ = ["Barrier", "Beyond", "bridges", "port_of"]

T = TypeVar("T")


class Barrier:
    """Loads the tables, admits ports, expels them. Safe from any thread.

    `alone` tells whether no other daemon of ours works in this network namespace: only then is what nobody here
    recorded taken out of the tables. It is asked after they were read: whoever wrote into them is seen by then.
    """

    def __init__(
        self,
        state: State,
        settings: Settings,
        alone: Callable[[], bool] = lambda: True,
        host_networks: Callable[[], Iterable[Network]] = tuple,
    ) -> None:
        """`host_networks` lists the networks the host is on by links that are not ours; each `load` asks it anew."""
        self._host_networks = host_networks
        self._state = state
        self._settings = settings
        self._alone = alone
        self._lock = threading.Lock()
        self._nft: Nft | None = None
        self._trouble = "the tables were never loaded"
        # Who was admitted and not yet expelled: not the records, which outlive the port by a moment when it is unmade.
        self._ports: dict[str, Port] = {}
        self._networks: Counter[str | None] = Counter()
        self._bridges: dict[str, None] = {}
        self._beyond = Beyond()
        self._changes = 0
        self._verified = -1  # nftables' generation at which the rules were seen to be right, and only we changed since
        self._shape: tuple[bytes, ...] | None = None  # the tables' at some such time

    # --- the whole -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Know whom the records know, before the first load."""
        with self._lock:
            self._ports = {each.host_veth: port_of(each) for each in self._state.snapshot()}
            self._networks = Counter(port.network for port in self._ports.values())
            self._bridges = dict.fromkeys(bridges(self._state.services.values()))

    def load(self) -> bool:
        """Put the tables in force for everybody admitted, mending in place; True if something had to be changed.

        What is right is left alone, so nobody is open for a moment and no flow of a member ends. On failure the
        reason is kept for `trouble`. Attaches go on while the tables are read: if one changed them meanwhile, they are
        read again, at last with everybody waiting.
        """
        try:
            self._state.set_connected(on_the_hosts_networks(self._host_networks(), self._state.cidrs))
        except OSError as error:
            log.warning("the host's own networks cannot be listed, so those of the last look count: %s", error)
        try:
            self._nft = self._nft or Nft()
            changed = self._with_listing(lambda listing, _: self._mend(listing), terse=False)
        except FenceFailed as error:
            self._note(f"{error.msg}: {error.details}")
            return False
        self._note("")
        return changed

    def _with_listing(self, work: Callable[[compare.Listing, int], T], terse: bool) -> T:
        """What `work` makes of the tables as they are, with the lock held and nothing changed since they were read.

        It gets nftables' generation as well, from before they were read.
        """
        assert self._nft is not None
        for _ in range(2):
            before, generation, listing = self._changes, self._nft.generation(), self._listing(terse)
            with self._lock:
                if before == self._changes:
                    return work(listing, generation)
        with self._lock:
            generation = self._nft.generation()
            return work(self._listing(terse), generation)

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("the fence is not in force: %s", trouble)
        elif self._trouble and not trouble:
            log.info("the fence is in force")
        self._trouble = trouble

    def _mend(self, listing: compare.Listing) -> bool:
        assert self._nft is not None
        wanted = self._wanted()
        self._changes += 1
        if not self._alone():
            wrong = compare.faults(listing, wanted, alone=False)
            if wrong:
                self._nft.run(compare.reload(listing, wanted))
            self._nft.run("".join(f"{element.add()}\n" for element in wanted.elements()))
            return bool(wrong)
        text = compare.compare(listing, wanted)
        if text:
            self._nft.run(text)
        return bool(text)

    def _listing(self, terse: bool = False) -> compare.Listing:
        assert self._nft is not None
        return {family: self._nft.list_table(family, TABLE, terse=terse) for family in texts.FAMILIES}

    @property
    def wanted(self) -> compare.Wanted:
        """What the tables should hold now."""
        with self._lock:
            return self._wanted()

    def _wanted(self) -> compare.Wanted:
        return compare.Wanted(
            node=self._node(),
            bridges=tuple(bridge_of(name) for name in self._bridges),
            ports=tuple(self._ports.values()),
            remotes=self._beyond.remotes,
            edges=self._beyond.edges,
        )

    def _node(self) -> Node:
        state = self._state
        return Node(
            clusters=state.cidrs,
            addresses=tuple(str(address) for address in state.node_addresses()),
            connected=tuple(map(str, state.connected)),
            masquerade=self._settings.masquerade,
            routed=self._settings.underlay == "routed",
            tunnels=self._beyond.tunnels,
            far=self._beyond.far,
        )

    def unload(self) -> None:
        """No table of ours afterwards, nor the jump in iptables' FORWARD: only `uninstall` asks for it."""
        with self._lock:
            self._nft = self._nft or Nft()
            self._nft.run(texts.uninstall())
            self._trouble = "the tables were taken down"
        iptables.remove_forward_accept()

    def faults(self) -> list[str]:
        """Look whether tables, chains and rules are in force; what is wrong, a line each. Reads only."""
        if self._nft is None or self._trouble:
            return [self._trouble or "the tables were never loaded"]
        try:
            if self._nft.generation() == self._verified or self._is_unchanged():
                return []
            # A second look before anything is said: a listing is not one moment, and somebody may be mending.
            return self._with_listing(self._verify, terse=True) and self._with_listing(self._verify, terse=True)
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def _is_unchanged(self) -> bool:
        """Whether the rules are those that were last seen to be right: others changed only what is theirs."""
        assert self._nft is not None
        with self._lock:
            generation = self._nft.generation()
            if self._shape is None or self._nft.shape(TABLE) != self._shape:
                return False
            self._verified = generation
            return True

    def _verify(self, listing: compare.Listing, generation: int) -> list[str]:
        assert self._nft is not None
        found = compare.faults(listing, self._wanted(), self._alone())
        self._verified = generation if not found else -1
        shape = self._nft.shape(TABLE) if not found else None
        self._shape = shape if self._nft.generation() == generation else None
        return found

    def _apply(self, text: str) -> None:
        """Run a text. What was verified stays so, if the generation says that nobody else changed anything."""
        assert self._nft is not None
        self._nft.run(text)
        now = self._nft.generation()
        self._verified = now if self._verified >= 0 and now - self._verified in (0, 1) else -1

    def trouble(self) -> str:
        """Why the tables are not in force, as of the last load; empty when they are."""
        return self._trouble

    def open_forwarding(self) -> str:
        """Let containers through iptables' FORWARD where its policy denies; why that failed, or empty."""
        try:
            if iptables.forward_denies(self._state.cidrs) and iptables.ensure_forward_accept(self._state.cidrs):
                log.info("iptables' FORWARD denies by policy: containers of the overlay are let through by one jump")
        except FenceFailed as error:
            return f"{error.msg}: {error.details}"
        return ""

    def foreign(self) -> list[str]:
        """Native nft chains of others that drop by policy what we cannot overrule."""
        with self._lock:
            if self._nft is None:
                return []
            try:
                return iptables.denying_chains(self._nft.list_base_chains())
            except FenceFailed:
                return []

    # --- bridges and ports -------------------------------------------------------------------------------------------

    def add_bridge(self, name: str) -> None:
        """A bridge of ours is about to appear: what comes from behind it is a container's. Raises FenceFailed."""
        with self._lock:
            self._changes += 1
            self._bridges[name] = None
            self._run(texts.open_bridge(bridge_of(name)))

    def remove_bridge(self, name: str) -> None:
        """A bridge of ours has gone."""
        with self._lock:
            self._changes += 1
            self._bridges.pop(name, None)
            self._try(texts.close_bridge(bridge_of(name)))

    def admit(self, attachment: Attachment) -> None:
        """Let the attachment's port reach its network, before its link comes up. Raises FenceFailed."""
        port = port_of(attachment)
        with self._lock:
            self._changes += 1
            if port.network is not None and not self._has_members(port.network):
                self._run(texts.create_network(port.network))
            self._forget(port.name)
            self._ports[port.name] = port
            self._networks[port.network] += 1
            self._run(texts.admit(port))

    def expel(self, attachment: Attachment) -> None:
        """The port is gone: nothing of it stays, its established flows included. Nothing to do without tables."""
        port = port_of(attachment)
        with self._lock:
            self._changes += 1
            known = self._forget(port.name)
            self._try(texts.expel(port))
            if known and port.network is not None and not self._has_members(port.network):
                self._try(texts.forget_network(port.network))

    def _forget(self, name: str) -> bool:
        """Count a port out; False if it was not in."""
        port = self._ports.pop(name, None)
        if port is None:
            return False
        self._networks[port.network] -= 1
        return True

    def _has_members(self, network: str) -> bool:
        """Whether anybody is in the network, here or elsewhere."""
        return self._networks[network] > 0 or network in self._beyond.networks()

    # --- other nodes -------------------------------------------------------------------------------------------------

    def connect(self, beyond: Beyond) -> None:
        """What lies behind the tunnels is this from now on. What cannot be put in force is kept for the next load."""
        with self._lock:
            before, self._beyond = self._beyond, beyond
            self._changes += 1
            if before == beyond or self._nft is None or self._trouble:
                return
            try:
                if replace(before, remotes=()) != replace(beyond, remotes=()):
                    self._mend(self._listing())
                else:
                    for text in change_of_remotes(before, beyond, lambda network: self._networks[network] > 0):
                        self._apply(text)
            except FenceFailed as error:
                self._note(f"{error.msg}: {error.details}")

    def missing(self, attachment: Attachment) -> list[str]:
        """What of the attachment's fence is not in the kernel: its elements, or the tables themselves."""
        if self._nft is None or self._trouble:
            return [self._trouble or "the tables were never loaded"]
        try:
            return self._nft.absent(texts.admit(port_of(attachment)))
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def _run(self, text: str) -> None:
        if self._nft is None or self._trouble:
            raise FenceFailed("the isolation fence cannot be put in force", self._trouble)
        self._apply(text)

    def _try(self, text: str) -> None:
        """A removal that fails leaves an element too many: closed for others, mended by the next load."""
        if self._nft is None or self._trouble:
            return
        try:
            self._apply(text)
        except FenceFailed as error:
            log.warning("could not remove fence elements: %s", error.details)
