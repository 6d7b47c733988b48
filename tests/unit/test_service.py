"""What an ADD asks for: the service, the addresses, DNS, and which source of each wins."""

import pytest

from cni.errors import CniError
from cni.netconf.capabilities import ConventionArgs, RuntimeConfig
from cni.netconf.configuration import NetConf
from cni.netconf.environment import Call, parse_call
from cni.netconf.intent import Intent, Requested, intent
from cni.netconf.policy import Policy
from cni.netconf.types import DNS, Route

KUBERNETES = "IgnoreUnknown=1;K8S_POD_NAMESPACE=blue;K8S_POD_NAME=web-0;K8S_POD_UID=u;EMPTY="


def call(args=KUBERNETES):
    return parse_call(
        {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c", "CNI_NETNS": "/n", "CNI_IFNAME": "eth0", "CNI_ARGS": args}
    )


def asked(cni_args=KUBERNETES, /, **members):
    return intent(NetConf(name="net", **members), call(cni_args))


def refusal(cni_args=KUBERNETES, /, **members):
    with pytest.raises(CniError) as caught:
        asked(cni_args, **members)
    return caught.value


def test_nothing_asked_for():
    assert asked() == Intent(service="net", mode="auto", isolation_network=None)


def test_plain_members_go_through():
    members = {
        "join_global": True,
        "ephemeral": True,
        "mtu": 1300,
        "routes": (Route("192.0.2.0/24"),),
    }
    found = asked(**members)
    assert {name: getattr(found, name) for name in members} == members


# --- the service ---


@pytest.mark.parametrize(
    ("template", "service"),
    [
        ("web", "web"),
        ("${K8S_POD_NAMESPACE}", "blue"),
        ("${K8S_POD_NAMESPACE}-${K8S_POD_NAME}", "blue-web-0"),
        ("a${K8S_POD_UID}b${K8S_POD_UID}c", "aubuc"),
        ("$K8S_POD_NAMESPACE", "$K8S_POD_NAMESPACE"),
        ("a$", "a$"),
        ("$${K8S_POD_UID}", "$u"),
        ("}${K8S_POD_UID}}", "}u}"),
        ("dienst ä", "dienst ä"),
    ],
)
def test_substitution(template, service):
    assert asked(service=template).service == service


def test_what_is_put_in_is_not_looked_at_again():
    assert asked("A=${B};B=c", service="${A}-${B}").service == "${B}-c"


@pytest.mark.parametrize(("args", "name"), [("", "K8S_POD_NAMESPACE"), (KUBERNETES, "MISSING"), (KUBERNETES, "EMPTY")])
def test_a_name_that_cni_args_does_not_give(args, name):
    error = refusal(args, service=f"a-${{{name}}}")
    assert error.code == 7
    assert error.msg == f'service: "a-${{{name}}}" needs {name}, which CNI_ARGS does not give'


def test_letter_case_of_a_name_counts():
    assert refusal(service="${k8s_pod_namespace}").code == 7


def test_a_key_the_service_uses_is_a_known_one():
    assert asked("TENANT=red", service="${TENANT}").service == "red"
    error = refusal("TENANT=red", service="web")
    assert (error.code, error.msg) == (4, 'CNI_ARGS: ARGS: unknown args ["TENANT=red"]')


@pytest.mark.parametrize("members", [{}, {"service": "web", "annotations": Policy(allow=("service",))}])
def test_the_annotation_wins_where_it_may(members):
    labels = ConventionArgs(labels={"com.zlayer.service": "label"})
    annotations = RuntimeConfig(annotations={"com.zlayer.service": "pod"})
    assert asked(**members, runtime=annotations, args=labels).service == "pod"
    assert asked(**members, args=labels).service == "label"


def test_an_annotation_is_not_a_template():
    found = asked(runtime=RuntimeConfig(annotations={"com.zlayer.service": "${K8S_POD_NAMESPACE}"}))
    assert found.service == "${K8S_POD_NAMESPACE}"


@pytest.mark.parametrize("service", ["", "a\x00b", "a\nb", "x" * 254])
def test_what_cannot_be_a_service(service):
    error = refusal(runtime=RuntimeConfig(annotations={"com.zlayer.service": service}))
    assert error.code == 7
    assert error.msg.startswith("com.zlayer.service")


@pytest.mark.parametrize("network", ["a\x00b", "a\n"])
def test_what_cannot_be_an_isolation_network(network):
    error = refusal(runtime=RuntimeConfig(annotations={"com.zlayer.isolation_network": network}))
    assert error.code == 7
    assert error.msg.startswith("com.zlayer.isolation_network")


# --- hardware address ---

MACS = {"runtime": "02:00:00:00:00:0a", "args": "02:00:00:00:00:0b", "env": "02:00:00:00:00:0c"}


def with_macs(**given):
    args = f"MAC={given['env']}" if given.get("env") else ""
    runtime, convention = RuntimeConfig(mac=given.get("runtime")), ConventionArgs(mac=given.get("args"))
    return NetConf(name="net", runtime=runtime, args=convention), call(args)


@pytest.mark.parametrize("runtime", [None, "", MACS["runtime"]])
@pytest.mark.parametrize("args", [None, "", MACS["args"]])
@pytest.mark.parametrize("env", ["", MACS["env"]])
def test_whose_hardware_address(runtime, args, env):
    assert intent(*with_macs(runtime=runtime, args=args, env=env)).mac == (runtime or args or env)


@pytest.mark.parametrize("text", ["02:00:5E:10:00:01", "02-00-5e-10-00-01", "0200.5e10.0001", "02:00:5e:10:00:01"])
def test_ways_to_write_a_hardware_address(text):
    assert intent(*with_macs(runtime=text)).mac == "02:00:5e:10:00:01"


BAD_MACS = [
    *("x", "02:00:5e:10:00", "02:00:5e:10:00:01:02", "2:0:5e:10:0:1", "02:00:5e:10:00:0g", "02005e100001"),
    *("03:00:5e:10:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00", " 02:00:5e:10:00:01", "02:00-5e:10-00:01"),
    *("02:00:5e:10:00:01\n", "02:00:5e:10:00:0\u0661", "+2:00:5e:10:00:01"),
]


@pytest.mark.parametrize("text", BAD_MACS, ids=ascii)
@pytest.mark.parametrize(
    ("source", "where", "code"),
    [("runtime", "runtimeConfig.mac", 7), ("args", "args.cni.mac", 7), ("env", "CNI_ARGS: MAC", 4)],
)
def test_bad_hardware_addresses(text, source, where, code):
    with pytest.raises(CniError) as caught:
        intent(*with_macs(**{source: text}))
    assert caught.value.code == code
    assert caught.value.msg.startswith(where)


# --- addresses ---


@pytest.mark.parametrize("runtime", [None, (), ("10.0.0.10",)])
@pytest.mark.parametrize("args", [None, (), ("10.0.0.11",)])
@pytest.mark.parametrize("env", ["", "10.0.0.12"])
def test_whose_addresses(runtime, args, env):
    found = asked(f"IP={env}", runtime=RuntimeConfig(ips=runtime), args=ConventionArgs(ips=args))
    expected = (runtime or args or ((env,) if env else ()))[:1]
    assert found.addresses == tuple(Requested(text) for text in expected)


@pytest.mark.parametrize(
    ("texts", "found"),
    [
        (("10.0.0.2",), [Requested("10.0.0.2")]),
        (("10.0.0.2/24",), [Requested("10.0.0.2", 24)]),
        (("10.0.0.2/32", "FD00::0:2/64"), [Requested("10.0.0.2", 32), Requested("fd00::2", 64)]),
        (("fd00::2", "10.0.0.2"), [Requested("fd00::2"), Requested("10.0.0.2")]),
    ],
)
def test_with_and_without_prefix(texts, found):
    assert asked(runtime=RuntimeConfig(ips=texts)).addresses == tuple(found)
    assert asked(f"IP={','.join(texts)}").addresses == tuple(found)


BAD_IPS = [
    *("x", "", "10.0.0", "10.0.0.2/33", "10.0.0.2/", "10.0.0.2/-1", "10.0.0.2/255.255.255.0", "010.0.0.2", "0.0.0.0"),
    *("127.0.0.1", "224.0.0.1", "::", "::1", "ff02::1", "fe80::1", "fd00::1%eth0", "::ffff:10.0.0.2", "169.254.0.1"),
    *(" 10.0.0.2", "10.0.0.2\n", "fd00::2/129", "10.0.0.2/\u0661", "10.0.0.2/24/24"),
]


@pytest.mark.parametrize("text", BAD_IPS, ids=ascii)
def test_bad_addresses(text):
    for members, where in (
        ({"runtime": RuntimeConfig(ips=(text,))}, "runtimeConfig.ips"),
        ({"args": ConventionArgs(ips=(text,))}, "args.cni.ips"),
    ):
        error = refusal(**members)
        assert error.code == 7
        assert error.msg.startswith(where)
    if text:
        error = refusal(f"IP={text}")
        assert error.code == 4
        assert error.msg.startswith("CNI_ARGS: IP")


@pytest.mark.parametrize("texts", [("10.0.0.2", "10.0.0.3"), ("fd00::2", "10.0.0.2", "fd00::3"), ("10.0.0.2",) * 2])
def test_two_addresses_of_one_family(texts):
    error = refusal(runtime=RuntimeConfig(ips=texts))
    assert error.code == 7
    assert "a second address of its family" in error.msg


# --- CNI_ARGS that cannot be read ---


@pytest.mark.parametrize("args", ["rubbish", "A=b", "IgnoreUnknown=1;A"])
def test_bad_args_fail_an_add(args):
    assert refusal(args).code == 4


# --- DNS ---

CONFIGURED = DNS(("10.0.0.1",), "conf.example", ("conf",), ("ndots:1",))


@pytest.mark.parametrize(
    ("configured", "runtime", "found"),
    [
        (None, DNS(), None),
        (DNS(), DNS(), DNS()),
        (CONFIGURED, DNS(), CONFIGURED),
        (None, DNS(("10.0.0.9",)), DNS(("10.0.0.9",))),
        (CONFIGURED, DNS(("10.0.0.9",)), DNS(("10.0.0.9",), "conf.example", ("conf",), ("ndots:1",))),
        (CONFIGURED, DNS((), "", ("r",), ("o",)), DNS(("10.0.0.1",), "conf.example", ("r",), ("o",))),
    ],
)
def test_the_runtimes_dns_replaces_member_by_member(configured, runtime, found):
    assert asked(dns=configured, runtime=RuntimeConfig(dns=runtime)).dns == found


def test_a_call_without_arguments_is_enough():
    assert intent(NetConf(name="net"), Call(command="ADD")).service == "net"
