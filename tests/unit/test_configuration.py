"""The configuration on standard input: strict JSON, keys in any case, wrong types and values, DEL's patience."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.errors import CniError
from cni.netconf.capabilities import ConventionArgs, RuntimeConfig, aliases_of
from cni.netconf.configuration import NetConf, decode_document, interpret
from cni.netconf.decode import MAX_BYTES
from cni.netconf.policy import Policy
from cni.netconf.request import read_request
from cni.netconf.types import DNS, IP, Interface, Result, Route
from cni.netconf.values import Attachment
from cni.netconf.versions import SUPPORTED, check_version
from cni.openings import ListedOpenings

RECORDINGS = sorted((Path(__file__).parents[1] / "recordings").glob("*.json"))
BASE = {"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni"}
PREVIOUS = {"interfaces": [{"name": "eth0", "sandbox": "/n"}], "ips": [{"address": "10.0.0.2/24", "interface": 0}]}
VERBS = ["ADD", "CHECK", "DEL", "GC", "STATUS"]


def parse_configuration(stdin: bytes, verb: str) -> NetConf:
    """The configuration as the verbs read it."""
    document = decode_document(stdin)
    check_version(document.version, verb)
    return interpret(document, verb)


def conf(verb="ADD", **keys):
    return parse_configuration(json.dumps({**BASE, **keys}).encode(), verb)


def refusal(stdin, verb="ADD"):
    if isinstance(stdin, dict):
        stdin = json.dumps({**BASE, **stdin}).encode()
    with pytest.raises(CniError) as caught:
        parse_configuration(stdin, verb)
    return caught.value


# --- the frame ---

NOT_JSON = {
    "empty": b"",
    "blank": b" \n",
    "half": b'{"name":"n"',
    "text after it": b'{"name":"n"}x',
    "two documents": b'{"name":"n"}{"name":"n"}',
    "byte order mark": b'\xef\xbb\xbf{"name":"n"}',
    "UTF-16": '{"name":"n"}'.encode("utf-16"),
    "not UTF-8": b'{"name":"n\xff"}',
    "surrogate in UTF-8": b'{"name":"n","x":"\xed\xa0\x80"}',
    "lone surrogate": b'{"name":"n","x":"\\ud800"}',
    "lone surrogate as a key": b'{"name":"n","\\udc00":1}',
    "NUL": b'{"name":"n\x00"}',
    "NUL after it": b'{"name":"n"}\x00',
    "raw newline in a text": b'{"name":"n","x":"a\nb"}',
    "NaN": b'{"name":"n","x":NaN}',
    "Infinity": b'{"name":"n","x":-Infinity}',
    "single quotes": b"{'name':'n'}",
    "comment": b'{"name":"n"} // no',
    "deep lists": b'{"name":"n","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"name":"n","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "endless number": b'{"name":"n","x":' + b"9" * 10_000 + b"}",
    "array": b"[]",
    "text": b'"name"',
    "number": b"1",
    "name is a number": b'{"name":1}',
    "name is a list": b'{"name":["n"]}',
    "version is a number": b'{"name":"n","cniVersion":1.1}',
    "name twice": b'{"name":"n","name":"n"}',
    "name twice in other letters": b'{"name":"n","NAME":"n"}',
    "version twice": b'{"name":"n","cniVersion":"1.0.0","CniVersion":"1.1.0"}',
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_no_configuration(case, verb):
    error = refusal(NOT_JSON[case], verb)
    assert error.code == 6
    assert error.msg.startswith("error unmarshall network config: ")


def test_more_than_anybody_sends():
    assert refusal(b'{"name":"n","x":"' + b"y" * MAX_BYTES + b'"}').code == 6


def test_a_big_configuration_is_fine():
    assert conf(x="y" * (1 << 20)).name == "net"


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("stdin", [b"null", b"{}", b'{"name":""}', b'{"name":null}', b'{"cniVersion":"1.1.0"}'])
def test_no_name(stdin, verb):
    error = refusal(stdin, verb)
    assert (error.code, error.msg) == (7, "missing network name")


@pytest.mark.parametrize("name", ["-a", "a b", "a/b", "../a", "ä", "a\n", "a\x00", ".", "a;b"])
def test_bad_names(name):
    error = refusal({"name": name})
    assert (error.code, error.msg, error.details) == (7, "invalid characters found in network name", name)


@pytest.mark.parametrize("name", ["name-with-hyphens", "a", "A.b_c", "0"])
def test_good_names(name):
    assert conf(name=name).name == name


def test_without_a_version_it_is_the_oldest():
    assert parse_configuration(b'{"name":"n"}', "ADD").version == "0.1.0"
    assert parse_configuration(b'{"name":"n","cniVersion":""}', "ADD").version == "0.1.0"


# --- our own keys ---


def test_nothing_but_the_name_is_needed():
    assert conf() == NetConf(name="net", version="1.1.0", type="zlayer-cni")


EVERYTHING: dict[str, Any] = {
    "service": "${K8S_POD_NAMESPACE}-web",
    "mode": "isolated",
    "isolationNetwork": "blue",
    "joinGlobal": True,
    "ephemeral": True,
    "mtu": 1380,
    "dns": {"nameservers": ["10.0.0.1", "fe80::1%eth0"], "domain": "d", "search": ["s"], "options": ["ndots:5"]},
    "routes": [{"dst": "192.0.2.0/24", "gw": "10.0.0.1", "mtu": 0, "table": 0}, {"dst": "::/0"}],
    "isolation": {"reach": ["10.96.0.10:53/udp", "service/dns"], "from": ["nodes"]},
    "annotations": {"allow": ["service", "isolationNetwork"], "networks": ["red", ""], "services": ["db"]},
    "overlayd": {"socket": "/var/run/zlayer-overlayd.sock"},
    "autostart": False,
    "runDir": "/run/other",
    "dataDir": "/var/lib/other",
    "runtimeConfig": {
        "ips": ["10.0.0.3/24"],
        "mac": "02:00:00:00:00:01",
        "dns": {"servers": ["10.0.0.2"], "searches": ["r"], "options": ["o"]},
        "io.kubernetes.cri.pod-annotations": {"com.zlayer.service": "db"},
    },
    "args": {"cni": {"ips": ["10.0.0.4"], "mac": "02:00:00:00:00:02", "labels": [{"key": "k", "value": "v"}]}},
    "prevResult": PREVIOUS,
}
READ = NetConf(
    name="net",
    version="1.1.0",
    type="zlayer-cni",
    service="${K8S_POD_NAMESPACE}-web",
    mode="isolated",
    isolation_network="blue",
    join_global=True,
    ephemeral=True,
    mtu=1380,
    dns=DNS(("10.0.0.1", "fe80::1%eth0"), "d", ("s",), ("ndots:5",)),
    routes=(Route("192.0.2.0/24", "10.0.0.1", table=0), Route("::/0")),
    opens=ListedOpenings(reach=("10.96.0.10:53/udp", "service/dns"), from_=("nodes",)),
    annotations=Policy(allow=("service", "isolationNetwork"), networks=("red", ""), services=("db",)),
    pinned=frozenset({"service", "mode", "isolationNetwork"}),
    socket="/var/run/zlayer-overlayd.sock",
    autostart=False,
    run_dir="/run/other",
    data_dir="/var/lib/other",
    runtime=RuntimeConfig(
        ips=("10.0.0.3/24",),
        mac="02:00:00:00:00:01",
        dns=DNS(("10.0.0.2",), "", ("r",), ("o",)),
        annotations={"com.zlayer.service": "db"},
    ),
    args=ConventionArgs(("10.0.0.4",), "02:00:00:00:00:02", {"k": "v"}),
    prev_result=Result((Interface("eth0", sandbox="/n"),), (IP("10.0.0.2/24", interface=0),)),
)


def recased(value, change, exact=("io.kubernetes.cri.pod-annotations",)):
    """The value with every key changed, but for the keys that are a user's data."""
    if isinstance(value, dict):
        return {change(key): item if key in exact else recased(item, change, exact) for key, item in value.items()}
    return [recased(item, change, exact) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("change", [str, str.upper, str.lower, str.title, str.swapcase], ids=lambda f: f.__name__)
def test_every_key_in_any_letter_case(change):
    stdin = json.dumps(recased({**BASE, **EVERYTHING}, change)).encode()
    assert parse_configuration(stdin, "ADD") == READ


def test_null_is_the_same_as_absent():
    keys = [*EVERYTHING, "capabilities", "ipam", "ipMasq", "cniVersions"]
    assert conf(**dict.fromkeys(keys)) == conf()
    assert conf(runtimeConfig=dict.fromkeys(EVERYTHING["runtimeConfig"]), args={"cni": None}) == conf()


def test_an_empty_path_is_the_same_as_absent():
    assert conf(runDir="", dataDir="", overlayd={"socket": ""}) == conf()


def test_the_empty_isolation_network_is_a_name():
    assert conf(isolationNetwork="").isolation_network == ""


WRONG_TYPES = {
    "type": [1],
    "service": [1, ["a"], {}],
    "mode": [1, True, ["auto"]],
    "isolationNetwork": [0, False],
    "joinGlobal": ["true", 1, 0],
    "ephemeral": ["false", 0],
    "mtu": ["1400", 1400.0, 1e3, True, [1400]],
    "dns": ["10.0.0.1", ["10.0.0.1"], {"nameservers": "10.0.0.1"}, {"search": [1]}, {"options": {}}, {"domain": []}],
    "routes": [{}, "0.0.0.0/0", ["0.0.0.0/0"], [None], [{"dst": 1}], [{"dst": "10.0.0.0/8", "mtu": "1400"}]],
    "isolation": ["nodes", ["nodes"], {"reach": "service/dns"}, {"from": [1]}],
    "overlayd": ["/run/x.sock", [], {"socket": 1}],
    "autostart": ["no", 0, 1.0],
    "runDir": [1, ["/run"]],
    "dataDir": [False],
    "capabilities": ["ips", ["ips"], {"ips": "yes"}],
    "runtimeConfig": [
        *([], "x", {"ips": "10.0.0.1"}, {"ips": [1]}, {"mac": 1}, {"dns": []}, {"dns": {"Servers": "10.0.0.1"}}),
        *({"io.kubernetes.cri.pod-annotations": ["a"]}, {"io.kubernetes.cri.pod-annotations": {"a": 1}}),
    ],
    "ipam": ["host-local", [], 7, True, {"type": 7}, {"type": ["host-local"]}],
    "ipMasq": ["true", 1, {}],
    "cniVersions": ["1.0.0", {}, [1], ["1.0.0", None]],
    "plugins": [{}, "zlayer-cni"],
    "disableCheck": ["yes", 1, []],
    "disableGC": ["True", 0, {}],
    "loadOnlyInlinedPlugins": ["", 2, ["true"]],
    "args": [[], "a", {"cni": []}, {"cni": {"ips": "10.0.0.1"}}, {"cni": {"mac": 1}}, {"cni": {"labels": ["a"]}}],
    "prevResult": [[], "x", {"interfaces": {}}, {"ips": [{"address": 1}]}, {"ips": [{"address": "10.0.0.1"}]}],
}
WRONG_VALUES = {
    "service": ["", "a\x00b", "a\nb", "\x7f", "x" * 254, "ä" * 127, "${", "${}", "a${B", "${}b"],
    "mode": ["", "Isolated", " isolated", "AUTO", "none", "isolatd"],
    "isolationNetwork": ["a\x00", "\t"],
    "isolation": [
        *({"reach": ["10.96.0.10:53"]}, {"reach": ["dns"]}, {"reach": ["::1:53/udp"]}, {"reach": ["service/"]}),
        *({"from": ["0.0.0.0/0"]}, {"from": ["all"]}, {"reach": ["10.0.0.1"] * 257}),
    ],
    "mtu": [-1, 1, 575, 65536, 10**30],
    "dns": [
        *({"nameservers": ["x"]}, {"nameservers": [""]}, {"nameservers": ["10.0.0.1/24"]}, {"nameservers": ["::1%"]}),
        *({"nameservers": ["10.0.0.1%eth0"]}, {"search": ["a b"]}, {"search": [""]}, {"options": ["a\nb"]}),
        *({"domain": "a b"}, {"nameservers": ["::1%a b"]}, {"nameservers": ["1.2.3"]}, {"nameservers": ["01.2.3.4"]}),
    ],
    "routes": [
        *([{}], [{"dst": ""}], [{"dst": "10.0.0.1"}], [{"dst": "10.0.0.1/24"}], [{"dst": "10.0.0.0/33"}]),
        *([{"dst": "::/129"}], [{"dst": "10.0.0.0/-1"}], [{"dst": "10.0.0.0/255.0.0.0"}], [{"dst": "default"}]),
        *([{"dst": "10.0.0.0/8", "gw": "::1"}], [{"dst": "10.0.0.0/8", "gw": "x"}], [{"dst": "fe80::%1/64"}]),
        *([{"dst": "10.0.0.0/8", "mtu": -1}], [{"dst": "10.0.0.0/8", "scope": 256}]),
        [{"dst": "10.0.0.0/8", "table": 1 << 32}],
    ],
    "runtimeConfig": [
        *({"dns": {"Servers": ["x"]}}, {"dns": {"servers": ["10.0.0.1/24"]}}, {"dns": {"searches": ["a b"]}}),
        *({"dns": {"options": ["a\nb"]}}, {"dns": {"servers": ["::1%"]}}),
    ],
    "overlayd": [{"socket": "run/x"}, {"socket": "/" + "x" * 107}, {"socket": "/a\x00"}, {"socket": "@abstract"}],
    "runDir": ["run", ".", "/a\nb", "/" + "x" * 80],
    "dataDir": ["~/x", "/" + "x" * 1024],
    "prevResult": [{"ips": [{"address": "10.0.0.1/24", "interface": 0}]}],
    "args": [{"cni": {"labels": [{"value": "a"}]}}],
}


def cases(table):
    return [pytest.param(key, value, id=f"{key}={json.dumps(value)[:40]}") for key in table for value in table[key]]


@pytest.mark.parametrize(("key", "value"), cases(WRONG_TYPES))
def test_a_wrong_type_is_code_6_and_named(key, value):
    error = refusal({key: value})
    assert error.code == 6
    assert error.msg.startswith(key)


@pytest.mark.parametrize("member", [{"mtu": 1300}, {"advmss": 9}, {"priority": 1}, {"table": 100}, {"scope": 253}])
def test_a_route_that_we_would_not_make_as_it_says_is_code_2_and_named(member):
    error = refusal({"routes": [{"dst": "192.0.2.0/24"}, {"dst": "10.0.0.0/8", **member}]})
    ((key, value),) = member.items()
    assert error.code == 2
    assert f"routes[1].{key}: {value}" in error.msg


def test_empty_words_of_a_runtimes_dns_are_dropped():
    """A kubelet on a node whose resolv.conf says `search .` hands on an empty one."""
    found = conf(runtimeConfig={"dns": {"Servers": ["10.0.0.2", ""], "Searches": [""], "Options": ["", "a"]}})
    assert found.runtime.dns == DNS(nameservers=("10.0.0.2",), options=("a",))


@pytest.mark.parametrize(("key", "value"), cases(WRONG_VALUES))
def test_a_wrong_value_is_code_7_and_named(key, value):
    error = refusal({key: value})
    assert error.code == 7
    assert error.msg.startswith(key)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mode": "isolatd"}, 'mode: "isolatd" is not one of auto, shared, dedicated, isolated'),
        ({"mtu": "1400"}, 'mtu: expected an integer, found "1400"'),
        ({"mtu": 40}, "mtu: 40 is neither 0 nor between 576 and 65535"),
        ({"routes": [{"dst": "10.0.0.1/24"}]}, 'routes[0].dst: "10.0.0.1/24": has host bits set'),
        ({"runDir": "run"}, 'runDir: "run" is not an absolute path'),
        ({"runtimeConfig": {"Dns": {"SERVERS": 1}}}, "runtimeConfig.dns.servers: expected a list, found 1"),
    ],
)
def test_the_message_names_key_and_value(keys, said):
    assert said in refusal(keys).msg


