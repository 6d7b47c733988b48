"""The JSON Schema we ship and the parser say the same of one entry.

The checker below knows only the part of JSON Schema that the file uses, and refuses any other.
"""

import json
import re
from pathlib import Path

import pytest

from cni.cli.validate import ENTRY_KEYS, examine
from cni.isolation import MODES
from cni.netconf import configuration, values
from cni.netconf.types import DNS_KEYS, ROUTE_KEYS
from cni.netconf.versions import SUPPORTED

CONF = Path(__file__).parents[2] / "conf"
SCHEMA = json.loads((CONF / "zlayer-cni.schema.json").read_text("utf-8"))
PROPERTIES = SCHEMA["properties"]

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int}
NOTES = {"$schema", "$comment", "title", "description", "default", "deprecated"}


def is_a(value, name):
    return isinstance(value, TYPES[name]) and not (name == "integer" and isinstance(value, bool))


def matches(text, pattern):
    """As ECMA-262 has it, where a closing `$` is the very end and not the newline before it."""
    return bool(re.search(re.sub(r"\$$", r"\\Z", pattern), text))


def fits_object(value, schema):
    if not set(schema.get("required", ())) <= set(value):
        return False
    for key, item in value.items():
        patterns = [inner for pattern, inner in schema.get("patternProperties", {}).items() if re.search(pattern, key)]
        if key in schema.get("properties", {}):
            patterns.append(schema["properties"][key])
        if not patterns:
            rest = schema.get("additionalProperties", True)
            if rest is False or (rest is not True and not fits(item, rest)):
                return False
        if not all(fits(item, inner) for inner in patterns):
            return False
    return True


CHECKS = {
    "type": is_a,
    "enum": lambda value, allowed: value in allowed and not isinstance(value, bool),
    "const": lambda value, only: value == only and not isinstance(value, bool),
    "pattern": lambda value, pattern: not isinstance(value, str) or matches(value, pattern),
    "minLength": lambda value, limit: not isinstance(value, str) or len(value) >= limit,
    "maxLength": lambda value, limit: not isinstance(value, str) or len(value) <= limit,
    "maxItems": lambda value, limit: not isinstance(value, list) or len(value) <= limit,
    "minimum": lambda value, limit: not is_a(value, "integer") or value >= limit,
    "maximum": lambda value, limit: not is_a(value, "integer") or value <= limit,
    "anyOf": lambda value, choices: any(fits(value, choice) for choice in choices),
    "items": lambda value, inner: not isinstance(value, list) or all(fits(item, inner) for item in value),
}
OF_OBJECTS = {"required", "properties", "patternProperties", "additionalProperties"}


def fits(value, schema):
    """Whether the schema takes the value."""
    assert set(schema) <= NOTES | OF_OBJECTS | set(CHECKS), "the checker does not know this keyword"
    good = all(CHECKS[word](value, wanted) for word, wanted in schema.items() if word in CHECKS)
    return good and (not isinstance(value, dict) or fits_object(value, schema))


def entry(**keys):
    return {"type": "zlayer-cni", **keys}


def accepted(raw):
    """Whether the parser takes the entry, unknown keys counted as faults."""
    return examine("entry.json", json.dumps(raw).encode()).valid


