"""Deleting without waiting: the name is gone on return, many at once cost little more than one."""

import errno
import resource
import threading
import time

import pytest

from cni.host import links
from cni.host.link_deleter import GROUP, LinkDeleter
from cni.host.netlink import Netlink, NetlinkError

pytestmark = pytest.mark.root


@pytest.fixture
def reaper(host):
    made = host.inside(LinkDeleter)
    yield made
    made.close()


def veths(netlink, host, container, count):
    """So many ports into the container; their names."""
    bridge = links.ensure_bridge(netlink, "zb-1", "02:00:00:00:00:aa", 1420)
    names = [f"zp-{n}" for n in range(count)]
    for n, name in enumerate(names):
        tail = f"{n >> 8:02x}:{n & 255:02x}"
        port = links.Port(name, f"02:00:00:01:{tail}", bridge.index, 1420, f"e{n}", f"02:00:00:02:{tail}")
        links.create_port(netlink, port, container.fd)
    return names


def remove(reaper, host, name):
    """In a thread inside the host's namespace, as the daemon's are; the answer, and what is still seen of the link."""

    def work():
        with Netlink() as sock:
            return reaper.remove(name), links.find_link(sock, name)

    return host.inside(work)


def test_a_removed_link_is_gone_on_return_with_its_peer(host, container, netlink, reaper):
    (name,) = veths(netlink, host, container, 1)
    assert remove(reaper, host, name) == (True, None)
    assert (host.links(), container.links()) == ({"zb-1"}, set())


def test_removing_twice_says_that_there_was_none(host, container, netlink, reaper):
    (name,) = veths(netlink, host, container, 1)
    assert [remove(reaper, host, name)[0] for _ in range(3)] == [True, False, False]


def test_the_name_can_be_used_again_at_once(host, container, netlink, reaper):
    for _ in range(5):
        (name,) = veths(netlink, host, container, 1)
        assert remove(reaper, host, name)[0]


def test_a_bridge_is_removed_too(host, netlink, reaper):
    links.ensure_bridge(netlink, "zb-1", "02:00:00:00:00:aa", 1420)
    assert remove(reaper, host, "zb-1") == (True, None)


def test_many_at_once_cost_less_than_one_by_one(host, container, netlink, reaper):
    names, answers = veths(netlink, host, container, 60), []
    start = time.monotonic()
    for name in names[:20]:
        links.remove_link(netlink, name)
    one_by_one = (time.monotonic() - start) / 20
    threads = [threading.Thread(target=lambda n=n: answers.append(remove(reaper, host, n))) for n in names[20:]]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    took = (time.monotonic() - start) / 40
    assert answers == [(True, None)] * 40
    assert (host.links(), container.links()) == ({"zb-1"}, set())
    assert took < one_by_one, f"{took * 1000:.1f} ms a link, {one_by_one * 1000:.1f} ms one by one"


def test_one_link_wanted_gone_by_many(host, container, netlink, reaper):
    (name,) = veths(netlink, host, container, 1)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(remove(reaper, host, name))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [seen for _, seen in answers] == [None] * 8
    assert any(answer for answer, _ in answers)


def test_a_link_that_others_remove_meanwhile_is_fine(host, container, netlink, reaper):
    names = veths(netlink, host, container, 10)
    threads = [threading.Thread(target=lambda n=n: remove(reaper, host, n)) for n in names]
    for thread in threads:
        thread.start()
    for name in names:
        links.remove_link(netlink, name)
    for thread in threads:
        thread.join(30)
    assert host.links() == {"zb-1"}


def test_links_of_others_stay(host, container, netlink, reaper):
    host.ip("link add mine type veth peer name yours")
    names = veths(netlink, host, container, 10)
    threads = [threading.Thread(target=lambda n=n: remove(reaper, host, n)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert host.links() == {"zb-1", "mine", "yours"}
    assert host.link("mine").get("group", 0) != GROUP


def test_what_cannot_be_removed_is_an_error_and_the_reaper_goes_on(host, container, netlink, reaper):
    for _ in range(4):  # once more than it has threads
        with pytest.raises(NetlinkError) as caught:
            remove(reaper, host, "lo")
        assert caught.value.errno == errno.EOPNOTSUPP
    (name,) = veths(netlink, host, container, 1)
    assert remove(reaper, host, name) == (True, None)


def test_a_refusal_is_one_line_of_the_log_and_no_traceback(host, reaper, caplog):
    with pytest.raises(NetlinkError):
        remove(reaper, host, "lo")
    (record,) = caplog.records
    assert not record.exc_info
    assert record.getMessage() == "1 links could not be deleted: delete link 1: Operation not supported"


def test_a_link_that_cannot_be_looked_for_is_not_gone(host, netlink, reaper):
    def without_descriptors():
        with Netlink():
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # all three are taken
            try:
                return reaper.remove("lo")
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    with pytest.raises(OSError):
        host.inside(without_descriptors)


def test_the_reaper_survives_links_that_vanish_by_the_hundred(host, container, netlink, monkeypatch):
    monkeypatch.setattr("cni.host.link_deleter.PATIENCE", 1.0)
    reaper = host.inside(LinkDeleter)
    try:
        for _ in range(6):
            for _ in range(400):
                reaper._queue.put((9999, []))
            time.sleep(0.05)
        (name,) = veths(netlink, host, container, 1)
        assert remove(reaper, host, name) == (True, None)
    finally:
        for _ in range(3):  # close() would wait for a thread that waits for an answer
            reaper._queue.put(None)
