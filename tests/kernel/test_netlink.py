"""Our netlink messages: batches, errors in the kernel's words, forgiveness, dumps. Judged by pyroute2."""

import contextlib
import errno
import ipaddress

import pytest

from cni.host import links, nlmsg
from cni.host import netlink as nl
from cni.host.netlink import Message, NetlinkError

pytestmark = pytest.mark.root


def bridge(name, flags=nl.F_CREATE | nl.F_EXCL, forgive=()):
    body = nl.ifinfo() + nl.text(links.IFLA_IFNAME, name) + nl.attribute(links.IFLA_LINKINFO, nl.text(1, "bridge"))
    return Message(nl.RTM_NEWLINK, flags, body, f"create {name}", frozenset(forgive))


def test_a_batch_is_carried_out_in_order(host, netlink):
    netlink.send([bridge("one"), bridge("two"), bridge("three")])
    assert host.links() == {"one", "two", "three"}
    found = [link.name for link in links.list_links(netlink) if link.name != "lo"]
    assert found == ["one", "two", "three"]


def test_an_empty_batch_does_not_wait_for_an_answer(netlink):
    with pytest.raises(OSError) as caught:
        netlink.send([])
    assert caught.value.errno == errno.ENODATA


def test_the_first_error_is_raised_and_names_its_message(host, netlink):
    with pytest.raises(NetlinkError) as caught:
        netlink.send([bridge("one"), bridge("one"), bridge("x" * 40), bridge("two")])
    assert (caught.value.errno, caught.value.what) == (errno.EEXIST, "create one")
    assert "create one: File exists" in str(caught.value)
    assert host.links() == {"one", "two"}, "the kernel goes on after an error, and so callers undo everything"


def test_the_last_messages_error_is_raised_too(netlink):
    with pytest.raises(NetlinkError) as caught:
        netlink.send([bridge("one"), bridge("two"), bridge("two")])
    assert caught.value.what == "create two"


def test_the_kernels_own_words_are_told(netlink):
    body = nl.ifinfo() + nl.text(links.IFLA_IFNAME, "x") + nl.attribute(links.IFLA_LINKINFO, nl.text(1, "nosuchkind"))
    with pytest.raises(NetlinkError, match="Unknown device type"):
        netlink.send([Message(nl.RTM_NEWLINK, nl.F_CREATE, body, "create x")])


def test_forgiven_errors_are_told_by_position(host, netlink):
    outcome = netlink.send(
        [bridge("one"), bridge("one", forgive={errno.EEXIST}), bridge("two"), bridge("two", forgive={errno.EEXIST})]
    )
    assert outcome.errors == [0, errno.EEXIST, 0, errno.EEXIST]
    assert host.links() == {"one", "two"}


def test_only_what_is_named_is_forgiven(netlink):
    with pytest.raises(NetlinkError) as caught:
        netlink.send([bridge("one"), bridge("one", forgive={errno.ENODEV})])
    assert caught.value.errno == errno.EEXIST


def test_a_socket_goes_on_after_an_error(netlink):
    for _ in range(3):
        with pytest.raises(NetlinkError):
            netlink.send([bridge("x" * 40), bridge("y" * 40), bridge("lo")])
        assert links.find_link(netlink, "lo").index == 1


def test_an_echo_is_an_answer(netlink):
    outcome = netlink.send([bridge("one", nl.F_CREATE | nl.F_EXCL | nl.F_ECHO)])
    (answer,) = [each for each in outcome.answers if each.type == nl.RTM_NEWLINK]
    assert nl.attributes(answer.body[16:])[links.IFLA_IFNAME] == b"one\0"


def test_a_dump_of_many_is_whole(host, netlink):
    netlink.send(bridge(f"br{n}") for n in range(300))
    found = [link.name for link in links.list_links(netlink)]
    assert (len(found), set(found) - {"lo"}) == (301, host.links())


def test_a_dump_of_what_does_not_exist_is_an_error(netlink):
    with pytest.raises(NetlinkError) as caught:
        netlink.dump(Message(254, 0, nl.ifinfo(), "list nonsense"))
    assert (caught.value.errno, caught.value.what) == (errno.EOPNOTSUPP, "list nonsense")
    assert links.find_link(netlink, "lo") is not None


def test_a_large_batch_in_which_everything_is_refused_and_forgiven(netlink):
    outcome = netlink.send(bridge("lo", forgive={errno.EEXIST}) for _ in range(1000))
    assert set(outcome.errors) == {errno.EEXIST}


def test_a_socket_goes_on_after_answers_that_did_not_fit(netlink):
    with contextlib.suppress(OSError):
        netlink.send(bridge("lo", forgive={errno.EEXIST}) for _ in range(1000))
    assert links.find_link(netlink, "lo").name == "lo"


def test_answers_to_an_earlier_request_are_passed_over(netlink):
    (late,) = [bridge("lo")]
    netlink._seq += 1
    request = nlmsg.message(late.type, nlmsg.ACK | late.flags, netlink._seq, late.body)
    netlink._sock.send(request)  # answered with EEXIST, which stays unread
    assert links.find_link(netlink, "lo").name == "lo"


def test_a_socket_stays_in_its_namespace(host, container):
    with host.netlink() as ours, container.netlink() as theirs:
        ours.send([bridge("here")])
        assert (host.links(), container.links()) == ({"here"}, set())
        assert links.find_link(theirs, "here") is None
        assert container.inside(lambda: links.find_link(ours, "here")) is not None


# --- attributes ---


@pytest.mark.parametrize("size", range(9))
def test_attributes_are_padded_and_read_back(size):
    value = bytes(range(1, size + 1))
    raw = nl.attribute(7, value) + nl.u32(8, 5)
    assert len(raw) % 4 == 0
    assert nl.attributes(raw) == {7: value, 8: (5).to_bytes(4, "little")}


@pytest.mark.parametrize("raw", [b"", b"\0", b"\0\0\0\0", b"\3\0\1\0", b"\xff\xff\1\0abc", b"\4\0\1"])
def test_broken_attributes_end_the_reading(raw):
    assert isinstance(nl.attributes(raw), dict)


def test_nested_flags_are_masked():
    assert nl.attributes(nl.attribute(0x8000 | 18, b"abcd")) == {18: b"abcd"}


def test_names_are_sent_as_they_are(host, netlink):
    name = "zlä-ü€"
    netlink.send([bridge(name)])
    assert links.find_link(netlink, name).name == name
    assert host.links() == {name}


def test_the_address_family_of_a_value():
    assert [links.family_of(ipaddress.ip_address(a)) for a in ("10.0.0.1", "::1")] == [2, 10]
