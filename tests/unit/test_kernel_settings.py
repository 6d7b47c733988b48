"""What the kernel's settings come to."""

from cni.daemon.node.kernel_settings import forwarding_off, overruled


def test_forwarding_is_told_by_family_and_by_link():
    assert forwarding_off({4: True, 6: True}, []) == {}
    assert set(forwarding_off({4: False, 6: False}, ["eth0"])) == {"4", "6"}
    assert forwarding_off({4: False}, []) == {}, "each link that matters forwards, whatever ip_forward is"
    assert forwarding_off({4: True}, ["eth0", "zl-web-b"]) == {
        "eth0": "net.ipv4.conf.eth0.forwarding is 0: no answer from there reaches a container",
        "zl-web-b": "net.ipv4.conf.zl-web-b.forwarding is 0: containers there reach only their own bridge",
    }
    assert forwarding_off({6: True}, ["eth0"]) == {}


def test_arp_ignore_of_all_may_be_stricter_and_not_looser():
    assert [bool(overruled(value)) for value in range(9)] == [False] * 3 + [True] * 6
    assert "no gateway" in overruled(8)["arp_ignore"]
    assert "other addresses" in overruled(3)["arp_ignore"]