@pytest.mark.parametrize("key", ["mode", "mtu", "service", "runDir", "dns", "prevResult", "runtimeConfig"])
def test_a_known_key_twice_is_refused(key):
    value = json.dumps(EVERYTHING[key]).encode()
    for other in (key, key.upper()):
        stdin = b'{"name":"n","%b":%b,"%b":%b}' % (key.encode(), value, other.encode(), value)
        assert (refusal(stdin).code, refusal(stdin).msg) == (6, f"{key} is given more than once")


def test_an_unknown_key_twice_is_nobodys_business():
    assert parse_configuration(b'{"name":"n","x":1,"x":2}', "ADD").unknown == ("x",)


def test_annotations_that_differ_in_letter_case_only():
    stdin = b'{"name":"n","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"A":"1","a":"2"}}}'
    assert parse_configuration(stdin, "ADD").runtime.annotations == {"A": "1", "a": "2"}


@pytest.mark.parametrize(("key", "value"), cases(WRONG_TYPES) + cases(WRONG_VALUES))
def test_del_takes_every_fault_of_ours_as_a_warning(key, value):
    found = conf("DEL", **{key: value})
    assert any(warning.startswith(f"ignored: {key}") for warning in found.warnings)
    assert msgspec.structs.replace(found, warnings=(), type=BASE["type"]) == conf("DEL")


