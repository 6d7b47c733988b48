"""What each verb requires and refuses, at each of the plugin's three doors: our daemon, the plugin in front of ZLayer's
daemon, and the single file, which checks a call before it starts a daemon. Tables of verb and key, code and words.
"""

import json
import logging
import os

import pytest

from cni.errors import CniError
from cni.netconf.versions import NEWEST, SUPPORTED
from cni.plugin import no_daemon
from cni.plugin.client import PluginCall, Waiter
from cni.upstream.entry import run_foreign
from cni.verbs import serve
from tests.unit.test_verbs import FakeOverlay

ENV = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/c1",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "",
    "CNI_NETNS_OVERRIDE": "",
}
REQUIRED = {
    "ADD": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "CHECK": {"CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"},
    "DEL": {"CNI_CONTAINERID", "CNI_IFNAME"},
    "GC": {"CNI_PATH"},
    "STATUS": set(),
}
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
RESULT = {"interfaces": [{"name": "eth0", "sandbox": "/run/netns/c1"}], "ips": [{"address": "10.9.0.66/26"}]}


@pytest.fixture(autouse=True)
def _log_levels():
    """The plugin in front of ZLayer's daemon sets up logging for its process: undone after each test."""
    root, overlay = logging.getLogger(), logging.getLogger("cni.overlay")
    before = list(root.handlers), root.level, overlay.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    overlay.setLevel(before[2])


def our_daemon(env, stdin, _):
    return serve(env, stdin, None, FakeOverlay(), lambda: True).stdout


def in_front_of_zlayers(env, stdin, tmp_path):
    """No daemon listens there: what is refused is refused before the daemon is asked."""
    variables = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    return run_foreign(variables, stdin, str(tmp_path / "none.sock"), str(tmp_path), 0.1)[1].decode()


def single_file(env, stdin, _):
    variables = {os.fsencode(key): os.fsencode(value) for key, value in env.items()}
    try:
        no_daemon._validate_without_imports(PluginCall(variables[b"CNI_COMMAND"], variables, stdin, Waiter(2.0)))
    except CniError as error:
        return json.dumps({"code": error.code, "msg": error.msg, "details": error.details})
    return ""


DOORS = {"daemon": our_daemon, "upstream": in_front_of_zlayers, "single-file": single_file}
WHOLE = ["daemon", "upstream"]


def call(door, verb, tmp_path, env=(), **conf):
    """(code, text of message and details) of one call; code 0 if the door accepts it."""
    variables = {"CNI_COMMAND": verb, **ENV, **dict(env)}
    whole = {"cniVersion": NEWEST, "name": "blue", "type": "zlayer-cni", "prevResult": RESULT, **conf}
    out = DOORS[door](variables, json.dumps(whole).encode(), tmp_path)
    error = json.loads(out) if out.strip() else {}
    return error.get("code", 0), f"{error.get('msg', '')} {error.get('details', '')}"


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("verb", REQUIRED)
@pytest.mark.parametrize("name", ENV)
def test_a_variable_is_required_by_its_verbs_and_by_no_other(tmp_path, door, verb, name):
    code, text = call(door, verb, tmp_path, {name: ""})
    assert (code == 4 and f"[{name}] missing" in text) is (name in REQUIRED[verb]), (code, text)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("verb", [verb for verb in REQUIRED if REQUIRED[verb]])
def test_all_missing_variables_are_named_at_once(tmp_path, door, verb):
    code, text = call(door, verb, tmp_path, dict.fromkeys(ENV, ""))
    assert code == 4
    assert set(text[text.index("[") + 1 : text.index("]")].split(",")) == REQUIRED[verb]


VERSIONS = [*SUPPORTED, "0.0.1", "0.4.1", "1.0.1", "1.1", "1.1.1", "2.0.0", "9.8.7", "x", "1.1.0.0", "1.1.0 "]


def due(verb, version):
    """The code that a version of the configuration is worth to a verb."""
    if version in SUPPORTED:
        return 1 if verb in SINCE and SUPPORTED.index(version) < SUPPORTED.index(SINCE[verb]) else 0
    return 6 if verb in SINCE and version in ("x", "1.1.0.0", "1.1.0 ") else 1


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("verb", REQUIRED)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_that_is_refused_is_named(tmp_path, door, verb, version):
    code, text = call(door, verb, tmp_path, cniVersion=version, prevResult=None)
    expected = due(verb, version)
    if expected:
        assert code == expected, text
        assert f'"{version}"' in text
    else:
        assert code not in (1, 6), text


