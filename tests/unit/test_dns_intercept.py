"""The table that leads containers' DNS questions to the node's server, as text."""

from cni.daemon.model.dns_intercept import is_in_force, ruleset


def test_each_family_is_led_to_its_own_address() -> None:
    text = ruleset(["10.200.0.0/16", "fd00:200::/48"], {"10.200.0.1": 53530, "fd00:200::1": 40001})
    rules = [line for line in text.splitlines() if line.startswith("add rule")]
    assert rules == [
        'add rule inet zlayer_cni_dns prerouting iifname "zl-*" ip saddr 10.200.0.0/16 ip daddr != 10.200.0.0/16 '
        "fib daddr type unicast meta l4proto { 6, 17 } th dport 53 dnat ip to 10.200.0.1:53530",
        'add rule inet zlayer_cni_dns prerouting iifname "zl-*" ip6 saddr fd00:200::/48 ip6 daddr != fd00:200::/48 '
        "fib daddr type unicast meta l4proto { 6, 17 } th dport 53 dnat ip6 to [fd00:200::1]:40001",
        "add rule inet zlayer_cni_dns output ip saddr 10.200.0.1 icmp type 3 icmp code 3 @th,240,16 53530 drop",
        "add rule inet zlayer_cni_dns output ip6 saddr fd00:200::1 icmpv6 type 1 icmpv6 code 4 @th,400,16 40001 drop",
    ]


def test_a_family_without_a_socket_is_left_alone() -> None:
    text = ruleset(["10.200.0.0/16", "fd00:200::/48"], {"10.200.0.1": 53530})
    assert "ip6 " not in text
    assert "add rule" not in ruleset(["10.200.0.0/16"], {})


def test_another_text_is_not_in_force() -> None:
    text = ruleset(["10.200.0.0/16"], {"10.200.0.1": 53530})
    marker = next(line.split()[4] for line in text.splitlines() if "rules_" in line)
    listing = {"nftables": [{"chain": {"name": name}} for name in (marker, "prerouting", "output")]}
    assert not is_in_force(text, listing)
    listing["nftables"] += [{"rule": {}}, {"rule": {}}]  # type: ignore[dict-item]
    assert is_in_force(text, listing)
    assert not is_in_force(ruleset(["10.200.0.0/16"], {"10.200.0.1": 1}), listing)
    assert not is_in_force(text, None)
