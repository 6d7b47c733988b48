"""Any sequence of attaches, detaches, collections, faults, kills and restarts leaves records and kernel in agreement.

Hypothesis draws the sequences; the kernel is the fake of tests/fakes, with one fault at a time, before or after the
effect of the call it hits, or a kill there. What holds after every step is in the invariants below.
"""

import contextlib
import ipaddress
import logging
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cni.daemon.attachments import overlay as service_module
from cni.daemon.attachments.request import ClientGone
from cni.daemon.events import Events
from cni.daemon.model import ipam
from cni.daemon.state import address_pool as book
from cni.daemon.state import state as state_module
from cni.daemon.state.state import State
from cni.errors import CleanupFailed, CniError, InterfaceExists, PoolExhausted, TryAgainLater
from cni.naming import SHARED_BRIDGE_KEY
from tests.fakes.kernel import Killed
from tests.fakes.node import NET, NOTHING, Node

COOLDOWN = 10.0
containers = st.sampled_from(["c0", "c1", "c2"])
services = st.sampled_from(
    [("web", "auto", False), ("db", "isolated", False), ("job", "auto", True), ("s1", "shared", False)]
)


def faults(calls):
    """No fault, or one at one of the first so many calls."""
    return st.none() | st.fixed_dictionaries(
        {"after": st.integers(0, calls - 1), "late": st.booleans(), "kill": st.booleans()}
    )


