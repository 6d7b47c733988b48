"""Names as values: what is a label, what a question is about, what a registered name means."""

from __future__ import annotations

import pytest

from cni.daemon.dns.node_names import registered_in
from cni.daemon.model import dns_names
from cni.daemon.model.dns_names import Zone

PLAIN = Zone("shop.zlayer.local", "shop", ranges=("10.200.0.0/16", "fd00:200::/48"))
AGENT = Zone("shop.zlayer.local", "shop", agent=True, ranges=("10.192.0.0/12",))


@pytest.mark.parametrize("text", ["a", "web", "Web-1", "0", "a" * 63, "1-2"])
def test_a_label(text: str) -> None:
    assert dns_names.label(text) == text.lower()


@pytest.mark.parametrize("text", ["", "-a", "a-", "a_b", "a.b", "a" * 64, "ä", "a b", "a\n", "\u0130", "\u212a"])
def test_no_label(text: str) -> None:
    assert dns_names.label(text) is None


@pytest.mark.parametrize(
    ("pod", "container", "name"),
    [
        ("ns/web-1", "c1", "web-1"),
        ("/box", "c1", "box"),
        ("", "c1", "c1"),
        ("", "0123456789abcdef" * 4, "0123456789ab"),
        ("", f"default-{'0123456789abcdef' * 4}", "0123456789ab"),
    ],
)
def test_what_a_container_is_called(pod: str, container: str, name: str) -> None:
    assert dns_names.container_name(pod, container) == name


@pytest.mark.parametrize(("deployment", "zone"), [("shop", "shop.zlayer.local"), ("my_shop", "zlayer.local")])
def test_the_zone_of_a_deployment(deployment: str, zone: str) -> None:
    assert dns_names.default_zone(deployment) == zone


def about(zone: Zone, name: str) -> tuple[str | None, str | None] | None:
    subject = zone.subject(name.split("."))
    return None if subject is None else (subject.relative, subject.address)


@pytest.mark.parametrize(
    ("name", "relative"),
    [
        ("shop.zlayer.local", ""),
        ("web.shop.zlayer.local", "web"),
        ("a.web.shop.zlayer.local", "a.web"),
        ("web", "web"),
        ("web.service.shop.zlayer.local", "web.service"),
    ],
)
def test_names_inside_the_zone(name: str, relative: str) -> None:
    assert about(PLAIN, name) == (relative, None)


@pytest.mark.parametrize(
    "name", ["example.com", "zlayer.local", "web.other.zlayer.local", "a.web", "web.overlay.local"]
)
def test_names_of_others(name: str) -> None:
    assert about(PLAIN, name) is None


@pytest.mark.parametrize(
    "name",
    [
        "web.shop.zlayer.local",
        "web.zlayer.local",
        "web.overlay.local",
        "web.shop.overlay.local",
        "web.service.shop.zlayer.local",
        "web.service.overlay.local",
        "web.service.shop.overlay.local",
        "web.shop.service.overlay.local",
        "web.service.local",
    ],
)
def test_the_families_of_an_agents_names(name: str) -> None:
    assert about(AGENT, name) == ("web", None)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.1.200.10.in-addr.arpa", "10.200.1.2"),
        ("1.200.10.in-addr.arpa", None),
        ("200.10.in-addr.arpa", None),
        ("2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.0.0.0.d.f.ip6.arpa", "fd00:200::2"),
    ],
)
def test_reverse_names(name: str, address: str | None) -> None:
    assert about(PLAIN, name) == (None, address)


@pytest.mark.parametrize(
    "name",
    [
        "10.in-addr.arpa",
        "2.1.201.10.in-addr.arpa",
        "02.1.200.10.in-addr.arpa",
        "256.1.200.10.in-addr.arpa",
        "1.2.1.200.10.in-addr.arpa",
        "x.200.10.in-addr.arpa",
        "in-addr.arpa",
        "0.0.2.0.0.0.d.f.ip6.arpa",
    ],
)
def test_reverse_names_of_others(name: str) -> None:
    assert about(PLAIN, name) is None


def test_the_cut_of_a_reverse_zone_is_at_an_octet() -> None:
    subject = AGENT.subject(["2", "1", "200", "10", "in-addr", "arpa"])
    assert subject is not None
    assert ".".join(subject.zone) == "200.10.in-addr.arpa"


def test_registered_names_are_relative_to_the_zone_or_as_they_are() -> None:
    names = {
        "db.shop.zlayer.local": ("10.0.0.1",),
        "DB": ("10.0.0.2",),
        "api.example.com.": ("10.0.0.3",),
        "no_name": ("10.0.0.4",),
        "": ("10.0.0.5",),
    }
    assert registered_in(PLAIN, names.items()) == {
        "db": ("10.0.0.1", "10.0.0.2"),
        "api.example.com": ("10.0.0.3",),
    }
