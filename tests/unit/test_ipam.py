"""Which address an attachment gets: never one that is held, reserved or cooling, and the longest rested first."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.daemon.model import ipam
from cni.daemon.model.ipam import Cooldown
from cni.errors import AddressUnavailable

V4 = ipaddress.ip_network("10.200.1.64/26")
V6 = ipaddress.ip_network("fd00:200::100/120")
NOTHING = Cooldown({}, now=1000.0, cooldown=10.0)


def ip(text):
    return ipaddress.ip_address(text)


def rest(released, now=1000.0, cooldown=10.0):
    return Cooldown({ip(a): t for a, t in released.items()}, now, cooldown)


def every(subnet):
    return [subnet.network_address + n for n in range(subnet.num_addresses)]


# --- what a container may have ---


def test_a_slot_of_64_has_61_addresses_for_containers():
    may = [a for a in every(V4) if ipam.usable(V4, a)]
    assert (len(may), str(may[0]), str(may[-1])) == (61, "10.200.1.66", "10.200.1.126")


def test_ipv6_has_no_broadcast_address():
    may = [a for a in every(V6) if ipam.usable(V6, a)]
    assert (len(may), str(may[0]), str(may[-1])) == (254, "fd00:200::102", "fd00:200::1ff")


@pytest.mark.parametrize(
    "text",
    ["10.200.1.64", "10.200.1.65", "10.200.1.127", "10.200.1.63", "10.200.1.128", "fd00:200::102"],
)
def test_no_container_may_have(text):
    assert not ipam.usable(V4, ip(text))


def test_the_gateway_is_the_first_host():
    assert [str(ipam.gateway_of(n)) for n in (V4, V6)] == ["10.200.1.65", "fd00:200::101"]


# --- choosing ---


@pytest.mark.parametrize(("subnet", "first"), [(V4, "10.200.1.66"), (V6, "fd00:200::102")])
def test_an_empty_subnet_gives_its_lowest_address(subnet, first):
    assert ipam.choose(subnet, set(), NOTHING) == ip(first)


def test_what_was_never_used_goes_before_what_has_rested():
    assert ipam.choose(V4, set(), rest({"10.200.1.66": 0.0})) == ip("10.200.1.67")


def test_the_longest_rested_goes_first_whatever_its_number():
    others = set(every(V4)[5:])
    rested = rest({"10.200.1.66": 500.0, "10.200.1.67": 400.0, "10.200.1.68": 450.0})
    assert ipam.choose(V4, others, rested) == ip("10.200.1.67")


def test_an_address_cools_for_exactly_the_cooldown():
    others = set(every(V4)[3:])
    assert ipam.choose(V4, others, rest({"10.200.1.66": 990.001})) is None
    assert ipam.choose(V4, others, rest({"10.200.1.66": 990.0})) == ip("10.200.1.66")


def test_without_a_cooldown_an_address_is_free_at_once():
    others = set(every(V4)[3:])
    assert ipam.choose(V4, others, rest({"10.200.1.66": 1000.0}, cooldown=0.0)) == ip("10.200.1.66")


def test_a_full_subnet_gives_none():
    assert ipam.choose(V4, set(every(V4)), NOTHING) is None


@pytest.mark.parametrize("subnet", ["10.0.0.0/30", "10.0.0.0/31", "10.0.0.0/32", "fd00::/127", "fd00::/128"])
def test_a_tiny_subnet_gives_only_what_is_usable(subnet):
    net = ipaddress.ip_network(subnet)
    chosen = ipam.choose(net, set(), NOTHING)
    assert chosen is None or ipam.usable(net, chosen)


subnets = st.sampled_from([ipaddress.ip_network(n) for n in ("10.0.0.0/28", "10.0.0.16/29", "fd00::20/124")])


@st.composite
def pools(draw):
    subnet = draw(subnets)
    addresses = st.sampled_from(every(subnet))
    held = draw(st.frozensets(addresses))
    released = draw(st.dictionaries(addresses, st.floats(0, 100), max_size=16))
    return subnet, held, Cooldown(released, now=100.0, cooldown=draw(st.sampled_from([0.0, 10.0, 60.0])))


@given(pools())
def test_a_choice_is_one_that_could_have_been_claimed_and_the_best_of_them(pool):
    subnet, held, resting = pool
    candidates = [a for a in every(subnet) if ipam.usable(subnet, a) and a not in held and not resting.cooling(a)]
    chosen = ipam.choose(subnet, held, resting)
    if chosen is None:
        assert candidates == []
        return
    assert chosen in candidates
    assert ipam.claim([subnet], chosen, held) == subnet
    never = -1.0
    best = min(resting.released.get(a, never) for a in candidates)
    assert resting.released.get(chosen, never) == best


@given(subnets)
def test_a_pool_gives_every_usable_address_once(subnet):
    held = set()
    while (chosen := ipam.choose(subnet, held, NOTHING)) is not None:
        assert chosen not in held
        held.add(chosen)
    assert held == {a for a in every(subnet) if ipam.usable(subnet, a)}


# --- claiming ---


def test_a_free_address_is_claimed_in_its_own_subnet():
    other = ipaddress.ip_network("10.200.9.0/26")
    assert ipam.claim([other, V4], ip("10.200.1.100"), set()) == V4


def test_a_held_address_cannot_be_claimed():
    with pytest.raises(AddressUnavailable, match=r"10\.200\.1\.100 is in use"):
        ipam.claim([V4], ip("10.200.1.100"), {ip("10.200.1.100")})


@pytest.mark.parametrize("text", ["10.200.1.64", "10.200.1.65", "10.200.1.127", "10.200.2.5", "fd00:200::102"])
def test_what_no_container_may_have_cannot_be_claimed(text):
    with pytest.raises(AddressUnavailable, match=text.replace(".", r"\.")):
        ipam.claim([V4], ip(text), set())


def test_a_service_without_subnets_says_so():
    with pytest.raises(AddressUnavailable, match="no subnet of that family"):
        ipam.claim([], ip("10.200.1.100"), set())