class ServiceLayer(RuleBasedStateMachine):
    """The daemon's services on one node, from the doors inwards."""

    def __init__(self):
        super().__init__()
        self.place = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        self.patch = pytest.MonkeyPatch()
        self.now = 1000.0
        for module in (state_module, book):
            self.patch.setattr(module, "boot_clock", lambda: self.now)
        self.patch.setattr(service_module, "DYING", 0.0)  # GC need not wait for a dying namespace: here it dies at once
        self.vacated = {}  # addresses that were in use, and since when they are not
        self.next_fd = 20
        self.fds = {}

    @initialize(two_families=st.booleans())
    def begin(self, two_families):
        more = {"cluster_cidr6": "fd00:9::/117"} if two_families else {}
        self.node = Node(Path(self.place.name, "state.db"), address_cooldown=COOLDOWN, **more)

    # --- what happens ----------------------------------------------------------------------------------------------

    @rule(
        who=containers,
        where=services,
        attempt=st.sampled_from(["", "a1", "a2"]),
        first=st.sampled_from(["", "", "its namespace goes", "its link goes", "its service is full"]),
        fault=faults(12),
    )
    def attach(self, who, where, attempt, first, fault):
        name, mode, ephemeral = where
        if first.endswith("goes"):
            self.somebody_takes_a_link_away(who, first == "its namespace goes")
        elif first:
            self.all_addresses_are_leased_or_none(where, full=True)
        before = self.node.state.attachments.get((NET, who, "eth0"))
        request = self.node.request(who, self.fd_of(who), service=name, mode=mode, ephemeral=ephemeral, attempt=attempt)
        with self.trouble(fault):
            try:
                made = self.node.attacher.attach(request)
            except InterfaceExists:
                assert before is not None
                assert self.node.state.attachments[before.key] == before, "a second ADD touches nothing"
            except CniError as error:
                assert fault is not None or isinstance(error, PoolExhausted | TryAgainLater), error
                if before is None:
                    assert (NET, who, "eth0") not in self.node.state.attachments, "a failed attach leaves nothing"
                    assert request.host_veth not in self.node.kernel.links
            else:
                assert made == before or self.is_whole(made)
                self.fresh_enough(made, before)

    @rule(who=containers, where=services, answers=st.integers(0, 1))
    def attach_for_a_client_that_hangs_up(self, who, where, answers):
        name, mode, ephemeral = where
        left = iter([True] * answers)
        request = self.node.request(
            who,
            self.fd_of(who),
            service=name,
            mode=mode,
            ephemeral=ephemeral,
            caller_waits=lambda: next(left, False),
        )
        before = self.node.state.attachments.get(request.key)
        with contextlib.suppress(InterfaceExists, PoolExhausted, TryAgainLater), pytest.raises(ClientGone):
            self.node.attacher.attach(request)
        if before is None:
            assert request.key not in self.node.state.attachments

    @rule(who=containers, fault=faults(4))
    def detach(self, who, fault):
        with self.trouble(fault):
            try:
                self.node.delete(who)
            except CleanupFailed:
                assert fault is not None
            else:
                assert (NET, who, "eth0") not in self.node.state.attachments
                assert self.node.request(who, self.fd_of(who)).host_veth not in self.node.kernel.links

    @rule(valid=st.none() | st.frozensets(containers), fault=faults(6))
    def collect(self, valid, fault):
        kept = {
            each.key
            for each in self.node.state.snapshot()
            if each.state == "live" and each.host_veth in self.node.kernel.links
        }
        with self.trouble(fault):
            try:
                self.node.overlay.collect(NET, valid if valid is None else {(who, "eth0") for who in valid})
            except CleanupFailed:
                assert fault is not None
            assert kept <= self.node.state.attachments.keys(), "who is alive is kept"
            if valid is not None:
                kept |= {(NET, who, "eth0") for who in valid}
                assert fault is not None or self.node.state.attachments.keys() <= kept

    @rule(fault=faults(12))
    def look(self, fault):
        with self.trouble(fault), contextlib.suppress(CniError, OSError):
            self.node.keeper.look()

    @rule(who=containers, whole=st.booleans())
    def somebody_takes_a_link_away(self, who, whole):
        if whole and who in self.fds:
            self.node.kernel.destroy_space(self.fds.pop(who))
        else:
            self.node.kernel.remove_link(self.node.request(who, self.fd_of(who)).host_veth)

    @rule(fault=faults(8))
    def restart(self, fault):
        self.start_again(fault)

    @rule(where=services, full=st.booleans())
    def all_addresses_are_leased_or_none(self, where, full):
        name = SHARED_BRIDGE_KEY if where[1] == "shared" else where[0]
        if not full:
            self.release_leases()
        elif name in self.node.state.services and len(self.node.state.leases) < 130:
            with contextlib.suppress(CniError):
                while True:
                    self.node.state.lease(name)

    def release_leases(self):
        for address, lease in list(self.node.state.leases.items()):
            self.node.state.release(address, lease.owner)

    @rule(seconds=st.sampled_from([1.0, COOLDOWN / 2, COOLDOWN]))
    def time_passes(self, seconds):
        self.now += seconds

    # --- helpers ---------------------------------------------------------------------------------------------------

    def fd_of(self, who):
        if who not in self.fds:
            self.next_fd += 1
            self.fds[who] = self.next_fd
        return self.fds[who]

    @contextlib.contextmanager
    def trouble(self, fault):
        """The fault, if there is one, and a new daemon where it was a kill."""
        held = self.in_use()
        if fault is not None:
            self.node.kernel.fail(**fault)
        try:
            yield
        except Killed:
            self.start_again(None)
        finally:
            self.node.kernel.heal()
        for address in held - self.in_use():
            self.vacated[address] = self.now

    def start_again(self, fault):
        held = self.in_use()
        if fault is not None:
            self.node.kernel.fail(**{**fault, "kill": True})
            with contextlib.suppress(Killed):
                self.node.keeper.adopt()
        self.node.restart()
        self.node.keeper.adopt()
        for address in held - self.in_use():
            self.vacated[address] = self.now

    def in_use(self):
        """The addresses of live attachments."""
        return {held.ip for each in self.node.state.snapshot() if each.state == "live" for held in each.addresses}

    def is_whole(self, made):
        """Whether an attachment is in the kernel as its record says."""
        kernel, inside = self.node.kernel, self.node.kernel.spaces[self.fds[made.container]]
        host, link = kernel.links[made.host_veth], inside.links[made.ifname]
        return (
            made.state == "live"
            and (host.up, link.up, host.peer, link.peer) == (True, True, link.index, host.index)
            and host.master == kernel.links[made.bridge].index
            and {str(a) for a in inside.addresses[link.index]} == {held.address for held in made.addresses}
            and made.host_veth in kernel.admitted
        )

    def fresh_enough(self, made, before):
        """No container gets an address that another one had less than a cooldown ago."""
        own = {held.ip for held in before.addresses} if before is not None else set()
        for held in made.addresses:
            rested = self.now - self.vacated.get(held.ip, self.now - COOLDOWN)
            assert held.ip in own or rested >= COOLDOWN, f"{held.ip} rested {rested} s"

    # --- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def no_address_has_two_owners(self):
        owned = self.node.ips() + list(self.node.state.leases)
        assert len(owned) == len(set(owned))
        assert {str(a): n for a, n in self.node.state._addresses.held.items()} == dict.fromkeys(owned, 1)

    @invariant()
    def every_link_of_ours_has_a_record(self):
        assert self.node.kernel.veths() <= {each.host_veth for each in self.node.state.snapshot()}

    @invariant()
    def no_address_is_free_while_its_link_exists(self):
        for each in self.node.kernel.addresses_in_use():
            assert ipaddress.ip_address(each) in self.node.state._addresses.held

    @invariant()
    def nobody_is_admitted_without_a_record(self):
        assert self.node.kernel.admitted.keys() <= {each.host_veth for each in self.node.state.snapshot()}

    @invariant()
    def subnets_are_apart_and_hold_their_services_addresses(self):
        every = [s for service in self.node.state.services.values() for s in service.subnets]
        assert len(every) == len(set(every))
        for each in self.node.state.snapshot():
            segment = SHARED_BRIDGE_KEY if each.mode == "shared" else each.service
            subnets = self.node.state.services[segment].subnets
            for held in each.addresses:
                subnet = ipaddress.ip_interface(held.address).network
                assert str(subnet) in subnets
                assert held.gateway == str(ipam.gateway_of(subnet))

    @invariant()
    def no_bridge_has_the_gateway_of_anothers_subnet(self):
        for service in self.node.state.services.values():
            for gateway in self.node.kernel.gateways(service.bridge):
                subnet = str(ipaddress.ip_interface(gateway).network)
                owners = {o.bridge for o in self.node.state.services.values() if subnet in o.subnets}
                assert owners <= {service.bridge}

    @invariant()
    def what_is_written_is_what_is_known(self):
        again = State(self.node.store, self.node.settings, Events())
        for part in ("node", "attachments", "services", "leases"):
            assert getattr(again, part) == getattr(self.node.state, part)
        assert again._addresses.held == self.node.state._addresses.held
        assert again._addresses.released == self.node.state._addresses.released

    # --- the end ---------------------------------------------------------------------------------------------------

    def teardown(self):
        try:
            if hasattr(self, "node"):
                self.everything_can_be_taken_away()
        finally:
            if hasattr(self, "node"):
                self.node.close()
            self.patch.undo()
            self.place.cleanup()

    def everything_can_be_taken_away(self):
        node = self.node
        node.kernel.heal()
        self.release_leases()
        for each in node.state.snapshot():
            node.delete(each.container)
        for _ in range(2):
            node.keeper.look()
        assert node.left() == NOTHING
        assert node.state._addresses.held == {}
        for service in node.state.services.values():
            if service.subnets:
                assert len(service.subnets) == len(node.state.cidrs), "further slots go with the last who needed them"
                gateways = {f"{ipam.gateway_of(n)}/{n.prefixlen}" for v in (4, 6) for n in service.networks(v)}
                assert node.kernel.gateways(service.bridge) == gateways
        node.data_path.tear_down()
        assert (node.kernel.links, node.state.services) == ({}, {})


class TestServiceLayer(ServiceLayer.TestCase):  # type: ignore[valid-type,misc]
    settings = settings(
        max_examples=100,
        stateful_step_count=30,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )

    @pytest.fixture(autouse=True)
    def _quietly(self, caplog):
        caplog.set_level(logging.CRITICAL)