# --- unknown keys, and what has no effect ---


def test_unknown_keys_are_warned_of():
    found = conf(
        isolationNetwrok="a",
        dns={"nameserver": []},
        overlayd={"sokcet": ""},
        routes=[{"dst": "::/0", "via": "x"}],
        runtimeConfig={"novelty": 1},
        args={"other": {}, "cni": {"more": 1}},
        **{"cni.dev/novelty": 1},
    )
    paths = ("isolationNetwrok", "overlayd.sokcet", "dns.nameserver", "runtimeConfig.novelty", "routes[0].via")
    assert sorted(found.unknown) == sorted(paths)
    assert sorted(found.warnings) == sorted(f"{path}: unknown key, ignored" for path in paths)


def test_what_the_runtime_leaves_in_is_no_surprise():
    found = conf(
        cniVersions=["1.0.0", "1.1.0"],
        disableCheck=True,
        disableGC="true",
        loadOnlyInlinedPlugins=False,
        capabilities={"ips": True, "anything": False},
        runtimeConfig={"cgroupPath": "/x", "portMappings": []},
        ipam={},
    )
    assert (found.warnings, found.unknown) == ((), ())


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ipMasq": False}, "ipMasq"),
        ({"ipam": {"type": "host-local"}}, "ipam"),
        ({"runtimeConfig": {"portMappings": [{"HostPort": 80}]}}, "runtimeConfig.portMappings"),
        ({"runtimeConfig": {"bandwidth": {"IngressRate": 1}}}, "runtimeConfig.bandwidth"),
    ],
)
def test_what_has_no_effect_is_warned_of(keys, said):
    (warning,) = conf(**keys).warnings
    assert warning.startswith(f"{said}: has no effect here")


