"""Which isolation network a container joins: the rule, and the sources it is fed from."""

import itertools

import pytest

from cni.isolation import MODES, isolation_network, mode_of_label
from cni.netconf.capabilities import ConventionArgs, RuntimeConfig
from cni.netconf.configuration import NetConf
from cni.netconf.environment import Call
from cni.netconf.intent import intent

NETWORK = "com.zlayer.isolation_network"
MODE = "com.zlayer.overlay.mode"
CALL = Call(command="ADD")


@pytest.mark.parametrize("explicit", ["blue", "", " ", "web", "isolated"])
@pytest.mark.parametrize("mode", MODES)
def test_an_explicit_name_wins_whatever_the_mode(explicit, mode):
    assert isolation_network(explicit, mode, "web") == explicit


@pytest.mark.parametrize("service", ["web", "blue", "default"])
def test_without_a_name_mode_isolated_means_the_service(service):
    assert isolation_network(None, "isolated", service) == service


@pytest.mark.parametrize("mode", ["auto", "shared", "dedicated"])
def test_otherwise_none(mode):
    assert isolation_network(None, mode, "web") is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        *((mode, mode) for mode in MODES),
        *((mode.upper(), mode) for mode in MODES),
        *((f" \t{mode.title()}\n\u00a0\u3000", mode) for mode in MODES),
        *((other, "auto") for other in ("", " ", "isolatd", "iso lated", "none", "\x1cisolated", "i\u017folated")),
    ],
)
def test_the_mode_of_a_label(text, mode):
    assert mode_of_label(text) == mode


# Every combination of who names a network and who names a mode: annotation, label, configuration.
NAMES = [None, "", "red"]
SOURCES = ["annotation", "label", "conf"]


def chosen(names, modes, service="web"):
    annotations, labels = (
        {key: value for key, value in ((NETWORK, names[at]), (MODE, modes[at])) if value is not None} for at in (0, 1)
    )
    conf = NetConf(
        name="net",
        service=service,
        isolation_network=names[2],
        mode=modes[2] or "auto",
        runtime=RuntimeConfig(annotations=annotations),
        args=ConventionArgs(labels=labels),
    )
    return intent(conf, CALL)


@pytest.mark.parametrize("names", [*itertools.product(NAMES, repeat=3)], ids=str)
@pytest.mark.parametrize("modes", [*itertools.product([None, "shared", "isolated"], repeat=3)], ids=str)
def test_annotation_before_label_before_configuration(names, modes):
    found = chosen(names, modes)
    mode = next((mode for mode in modes if mode is not None), "auto")
    name = next((name for name in names if name is not None), None)
    assert found.mode == mode
    expected = name if name is not None else ("web" if mode == "isolated" else None)
    assert found.isolation_network == expected


def test_a_label_that_is_no_mode_is_auto_and_is_warned_of():
    found = chosen([None] * 3, ["isolatd", None, "isolated"])
    assert (found.mode, found.isolation_network) == ("auto", None)
    assert found.warnings == (f'{MODE}: "isolatd" is not one of {", ".join(MODES)}, taken as auto',)


def test_a_good_label_is_not_warned_of():
    assert chosen([None] * 3, [" ISOLATED ", None, None]).warnings == ()


def test_the_fence_follows_the_service_the_annotation_chose():
    conf = NetConf(
        name="net",
        service="web",
        mode="isolated",
        runtime=RuntimeConfig(annotations={"com.zlayer.service": "db"}),
    )
    assert intent(conf, CALL).isolation_network == "db"
    assert intent(NetConf(name="net", mode="isolated"), CALL).isolation_network == "net"


def test_keys_of_annotations_count_letter_by_letter():
    conf = NetConf(name="net", runtime=RuntimeConfig(annotations={MODE.upper(): "isolated"}))
    assert intent(conf, CALL).mode == "auto"
