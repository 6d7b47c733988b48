"""What an annotation may decide, and what the list decides for it."""

import pytest

from cni.errors import InvalidConfig
from cni.isolation import MODE_LABEL, NETWORK_LABEL, SERVICE_LABEL
from cni.netconf.policy import Place, Policy, refuse

FLAT = Place("net", "auto", None)
DEFAULT = Policy()
ALL = Policy(allow=("service", "mode", "isolationNetwork"))


def allowed(
    labels: dict[str, str],
    wished: Place,
    listed: Place = FLAT,
    pinned: set[str] | None = None,
    policy: Policy = DEFAULT,
) -> bool:
    try:
        refuse(policy, frozenset(pinned or ()), labels, listed, wished)
    except InvalidConfig as error:
        assert any(label in error.msg for label in labels), error.msg
        return False
    return True


RED = {NETWORK_LABEL: "red"}
TO_RED = Place("net", "auto", "red")


def test_by_default_an_annotation_decides_what_the_list_gives_no_value() -> None:
    assert allowed(RED, TO_RED)
    assert allowed({SERVICE_LABEL: "web"}, Place("web", "auto", None))
    assert allowed({MODE_LABEL: "isolated"}, Place("net", "isolated", "net"))


def test_by_default_it_overrides_no_value_of_the_list() -> None:
    blue = Place("net", "auto", "blue")
    assert not allowed(RED, TO_RED, blue, {"isolationNetwork"})
    assert allowed({NETWORK_LABEL: "blue"}, blue, blue, {"isolationNetwork"})  # it asks for what it gets anyway
    web = Place("web", "auto", None)
    assert not allowed({SERVICE_LABEL: "db"}, Place("db", "auto", None), web, {"service"})
    isolated = Place("net", "isolated", "net")
    assert not allowed({MODE_LABEL: "auto"}, FLAT, isolated, {"mode"})


def test_a_network_that_follows_from_the_lists_mode_is_given_too() -> None:
    isolated = Place("net", "isolated", "net")
    assert not allowed(RED, Place("net", "isolated", "red"), isolated, {"mode"})
    assert not allowed({SERVICE_LABEL: "web"}, Place("web", "isolated", "web"), isolated, {"mode"})
    opened = Policy(allow=("service", "isolationNetwork"))
    assert allowed({SERVICE_LABEL: "web"}, Place("web", "isolated", "web"), isolated, {"mode"}, opened)


def test_allow_says_it_all() -> None:
    assert not allowed(RED, TO_RED, policy=Policy(allow=()))
    assert not allowed(RED, TO_RED, policy=Policy(allow=("service", "mode")))
    assert allowed(RED, TO_RED, Place("net", "auto", "blue"), {"isolationNetwork"}, ALL)
    assert not allowed({MODE_LABEL: "isolated"}, Place("net", "isolated", "net"), policy=Policy(allow=("service",)))


def test_only_the_networks_and_services_of_the_list() -> None:
    only = Policy(networks=("red",), services=("web",))
    assert allowed(RED, TO_RED, policy=only)
    assert not allowed({NETWORK_LABEL: "blue"}, Place("net", "auto", "blue"), policy=only)
    assert allowed({SERVICE_LABEL: "web"}, Place("web", "auto", None), policy=only)
    assert not allowed({SERVICE_LABEL: "db"}, Place("db", "auto", None), policy=only)
    # a mode leads to a network as well
    assert not allowed({MODE_LABEL: "isolated"}, Place("net", "isolated", "net"), policy=only)
    both = {MODE_LABEL: "isolated", SERVICE_LABEL: "web"}
    assert not allowed(both, Place("web", "isolated", "web"), policy=only)
    assert allowed(both, Place("web", "isolated", "web"), policy=Policy(networks=("web",), services=("web",)))
    # and so does leaving one
    policy = Policy(allow=ALL.allow, networks=("red",))
    assert not allowed({MODE_LABEL: "auto"}, FLAT, Place("net", "isolated", "net"), {"mode"}, policy)


def test_the_fence_of_an_edge_peer_is_no_pods_network() -> None:
    fence = "edge:laptop"
    assert not allowed({NETWORK_LABEL: fence}, Place("net", "auto", fence), policy=ALL)
    assert not allowed({SERVICE_LABEL: fence, MODE_LABEL: "isolated"}, Place(fence, "isolated", fence), policy=ALL)


@pytest.mark.parametrize("label", ["red", ""])
def test_the_empty_name_is_a_network_like_any_other(label: str) -> None:
    assert not allowed({NETWORK_LABEL: label}, Place("net", "auto", label), policy=Policy(networks=("blue",)))
    assert allowed({NETWORK_LABEL: label}, Place("net", "auto", label), policy=Policy(networks=(label,)))