# --- runtimeConfig and args ---


@pytest.mark.parametrize("aliases", ["a", [1], {"net": "a"}, 1, True])
def test_aliases_of_another_shape_are_no_error_and_are_warned_of(aliases):
    found = conf(runtimeConfig={"aliases": aliases})
    assert found.warnings == ("runtimeConfig.aliases: has no effect here, it is no list of names",)
    assert found.unknown == ()


@pytest.mark.parametrize(("aliases", "names"), [(["a", "b"], ("a", "b")), ({"net": ["a"], "Net": ["b"]}, ("a",))])
def test_aliases_are_a_list_or_lists_by_network(aliases, names):
    found = conf(runtimeConfig={"aliases": aliases})
    assert aliases_of(found.runtime.aliases, found.name) == names
    assert found.warnings == ()


def test_a_foreign_daemon_serves_no_aliases():
    found = conf(runtimeConfig={"aliases": ["a"]}, overlayd={"socket": "/run/a.sock"})
    assert found.warnings == ("runtimeConfig.aliases: has no effect here, the overlay daemon serves no names",)


@pytest.mark.parametrize("aliases", [None, [], {}])
def test_no_aliases_are_no_warning(aliases):
    assert conf(runtimeConfig={"aliases": aliases}).warnings == ()


@pytest.mark.parametrize("labels", [[{"key": "k", "value": "v"}], {"k": "v"}, [{"Key": "k", "Value": "v", "x": 1}]])
def test_labels_as_a_list_or_a_map(labels):
    assert conf(args={"cni": {"labels": labels}}).args.labels == {"k": "v"}


