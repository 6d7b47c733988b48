"""Which attachments have their MAC watched, by time and by the container's end."""

from __future__ import annotations

from cni.daemon.reconcile.mac_watches import MacWatches, Watched

ONE: Watched = (("net", "one", "eth0"), 1.0)
TWO: Watched = (("net", "two", "eth0"), 2.0)


def test_the_earliest_is_due_first():
    watches = MacWatches()
    watches.push(20.0, 1.0, TWO)
    watches.push(10.0, 0.5, ONE)
    assert watches.next_at() == 10.0
    assert watches.take(9.0) is None
    assert watches.take(10.0) == (0.5, ONE)
    assert watches.take(10.0) is None
    assert watches.next_at() == 20.0


def test_a_forgotten_one_is_not_due():
    watches = MacWatches()
    watches.push(10.0, 0.5, ONE)
    watches.push(20.0, 1.0, TWO)
    watches.forget(ONE)
    assert watches.next_at() == 20.0
    assert watches.take(30.0) == (1.0, TWO)
    assert not watches.empty()  # a taken one is watched until it is forgotten
    watches.forget(TWO)
    watches.forget(TWO)
    assert watches.empty()
    assert watches.next_at() is None


def test_a_change_leads_to_its_attachment_alone():
    watches = MacWatches()
    for end, watched in (((1, 2), ONE), ((3, 2), TWO)):
        watches.push(10.0, 6.0, watched)
        watches.listen(end, watched)
    assert watches.heard({(3, 2): "0a:1", (9, 9): "0a:2"}) == [(TWO, "0a:1")]
    assert watches.heard({}) == []
    assert sorted(watches.heard(None)) == [(ONE, ""), (TWO, "")]
    watches.forget(TWO)
    assert watches.heard({(3, 2): "0a:1"}) == []
    assert watches.heard(None) == [(ONE, "")]


def test_an_end_that_another_attachment_has_now_stays_its_own():
    watches = MacWatches()
    watches.push(10.0, 6.0, ONE)
    watches.listen((1, 2), ONE)
    watches.push(10.0, 6.0, TWO)
    watches.listen((1, 2), TWO)
    watches.forget(ONE)
    assert watches.heard({(1, 2): "0a:1"}) == [(TWO, "0a:1")]