TYPES: dict[str, list[object]] = {  # key: values of a wrong type
    "name": [7, ["blue"], {}],
    "cniVersion": [1.1, ["1.1.0"]],
    "type": [7, ["zlayer-cni"]],
    "cniVersions": ["1.0.0", [1]],
    "plugins": [{}, "x"],
    "disableCheck": [1, "yes"],
    "disableGC": [0, []],
    "loadOnlyInlinedPlugins": ["no", {}],
    "ipam": ["host-local", [], 7, {"type": ["host-local"]}],
    "ipMasq": ["true", 1],
    "dns": ["10.0.0.1", [], {"nameservers": "10.0.0.1"}, {"search": {}}, {"options": [1]}, {"domain": 1}],
    "capabilities": [["ips"], {"ips": 1}],
    "runtimeConfig": ["x", [], {"ips": "10.0.0.1"}, {"mac": 1}, {"dns": []}],
    "args": ["x", [], {"cni": []}],
    "service": [7],
    "mode": [7],
    "mtu": ["1400", True],
    "routes": [{}, "x", [7], [{"dst": 7}]],
    "overlayd": [[], {"socket": 7}],
    "autostart": ["no"],
    "runDir": [7],
    "dataDir": [7],
}
PREVIOUS = [  # results of a wrong type or form
    *("x", [], 7, {"interfaces": {}}, {"interfaces": [7]}, {"interfaces": [{"name": 7}]}),
    *({"interfaces": [{"name": "eth0", "mac": 7}]}, {"interfaces": [{"name": "eth0", "sandbox": 7}]}),
    *({"interfaces": [{"name": "eth0", "mtu": "1400"}]}, {"interfaces": [{"name": "eth0", "socketPath": 7}]}),
    *({"ips": {}}, {"ips": [7]}, {"ips": [{"address": 7}]}, {"ips": [{"address": "10.0.0.1"}]}, {"ips": [{}]}),
    *({"ips": [{"address": "10.0.0.1/24", "gateway": 7}]}, {"ips": [{"address": "10.0.0.1/24", "gateway": "x"}]}),
    *({"ips": [{"address": "10.0.0.1/24", "interface": "0"}]}, {"routes": {}}, {"routes": [7]}, {"routes": [{}]}),
    *({"routes": [{"dst": 7}]}, {"routes": [{"dst": "x"}]}, {"routes": [{"dst": "10.0.0.0/8", "gw": 7}]}),
    *({"routes": [{"dst": "10.0.0.0/8", "gw": "x"}]}, {"routes": [{"dst": "10.0.0.0/8", "gw": "::1"}]}),
    *({"routes": [{"dst": "10.0.0.0/8", key: "1"}]} for key in ("mtu", "advmss", "priority", "table", "scope")),
    *({"routes": [{"dst": "10.0.0.0/8", key: -1}]} for key in ("mtu", "advmss", "priority", "table", "scope")),
    *({"dns": []}, {"dns": {"nameservers": "10.0.0.1"}}, {"dns": {"search": [1]}}, {"dns": {"domain": 1}}),
    *({"dns": {"options": "x"}}, {"cniVersion": 7}, {"cniVersion": "0.1.0"}, {"cniVersion": "9.8.7"}),
]


@pytest.mark.parametrize("door", WHOLE)
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize(("key", "value"), [(key, value) for key in TYPES for value in TYPES[key]])
def test_a_key_of_a_wrong_type_is_named(tmp_path, door, verb, key, value):
    code, text = call(door, verb, tmp_path, **{key: value})
    assert code == 6, text
    assert key in text


@pytest.mark.parametrize("door", WHOLE)
@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
@pytest.mark.parametrize("value", PREVIOUS, ids=str)
def test_a_previous_result_of_a_wrong_form_is_named(tmp_path, door, verb, value):
    code, text = call(door, verb, tmp_path, prevResult=value)
    assert code == 6, text
    assert "prevResult" in text


@pytest.mark.parametrize("door", WHOLE)
@pytest.mark.parametrize("value", [None, *PREVIOUS], ids=str)
def test_del_goes_on_whatever_the_previous_result_is(tmp_path, door, value):
    code, text = call(door, "DEL", tmp_path, prevResult=value)
    assert code == 0, text


@pytest.mark.parametrize("door", WHOLE)
@pytest.mark.parametrize("key", sorted(set(TYPES) - {"name", "cniVersion"}))
def test_del_goes_on_whatever_a_key_holds(tmp_path, door, key):
    for value in TYPES[key]:
        assert call(door, "DEL", tmp_path, **{key: value})[0] == 0