GOOD = [
    entry(),
    *(entry(mode=mode) for mode in MODES),
    entry(service="web"),
    entry(service="${K8S_POD_NAMESPACE}-x$"),
    entry(service="${A}${B}"),
    entry(service="x" * 253),
    entry(isolationNetwork=""),
    entry(isolationNetwork="tenant a"),
    entry(isolation={}),
    entry(isolation={"reach": ["10.96.0.10:53/udp", "service/dns"], "from": ["nodes", "192.0.2.0/24"]}),
    entry(joinGlobal=True, ephemeral=False, autostart=False),
    *(entry(mtu=mtu) for mtu in (0, 576, 1500, 65535)),
    entry(dns={}),
    entry(dns={"nameservers": ["10.0.0.1", "fe80::1%eth0"], "domain": "d", "search": ["s"], "options": ["ndots:5"]}),
    entry(routes=[]),
    entry(routes=[{"dst": "192.0.2.0/24", "gw": "10.0.0.1", "mtu": 0, "advmss": 0, "priority": 0, "table": 0}]),
    entry(routes=[{"dst": "::/0", "scope": 0, "table": 254}]),
    entry(overlayd={}),
    entry(overlayd={"socket": "/" + "x" * 106}),
    entry(runDir="/run/zlayer-cni", dataDir="/var/lib/zlayer-cni"),
    entry(runDir="", dataDir=""),
    entry(capabilities={"ips": True, "mac": False}),
    entry(args={"cni": {}}, runtimeConfig={}, prevResult={}),
    entry(name="net", cniVersion="1.0.0"),
    entry(ipam={"type": "host-local"}, ipMasq=True),
    {**entry(), "cni.dev/valid-attachments": []},
]
BAD = [
    {"type": 1},
    entry(novelty=1),
    *(entry(mode=mode) for mode in ("", "Isolated", "none", 1, ["auto"], True)),
    *(entry(service=service) for service in ("", "x" * 254, "a\x00", "a\nb", "a\n", "${", "${}", "a${B", 1)),
    *(entry(isolationNetwork=network) for network in ("a\x00", "a\n", 1, False)),
    *(entry(isolation=isolation) for isolation in ([], {"reaches": []}, {"from": "nodes"}, {"from": ["nodes"] * 257})),
    *(entry(**{key: value}) for key in ("joinGlobal", "ephemeral", "autostart") for value in ("true", 1, 0, [])),
    *(entry(mtu=mtu) for mtu in (-1, 1, 575, 65536, "1400", 1400.0, True)),
    *(entry(dns=dns) for dns in ([], "x", {"nameserver": []}, {"nameservers": "10.0.0.1"}, {"nameservers": ["x"]})),
    *(entry(dns=dns) for dns in ({"search": ["a b"]}, {"options": [""]}, {"domain": "a b"}, {"search": [1]})),
    *(entry(routes=routes) for routes in ({}, ["0.0.0.0/0"], [{}], [{"dst": ""}], [{"dst": "10.0.0.1"}])),
    *(entry(routes=[{"dst": "::/0", key: value}]) for key, value in (("via", "x"), ("mtu", -1), ("scope", 256))),
    *(entry(routes=[{"dst": "::/0", key: value}]) for key, value in (("mtu", 1300), ("table", 100), ("scope", 253))),
    *(entry(routes=[{"dst": "::/0", key: "1"}]) for key in ("mtu", "advmss", "priority", "table", "scope")),
    *(entry(overlayd=overlayd) for overlayd in ("/x", {"socket": "x"}, {"socket": "/" + "x" * 107}, {"path": "/x"})),
    *(entry(runDir=path) for path in ("run", "/" + "x" * 80, "/a\x00", 1)),
    *(entry(dataDir=path) for path in ("~/x", "/" + "x" * 1024, "/a\n", 1)),
    *(entry(capabilities=given) for given in ([], {"ips": "yes"}, {"ips": 1})),
    *(entry(**{key: value}) for key in ("args", "runtimeConfig", "prevResult") for value in ([], "x", 1)),
]


@pytest.mark.parametrize("raw", GOOD, ids=lambda raw: json.dumps(raw)[22:60])
def test_both_take_it(raw):
    assert (fits(raw, SCHEMA), accepted(raw)) == (True, True)


@pytest.mark.parametrize("raw", BAD, ids=lambda raw: json.dumps(raw)[22:60])
def test_both_refuse_it(raw):
    assert (fits(raw, SCHEMA), accepted(raw)) == (False, False)


def test_the_schema_knows_every_key_the_parser_knows():
    of_lists = {*configuration.LIST_KEYS, "cniVersions", *configuration.GC_KEYS}
    assert {key.casefold() for key in PROPERTIES} == configuration.KNOWN_KEYS - {key.casefold() for key in of_lists}
    assert set(ENTRY_KEYS) <= set(PROPERTIES)
    assert set(PROPERTIES["dns"]["properties"]) == DNS_KEYS
    assert set(PROPERTIES["routes"]["items"]["properties"]) == ROUTE_KEYS
    assert set(PROPERTIES["overlayd"]["properties"]) == configuration.OVERLAYD_KEYS


def test_the_schemas_limits_are_the_parsers():
    assert tuple(PROPERTIES["mode"]["enum"]) == MODES
    assert tuple(PROPERTIES["cniVersion"]["enum"]) == SUPPORTED
    assert PROPERTIES["mtu"]["anyOf"][1] == {"minimum": values.MTU_MIN, "maximum": values.MTU_MAX}
    assert PROPERTIES["service"]["maxLength"] == values.SERVICE_LIMIT
    assert PROPERTIES["overlayd"]["properties"]["socket"]["maxLength"] == values.SOCKET_LIMIT
    assert PROPERTIES["runDir"]["maxLength"] == values.RUN_DIR_LIMIT
    assert PROPERTIES["dataDir"]["maxLength"] == values.PATH_LIMIT


def test_the_schemas_defaults_are_the_parsers():
    plain = configuration.NetConf(name="net")
    written = {key: schema["default"] for key, schema in PROPERTIES.items() if "default" in schema}
    assert written == {
        "mode": plain.mode,
        "joinGlobal": plain.join_global,
        "ephemeral": plain.ephemeral,
        "mtu": plain.mtu,
        "autostart": plain.autostart,
        "runDir": plain.run_dir,
        "dataDir": plain.data_dir,
    }


@pytest.mark.parametrize("path", sorted(CONF.glob("**/*.conflist")), ids=lambda path: str(path.relative_to(CONF)))
def test_the_entries_we_ship_fit(path):
    ours = [each for each in json.loads(path.read_text("utf-8"))["plugins"] if each["type"] == "zlayer-cni"]
    assert len(ours) == 1
    assert fits(ours[0], SCHEMA)