# --- prevResult ---


def test_check_needs_the_previous_result():
    for keys in ({}, {"prevResult": None}):
        error = refusal(keys, "CHECK")
        assert (error.code, error.msg) == (7, "Required prevResult missing")
    assert conf("CHECK", prevResult={}).prev_result == Result()


@pytest.mark.parametrize("garbage", [[], "x", 7, {"ips": 1}, {"ips": [{"address": "nonsense"}]}])
def test_a_garbled_previous_result(garbage):
    assert refusal({"prevResult": garbage}, "ADD").code == 6
    assert refusal({"prevResult": garbage}, "CHECK").code == 6
    found = conf("DEL", prevResult=garbage)
    assert found.prev_result is None
    assert found.warnings[0].startswith("ignored: prevResult")


@pytest.mark.parametrize("version", SUPPORTED)
def test_the_previous_result_is_read_in_the_configurations_version(version):
    old = {"ip4": {"ip": "10.0.0.2/24"}}
    new = {"ips": [{"version": "4", "address": "10.0.0.2/24"}]}
    found = conf(cniVersion=version, prevResult=old if version < "0.3" else new)
    assert found.prev_result == Result(ips=(IP("10.0.0.2/24"),))


# --- GC ---

VALID = "cni.dev/valid-attachments"
LEGACY = "cni.dev/attachments"
ONE = [{"containerID": "a", "ifname": "eth0"}]


