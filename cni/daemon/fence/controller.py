"""What stands between containers and everybody else: our nftables tables, kept in step with the attachments.

The texts are `texts.py`'s, `loader.py` runs them; this remembers who is admitted, and which networks have members.
Whoever is not admitted is closed, so a failure here never opens anything: the attach fails instead.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

from cni.daemon.fence import compare, elements, ruleset
from cni.daemon.fence.believed import believed, without
from cni.daemon.fence.from_records import (
    Network,
    RemoteView,
    bridge_of,
    bridges,
    change_of_remotes,
    on_the_hosts_networks,
    port_of,
)
from cni.daemon.fence.loader import Loader
from cni.daemon.fence.model import TABLE, FenceNode, FencePort
from cni.daemon.fence.repairs import Repairs
from cni.daemon.model.records import Attachment
from cni.daemon.settings import Settings
from cni.daemon.state.state import State
from cni.errors import FenceFailed
from cni.host import iptables
from cni.host.nft import Nft
from cni.host.nft_elements import Change

log = logging.getLogger(__name__)

PRIMED = 100  # ports at a time: 25 ms in which an attach waits

__all__ = ["FenceController", "RemoteView", "bridges", "port_of"]


class FenceController:
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
        self._forwarding = threading.Lock()  # of iptables' FORWARD; the other is not held while iptables runs
        self._loader: Loader | None = None
        self._trouble = "the tables were never loaded"
        self._ended = False
        self._node_loaded: FenceNode | None = None  # the node as the last load had it
        # Who was admitted and not yet expelled: not the records, which outlive the port by a moment when it is unmade.
        self._ports: dict[str, FencePort] = {}
        self._networks: Counter[str | None] = Counter()
        self._bridges: dict[str, None] = {}
        self._beyond = RemoteView()
        self._refused: dict[str, str] = {}  # what of that the fence does not take, and why
        self._changes = 0
        self._primed = -1  # the number of changes up to which everything is primed
        self._repairs = Repairs()

    # --- the whole -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Know whom the records know, before the first load."""
        with self._lock:
            self._ended = False
            self._ports = {each.host_veth: port_of(each) for each in self._state.snapshot()}
            self._networks = Counter(port.network for port in self._ports.values())
            self._bridges = dict.fromkeys(bridges(self._state.services.values()))

    def load(self) -> bool:
        """Put the tables in force for everybody admitted, mending in place; True if something had to be changed.

        What is right is left alone, so nobody is open for a moment and no flow of a member ends. On failure the
        reason is kept for `trouble`. Costs next to nothing while only this daemon changed anything in nftables.
        """
        try:
            self._state.set_connected(on_the_hosts_networks(self._host_networks(), self._state.cidrs))
        except OSError as error:
            log.warning("the host's own networks cannot be listed, so those of the last look count: %s", error)
        try:
            with self._lock:
                if self._ended:
                    return False
                self._loader = self._loader or Loader(Nft())
                loader, node = self._loader, self._node()
                changed, same = False, node == self._node_loaded
                if not same or not loader.is_settled():
                    changed = self._alone() and loader.mend_rules(self._wanted())
                settled = same and loader.is_settled()
            if not settled:
                changed = self._compare(loader) or changed
            with self._lock:
                if changed and node == self._node_loaded:
                    self._repairs.happened("")
                self._node_loaded = node
        except FenceFailed as error:
            self._note(f"{error.msg}: {error.details}")
            return False
        self._note("")
        return changed

    def _compare(self, loader: Loader) -> bool:
        """Compare every element. Attaches go on while the tables are read: if one changed them meanwhile, they are read
        again, at last with everybody waiting."""
        for _ in range(2):
            before, since, listing = self._changes, loader.mark(), _listing(loader)
            with self._lock:
                if before == self._changes:
                    return self._mend(loader, listing, since)
        with self._lock:
            since = loader.mark()
            return self._mend(loader, _listing(loader), since)

    def restore(self, sets: frozenset[tuple[str, str]], generations: Iterable[int], by: str) -> bool:
        """Another program, `by`, changed our tables, in the transactions with these numbers: put right at once what it
        touched, the rules and `sets`; whether something had to be. The next `load` compares the whole. Never raises
        FenceFailed.

        Transactions of our own are known by their numbers, and are nothing to do.
        """
        with self._lock:
            loader, numbers = self._loader, tuple(generations)
            if self._ended or loader is None or (numbers and all(loader.made(number) for number in numbers)):
                return False
            try:
                if not self._trouble and self._alone():
                    changed = self._restore(loader, sets)
                    if changed:
                        self._repairs.happened(by)
                    return changed
                # Another daemon's changes are none of this one's business, or the two would wake each other for ever.
                local = self._wanted().local()
                if not self._trouble and not compare.faults(_listing(loader, terse=True), local, alone=False):
                    return False
            except FenceFailed as error:
                log.debug("the fence could not be put right at once: %s: %s", error.msg, error.details)
        return self.load()

    def prime(self) -> None:
        """Have ready what puts the ports back that came since the last time, some of them at a time."""
        with self._lock:
            if (
                self._loader is not None
                and self._primed != self._changes
                and self._loader.prime(self._wanted(), PRIMED)
            ):
                self._primed = self._changes

    def is_settled(self) -> bool:
        """Whether all is known to be right, and only this daemon changed anything in nftables since."""
        with self._lock, contextlib.suppress(FenceFailed):
            return not self._trouble and self._loader is not None and self._loader.is_settled()
        return False

    def repaired(self) -> str:
        """That others changed the tables in the last minute and they were put right; empty if not."""
        with self._lock:
            return self._repairs.text()

    def portid(self) -> int:
        """The netlink port of what attaches change; 0 before the first load."""
        return self._loader.nft.portid if self._loader is not None else 0

    def _restore(self, loader: Loader, sets: frozenset[tuple[str, str]]) -> bool:
        self._changes += 1
        wanted = self._wanted()
        changed = bool(loader.faults(wanted)) and loader.mend_rules(wanted)
        if sets and not loader.is_settled():
            changed = loader.mend_sets(wanted, sets) or changed
        return changed

    def _note(self, trouble: str) -> None:
        if trouble and trouble != self._trouble:
            log.error("the fence is not in force: %s", trouble)
        elif self._trouble and not trouble:
            log.info("the fence is in force")
        self._trouble = trouble

    def _mend(self, loader: Loader, listing: compare.Listing, since: tuple[int, int]) -> bool:
        wanted = self._wanted()
        self._changes += 1
        if not self._alone():
            local = wanted.local()
            wrong = compare.faults(listing, local, alone=False)
            if wrong:
                loader.run(compare.reload(listing, local))
            loader.run(elements.change(add=local.elements()))
            loader.add_records(compare.records(None if wrong else listing, wanted))
            return bool(wrong)
        changed = loader.mend_elements(listing, wanted)
        loader.settle(since)
        return changed

    @property
    def wanted(self) -> compare.DesiredState:
        """What the tables should hold now."""
        with self._lock:
            return self._wanted()

    def _wanted(self) -> compare.DesiredState:
        node = self._node()
        ports = tuple(self._ports.values())
        taken = frozenset([*node.addresses, *(address for port in ports for address in port.addresses)])
        return compare.DesiredState(
            node=node,
            bridges=tuple(bridge_of(name) for name in self._bridges),
            ports=ports,
            remotes=without(self._beyond, taken),
            edges=self._beyond.edges,
        )

    def _node(self) -> FenceNode:
        state = self._state
        return FenceNode(
            clusters=state.cidrs,
            addresses=tuple(str(address) for address in state.node_addresses()),
            connected=tuple(map(str, state.connected)),
            masquerade=self._settings.masquerade,
            routed=self._settings.underlay == "routed",
            tunnels=self._beyond.tunnels,
            far=self._beyond.far,
        )

    def refused(self) -> dict[str, str]:
        """What other nodes and agents said that the fence does not take, by subject: why."""
        return {**self._refused, **(self._loader.refused if self._loader is not None else {})}

    def unload(self) -> None:
        """No table of ours afterwards, nor the jump in iptables' FORWARD: only `uninstall` asks for it."""
        with self._lock:
            self._ended = True
            self._loader = self._loader or Loader(Nft())
            self._loader.run(ruleset.uninstall())
            self._trouble = "the tables were taken down"
        with self._forwarding:
            iptables.remove_forward_accept()

    def faults(self) -> list[str]:
        """Look whether tables, chains and rules are in force; what is wrong, a line each. Reads only."""
        loader = self._loader
        if loader is None or self._trouble:
            return [self._trouble or "the tables were never loaded"]
        try:
            with self._lock:
                if loader.rules_are_right():
                    return []
                if self._alone():
                    return [fault.text for fault in loader.faults(self._wanted())]
                wanted = self._wanted()
            return compare.faults(_listing(loader, terse=True), wanted, alone=False)
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def trouble(self) -> str:
        """Why the tables are not in force, as of the last load; empty when they are."""
        return self._trouble

    def open_forwarding(self) -> str:
        """Let containers through iptables' FORWARD where its policy denies; why that failed, or empty."""
        try:
            with self._forwarding:
                if self._ended or not iptables.forward_denies(self._state.cidrs):
                    return ""
                if iptables.ensure_forward_accept(self._state.cidrs):
                    log.info(
                        "iptables' FORWARD denies by policy: containers of the overlay are let through by one jump"
                    )
        except FenceFailed as error:
            return f"{error.msg}: {error.details}"
        return ""

    def foreign(self) -> list[str]:
        """Native nft chains of others that drop by policy what we cannot overrule."""
        loader = self._loader
        if loader is None:
            return []
        try:
            return iptables.denying_chains(loader.nft.list_base_chains())
        except FenceFailed:
            return []

    # --- bridges and ports -------------------------------------------------------------------------------------------

    def add_bridge(self, name: str) -> None:
        """A bridge of ours is about to appear: what comes from behind it is a container's. Raises FenceFailed."""
        with self._lock:
            self._changes += 1
            self._bridges[name] = None
            self._run(ruleset.open_bridge(bridge_of(name)))

    def remove_bridge(self, name: str) -> None:
        """A bridge of ours has gone."""
        with self._lock:
            self._changes += 1
            self._bridges.pop(name, None)
            self._try(ruleset.close_bridge(bridge_of(name)))

    def add_port(self, attachment: Attachment) -> None:
        """Let the attachment's port reach its network, before its link comes up. Raises FenceFailed."""
        port = port_of(attachment)
        with self._lock:
            self._changes += 1
            # One with members elsewhere alone may be there, or have been refused.
            if port.network is not None and not self._networks[port.network]:
                self._run(ruleset.create_network(port.network))
            self._forget(port.name)
            self._ports[port.name] = port
            self._networks[port.network] += 1
            self._run(ruleset.add_port(port))

    def remove_port(self, attachment: Attachment) -> None:
        """The port is gone: nothing of it stays, its established flows included. Nothing to do without tables."""
        port = port_of(attachment)
        with self._lock:
            self._changes += 1
            known = self._forget(port.name)
            self._try(ruleset.remove_port(port))
            if known and port.network is not None and not self._has_members(port.network):
                self._try(ruleset.forget_network(port.network))

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

    def connect(self, beyond: RemoteView) -> None:
        """What lies behind the tunnels is this from now on. What cannot be put in force is kept for the next load; what
        the fence does not take of it is in `refused`."""
        with self._lock:
            before = self._wanted()
            self._beyond, self._refused = believed(beyond, self._state.cidrs)
            after = self._wanted()
            self._changes += 1
            loader = self._loader
            if before == after or loader is None or self._trouble:
                return
            try:
                if replace(before, remotes=()) != replace(after, remotes=()):
                    since = loader.mark()
                    self._mend(loader, _listing(loader), since)
                    self._node_loaded = after.node
                else:
                    old, new = (RemoteView(remotes=each.remotes) for each in (before, after))
                    for part in change_of_remotes(old, new, lambda network: self._networks[network] > 0):
                        loader.run(part)
            except FenceFailed as error:
                log.warning("members on other nodes are compared one by one: %s: %s", error.msg, error.details)
                loader.add_records(compare.records(None, after))

    def missing(self, attachment: Attachment) -> list[str]:
        """What of the attachment's fence is not in the kernel: its elements, or the tables themselves."""
        loader = self._loader
        if loader is None or self._trouble:
            return [self._trouble or "the tables were never loaded"]
        try:
            return loader.nft.absent(ruleset.add_port(port_of(attachment)))
        except FenceFailed as error:
            return [f"{error.msg}: {error.details}"]

    def _run(self, part: str | Change) -> None:
        loader = self._loader
        if loader is None or self._trouble:
            raise FenceFailed("the isolation fence cannot be put in force", self._trouble)
        try:
            loader.run(part)
        except FenceFailed:
            if not self._alone() or not loader.faults(self._wanted()):
                raise
            log.warning("another program changed the fence's tables; they are put right before they are added to")
            loader.mend_rules(self._wanted())
            self._repairs.happened("")
            loader.run(part)

    def _try(self, part: str | Change) -> None:
        """A removal that fails leaves an element too many: closed for others, mended by the next load."""
        if self._loader is None or self._trouble:
            return
        try:
            self._loader.run(part)
        except FenceFailed as error:
            log.warning("could not remove fence elements: %s", error.details)


def _listing(loader: Loader, terse: bool = False) -> compare.Listing:
    return {family: loader.nft.list_table(family, TABLE, terse=terse) for family in ruleset.FAMILIES}
