"""`OverlayManager`'s methods for WireGuard peers, in front of our daemon and of ZLayer's.

A daemon whose status has `zlayer-cni/...` replaces peers safely: it gets the requests that ZLayer's own client
sends. Any other daemon may be ZLayer's, which a second set of one key stops for good (contract 5.3/22). It gets
remove_peer before every add_peer, one CIDR per peer, and never add_allowed_ip or remove_allowed_ip. It gets no NAT
candidates, since its switch to a better endpoint is such a second set. `UnsupportedPeerChange` names what it cannot
hold, after the rest was programmed.

Another program that adds the same key to the same ZLayer daemon at the same time can still stop it.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from cni.overlay import wire
from cni.overlay.channel import Channel, log
from cni.overlay.client import Client, Deadline
from cni.overlay.errors import ApplicationError, DeadlinePassed, OverlaydError, Refused, UnsupportedPeerChange
from cni.overlay.peering import AddedPeer, Ledger, PeerInfo, aggregate, scope_of


class Peers:
    """Peers of the global device and of services' dedicated devices. One change at a time, whatever the thread."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._ledger = Ledger()
        self._lock = threading.Lock()

    def add_global_peer(self, peer: PeerInfo) -> None:
        """Give the global device a peer, or replace the one with that key. Raises as the next method does."""
        self.add_global_peer_with_candidates(peer, ())

    def add_global_peer_with_candidates(self, peer: PeerInfo, candidates: Iterable[wire.Candidate]) -> None:
        """Give the global device a peer, or replace the one with that key.

        `candidates` are further addresses at which it might be reached, for NAT traversal; they are not sent to
        ZLayer's daemon (logged). Raises OverlaydError; UnsupportedPeerChange if not all of its CIDRs were programmed.
        """
        self._add(AddedPeer(peer, peer.cidrs), None, tuple(candidates))

    def add_service_peer(self, service: str, peer: PeerInfo, subnet: str) -> None:
        """Give a service's dedicated device a peer that holds `subnet` besides its own CIDRs.

        Our daemon is sent add_peer, then add_allowed_ip. The first failure is raised, and nothing is undone.
        Raises OverlaydError; UnsupportedPeerChange if not all CIDRs were programmed.
        """
        cidrs = tuple(dict.fromkeys((*peer.cidrs, subnet)))
        self._add(AddedPeer(peer, cidrs), service, (), subnet)

    def remove_global_peer(self, pubkey: str) -> None:
        """Take a peer off the global device; one it does not have is fine. Raises OverlaydError."""
        self._remove(pubkey, None)

    def remove_service_peer(self, service: str, pubkey: str) -> None:
        """Take a peer off a service's dedicated device. Raises OverlaydError."""
        self._remove(pubkey, service)

    def add_allowed_ip(self, pubkey: str, cidr: str, service: str | None = None) -> None:
        """Route one more CIDR to a peer of the global device, or of `service`'s.

        Raises OverlaydError; UnsupportedPeerChange, with the peer as it was, if the daemon has no room for the CIDR or
        this manager did not add the peer.
        """
        key = (service, pubkey)

        def work(conn: Client, deadline: Deadline) -> None:
            peer = self._ledger.with_cidr(key, cidr)
            if self._is_ours(conn, deadline):
                conn.round_trip(wire.AddAllowedIp(pubkey, cidr, scope_of(service)), deadline)
                self._record(peer, service)
                return
            if peer is None:
                raise _unknown_peer(pubkey, cidr)
            if aggregate(peer.cidrs)[1]:
                raise _no_room(pubkey, self._ledger.added[key].cidrs, (cidr,))
            self._replace(conn, deadline, peer, service)

        self._with_peers(work)

    def remove_allowed_ip(self, pubkey: str, cidr: str, service: str | None = None) -> None:
        """Stop routing a CIDR to a peer. Raises OverlaydError, UnsupportedPeerChange as `add_allowed_ip` does.

        A peer without any CIDR left is removed from the device of a ZLayer daemon; the next add_allowed_ip adds it
        again.
        """
        key = (service, pubkey)

        def work(conn: Client, deadline: Deadline) -> None:
            peer = self._ledger.without_cidr(key, cidr)
            if self._is_ours(conn, deadline):
                conn.round_trip(wire.RemoveAllowedIp(pubkey, cidr, scope_of(service)), deadline)
                self._record(peer, service)
                return
            if peer is None:
                raise _unknown_peer(pubkey, cidr)
            if peer != self._ledger.added[key]:
                self._raise_if_partial(self._replace(conn, deadline, peer, service), peer)

        self._with_peers(work)

    def _add(
        self, added: AddedPeer, service: str | None, candidates: Sequence[wire.Candidate], subnet: str | None = None
    ) -> None:
        def work(conn: Client, deadline: Deadline) -> None:
            if not self._is_ours(conn, deadline):
                if candidates:
                    log.warning(
                        "peer %s: its %d NAT candidates were not sent to %s: switching to one would stop that daemon",
                        added.peer.public_key,
                        len(candidates),
                        conn.path,
                    )
                self._raise_if_partial(self._replace(conn, deadline, added, service), added)
                return
            plain = replace(added, cidrs=added.peer.cidrs)
            conn.round_trip(plain.request(service, candidates), deadline)
            self._record(plain, service)
            if subnet is not None:
                key, scope = added.peer.public_key, scope_of(service)
                conn.round_trip(wire.AddAllowedIp(key, subnet, scope), deadline)
                self._record(added, service)

        self._with_peers(work)

    def _remove(self, public_key: str, service: str | None) -> None:
        def work(conn: Client, deadline: Deadline) -> None:
            conn.round_trip(wire.RemovePeer(public_key, scope_of(service)), deadline)
            self._ledger.added.pop((service, public_key), None)

        self._with_peers(work)

    def _with_peers(self, work: Callable[[Client, Deadline], None]) -> None:
        """Run `work` while no other thread changes peers, and all of it again if the connection breaks.

        Repeating add_peer alone could set a key a second time.
        """
        deadline = self._channel.deadline()
        if not self._lock.acquire(timeout=deadline.left()):
            raise DeadlinePassed(f"overlayd: another peer was being changed for {deadline.seconds:g} s")
        try:
            self._channel.run(lambda conn: work(conn, deadline), deadline)
        finally:
            self._lock.release()

    def _is_ours(self, conn: Client, deadline: Deadline) -> bool:
        """Whether the daemon identifies itself as ours. Asked once per connection."""
        if conn.server is None:
            try:
                conn.round_trip(wire.StatusRequest(), deadline)
            except Refused as e:
                log.warning("status: %s; taken for ZLayer's daemon", e)
        return (conn.server or "").startswith("zlayer-cni/")

    def _replace(self, conn: Client, deadline: Deadline, added: AddedPeer, service: str | None) -> tuple[str, ...]:
        """Remove the peer and add it with the one CIDR that its list folds into; returns the CIDRs left out.

        If the removal is refused nothing is added, since the device may still have the key. If the addition is refused
        the device gets back the former peer, if this manager added it.
        """
        cidr, not_programmed = aggregate(added.cidrs)
        add = replace(added, cidrs=(cidr,)).request(service)
        # Encoded before the removal: a peer that fits no frame must not cost the one that the device has.
        wire.encode(wire.RequestFrame(0, add))
        conn.round_trip(wire.RemovePeer(added.peer.public_key, scope_of(service)), deadline)
        former = self._ledger.added.pop((service, added.peer.public_key), None)
        # A peer that was given without a CIDR is the daemon's to check; one that lost its last stays off the device.
        if cidr or not added.peer.cidrs:
            try:
                conn.round_trip(add, deadline)
            except ApplicationError:
                if former is not None:
                    self._restore(conn, deadline, former, service)
                raise
        self._record(replace(added, cidrs=tuple(c for c in added.cidrs if c not in not_programmed)), service)
        return not_programmed

    def _restore(self, conn: Client, deadline: Deadline, former: AddedPeer, service: str | None) -> None:
        try:
            self._replace(conn, deadline, former, service)
        except OverlaydError as e:
            log.warning(
                "peer %s is no longer on the device: adding it again as it was failed: %s", former.peer.public_key, e
            )

    def _record(self, added: AddedPeer | None, service: str | None) -> None:
        if added is not None:
            self._ledger.added[service, added.peer.public_key] = added

    def _raise_if_partial(self, not_programmed: tuple[str, ...], added: AddedPeer) -> None:
        if not_programmed:
            raise _no_room(added.peer.public_key, [c for c in added.cidrs if c not in not_programmed], not_programmed)


def _no_room(public_key: str, cidrs: Sequence[str], not_programmed: tuple[str, ...]) -> UnsupportedPeerChange:
    return UnsupportedPeerChange(
        f"overlayd: peer {public_key} has {', '.join(cidrs) or 'nothing'}; not {', '.join(not_programmed)}, "
        "since this overlayd takes one CIDR per peer",
        not_programmed,
    )


def _unknown_peer(public_key: str, cidr: str) -> UnsupportedPeerChange:
    return UnsupportedPeerChange(
        f"overlayd: {cidr} of peer {public_key} was left as it is: the peer was not added by this program, "
        "and this overlayd stops for good when a peer that it has is changed",
        (cidr,),
    )