@pytest.mark.parametrize(
    ("keys", "read"),
    [
        ({}, None),
        ({VALID: None}, ()),
        ({VALID: []}, ()),
        ({VALID: ONE}, (Attachment("a", "eth0"),)),
        ({LEGACY: ONE}, (Attachment("a", "eth0"),)),
        ({LEGACY: None}, ()),
        ({VALID: [], LEGACY: ONE}, ()),
        ({VALID: ONE, LEGACY: []}, (Attachment("a", "eth0"),)),
        ({VALID.upper(): [{"CONTAINERID": "a", "IfName": "eth0", "more": 1}]}, (Attachment("a", "eth0"),)),
    ],
)
def test_the_list_for_gc(keys, read):
    found = conf("GC", **keys)
    assert found.valid_attachments == read
    assert found.warnings == ()


@pytest.mark.parametrize(
    ("value", "code"),
    [
        *(("a", 6), ({}, 6), (["a"], 6), ([None], 6), ([{"containerID": 1, "ifname": "eth0"}], 6)),
        *(([{}], 7), ([{"containerID": "a"}], 7), ([{"ifname": "eth0"}], 7), ([*ONE, {"containerID": ""}], 7)),
        ([{"containerID": "../a", "ifname": "eth0"}], 7),
    ],
)
def test_a_list_half_understood_frees_nothing(value, code):
    assert refusal({VALID: value}, "GC").code == code
    assert conf("ADD", **{VALID: value}).valid_attachments is None


# --- what runtimes really sent ---


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recorded_calls_are_understood(path):
    calls = json.loads(path.read_text("utf-8"))["calls"]
    assert calls
    for call in calls:
        _, found = read_request(call["env"], json.dumps(call["stdin"]).encode())
        assert found.name == call["stdin"]["name"]
        assert (found.prev_result is None) == ("prevResult" not in call["stdin"])
        sent = call["stdin"].get("runtimeConfig", {}).get("io.kubernetes.cri.pod-annotations", {})
        assert found.runtime.annotations == (sent or {})


def test_containerds_capitals_are_read():
    calls = json.loads((RECORDINGS[0].parent / "containerd-1.6-capabilities.json").read_text("utf-8"))["calls"]
    stdin = next(call["stdin"] for call in calls if "dns" in call["stdin"].get("runtimeConfig", {}))
    found = parse_configuration(json.dumps(stdin).encode(), "ADD")
    assert found.runtime.dns == DNS(("10.96.0.10",), "", ("default.svc.cluster.local",), ("ndots:5",))


# --- whatever comes in ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*EVERYTHING, "capabilities", "ipam", VALID, LEGACY, "name", "cniVersion"])


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, JSON, max_size=4), st.sampled_from(VERBS))
def test_any_json_is_understood_or_refused_with_a_code(keys, verb):
    try:
        parse_configuration(json.dumps({**BASE, **keys}).encode(), verb)
    except CniError as error:
        assert error.code in (1, 6, 7)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=64), st.sampled_from(VERBS))
def test_any_bytes_are_understood_or_refused_with_a_code(stdin, verb):
    try:
        parse_configuration(stdin, verb)
    except CniError as error:
        assert error.code in (6, 7)
