"""BB-S: what a plugin says before it touches anything (conformance 1 to 5, from the reference skeleton's tests)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable

import pytest

from .harness import shapes
from .harness.template import Json, Template
from .harness.world import Container, World

Need = Callable[[str], None]
At = Callable[..., str]

REQUIRED = {
    "ADD": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
    "CHECK": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
    "DEL": ["CNI_CONTAINERID", "CNI_IFNAME"],
}
GOOD = {"CNI_CONTAINERID": "some-container-id", "CNI_NETNS": "/run/netns/zlt-none", "CNI_IFNAME": "eth0"}
BAD_IDS = ["some-%%container-id", "-a", ".a", "a b", "a/b", "a\n", "b\u00e9", "_a", "a:b", "../a"]
BAD_IFNAMES = [
    "sixteen-bytes-xx",
    ".",
    "..",
    "a/b",
    "a:b",
    "a b",
    "a\tb",
    "a\u00a0b",
    "\u00e9" * 8,
    "eth0\n",
    "\u2003",
]


@pytest.fixture
def conf(world: World, at: At) -> Json:
    return world.conf(at("1.0.0"))


@pytest.fixture
def box(world: World) -> Container:
    return world.container()


def supported(verb: str, at: At) -> str:
    return at("1.1.0") if verb in {"GC", "STATUS"} else at("1.1.0", "1.0.0")


def given(world: World, verb: str, conf: object, **env: str | None):  # type: ignore[no-untyped-def]
    """A call with good variables, except those in `env`."""
    return world.call(verb, conf, env={**GOOD, **env})  # type: ignore[arg-type]


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in REQUIRED.items() for name in names])
@pytest.mark.parametrize("value", [None, ""], ids=["unset", "empty"])
def test_s01_s03_a_required_variable_is_missing(
    world: World, conf: Json, verb: str, name: str, value: str | None
) -> None:
    error = given(world, verb, conf, **{name: value}).failed(4, says=[name])
    for other in set(GOOD) - {name}:
        assert other not in error["msg"], f"{other} is not missing: {error}"


@pytest.mark.parametrize("verb", REQUIRED)
def test_s02_all_missing_variables_in_one_message(world: World, conf: Json, verb: str) -> None:
    world.call(verb, conf).failed(4, says=REQUIRED[verb])


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("cid", BAD_IDS, ids=ascii)
def test_s04_a_container_id_of_bad_characters(world: World, conf: Json, verb: str, cid: str) -> None:
    given(world, verb, conf, CNI_CONTAINERID=cid).failed(4)


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("ifname", BAD_IFNAMES, ids=ascii)
def test_s05_an_unusable_interface_name(world: World, conf: Json, verb: str, ifname: str) -> None:
    given(world, verb, conf, CNI_IFNAME=ifname).failed(4)


@pytest.mark.parametrize(("name", "value"), [("CNI_IFNAME", "a/b"), ("CNI_CONTAINERID", "a/b")])
def test_s05_a_bad_value_names_its_variable(world: World, conf: Json, name: str, value: str) -> None:
    """SPEC section 5, code 4: the message names the variable also where a value is bad."""
    given(world, "ADD", conf, **{name: value}).failed(4, says=[name])


@pytest.mark.parametrize("verb", ["GC", "STATUS"])
def test_e5_a_variable_that_is_not_required_is_not_judged(world: World, at: At, need: Need, verb: str) -> None:
    need(verb.lower())
    conf = world.conf(at("1.1.0"), **{"cni.dev/valid-attachments": []})
    world.in_time(verb, conf, env={"CNI_IFNAME": "a/b", "CNI_CONTAINERID": "", "CNI_ARGS": ""}).ok()


@pytest.mark.parametrize("ifname", ["fifteen-bytes-x", "eth0.5", "a@b", "\u00e9" * 7])
def test_s06_an_interface_name_that_is_just_legal(world: World, conf: Json, box: Container, ifname: str) -> None:
    result = box.attach(conf, ifname)
    assert shapes.inside(result)[0]["name"] == ifname
    assert box.link(ifname) is not None
    box.delete(conf, ifname, prev=result).ok()
    assert box.link(ifname) is None


@pytest.mark.parametrize("present", [None, ""], ids=["absent", "empty"])
def test_s07_no_version_means_the_first(world: World, at: At, box: Container, present: str | None) -> None:
    conf = world.conf(at("0.1.0"))
    del conf["cniVersion"]
    if present is not None:
        conf["cniVersion"] = present
    shapes.validate(box.attach(conf), "0.1.0")
    box.delete(conf).ok()


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("asked", ["9.8.7", "1.1.1", "1.1", "2.0.0"])
def test_s08_a_version_nobody_speaks(world: World, need: Need, template: Template, verb: str, asked: str) -> None:
    if verb in {"GC", "STATUS"}:
        need(verb.lower())
    conf = {**world.conf("1.0.0"), "cniVersion": asked}
    error = given(world, verb, conf).failed(1)
    if verb in {"ADD", "DEL"}:
        details = error.get("details", "")
        assert asked in details and all(known in details for known in template.versions), error


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("asked", ["adsfsadf", "1.x", "1.0.0.0.0", "v1.0.0"])
def test_s09_a_version_that_is_none(world: World, need: Need, verb: str, asked: str) -> None:
    if verb in {"GC", "STATUS"}:
        need(verb.lower())
    conf = {**world.conf("1.0.0"), "cniVersion": asked}
    given(world, verb, conf).failed(1 if verb in {"ADD", "DEL"} else 6)


@pytest.mark.parametrize(
    ("verb", "last"), [("CHECK", "0.1.0"), ("CHECK", "0.3.1"), ("GC", "0.4.0"), ("GC", "1.0.0"), ("STATUS", "1.0.0")]
)
def test_s10_a_verb_older_than_its_version(world: World, need: Need, verb: str, last: str) -> None:
    need(verb.lower())
    given(world, verb, world.conf(last)).failed(1, says=[verb])


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize("name", [None, "", "a b", "-a", "a/b", "a\n", "\u00e9", "../a"], ids=ascii)
def test_s11_a_bad_network_name(world: World, conf: Json, verb: str, name: str | None) -> None:
    conf.pop("name")
    given(world, verb, {**conf, **({} if name is None else {"name": name})}).failed(7)


def test_s11_a_network_name_with_hyphens(world: World, conf: Json, box: Container) -> None:
    box.attach({**conf, "name": "name-with_hyphens.and.dots"})


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "BOGUS"])
@pytest.mark.parametrize(
    "stdin", [b"", b"  ", b"{", b"[]", b"5", b'"x"', b"\xff\xfe", b'{"name": 5}', b"\0"], ids=ascii
)
def test_s12_stdin_is_no_json_object(world: World, verb: str, stdin: bytes) -> None:
    given(world, verb, stdin).failed(6)


def test_s12_null_has_no_name(world: World) -> None:
    given(world, "ADD", b"null").failed(7)


@pytest.mark.parametrize(
    "stdin",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'\xef\xbb\xbf{"cniVersion":"1.0.0","name":"x"}',
        b'{"name":"x"}}',
        b'{"cniVersion": 1}',
    ],
    ids=["deep-list", "deep-object", "bom", "trailing", "version"],
)
def test_v11_odd_documents_are_refused_in_words(world: World, stdin: bytes) -> None:
    given(world, "ADD", stdin).failed()


@pytest.mark.parametrize(
    "keys",
    [
        {"prevResult": 7},
        {"prevResult": "y"},
        {"ipam": 7, "mtu": "1400", "args": [], "dns": "x"},
        {"runtimeConfig": [7]},
    ],
    ids=["prev-number", "prev-string", "types", "runtime-config"],
)
def test_v11_odd_values_are_refused_in_words(world: World, keys: Json) -> None:
    given(world, "ADD", world.conf("1.0.0", **keys)).failed()


def test_s13_version_does_not_wait_for_stdin(world: World, template: Template) -> None:
    read, write = os.pipe()
    try:
        started = time.monotonic()
        document = world.call("VERSION", read, patience=10).ok()
        assert time.monotonic() - started < 5
    finally:
        os.close(read)
        os.close(write)
    assert document["supportedVersions"] == template.versions
    assert document["cniVersion"] in template.versions


def test_s14_version_as_libcni_asks(world: World, template: Template) -> None:
    env = {"CNI_NETNS": "dummy", "CNI_IFNAME": "dummy", "CNI_PATH": "dummy"}
    document = world.call("VERSION", b'{"cniVersion":"1.1.0"}', env=env).ok()
    assert document["supportedVersions"] == template.versions


@pytest.mark.parametrize("asked", ["0.3.1", "1.0.0"])
def test_s14_version_echoes_what_it_was_asked_with(world: World, asked: str) -> None:
    document = world.call("VERSION", json.dumps({"cniVersion": asked}).encode()).ok()
    assert document["cniVersion"] == asked


@pytest.mark.parametrize("stdin", [b"", b"garbage", b'{"cniVersion":"banana"}'], ids=ascii)
def test_s14_version_does_not_judge_stdin(world: World, stdin: bytes) -> None:
    world.call("VERSION", stdin).ok()


@pytest.mark.parametrize("verb", ["BOGUS", "add", "Add", "ADD ", "DELETE"])
def test_s15_s17_an_unknown_verb(world: World, conf: Json, verb: str) -> None:
    given(world, verb, conf).failed(4, says=["CNI_COMMAND"])


@pytest.mark.parametrize("verb", [None, ""], ids=["unset", "empty"])
def test_s16_no_verb_is_a_greeting(world: World, template: Template, verb: str | None) -> None:
    answer = world.call(verb, b"")
    assert (answer.rc, answer.out) == (0, b""), answer
    assert all(version in answer.err for version in template.versions), answer


def test_s19_stdin_is_closed(world: World) -> None:
    world.call("ADD", None, env=GOOD, command=["sh", "-c", 'exec "$@" <&-', "sh", *world.command]).failed(5, 6)


def test_s20_s21_s24_what_it_does_not_know_is_tolerated(world: World, conf: Json, box: Container) -> None:
    """Unknown keys, keys of the list and of the runtime, tracing variables: no reason to fail."""
    odd = {
        **conf,
        "someKey": {"a": [1, None]},
        "capabilities": {"portMappings": True, "mac": True},
        "disableCheck": "true",
        "cniVersions": ["0.4.0", "1.0.0"],
        "disableGC": True,
        "args": {"cni": {"labels": [{"key": "a", "value": "b"}]}},
        "runtimeConfig": {"unheard": 1, "aliases": ["a"], "io.kubernetes.cri.pod-annotations": {"a": "b"}},
    }
    env = {
        "TRACEPARENT": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "TRACESTATE": "a=b",
        "BAGGAGE": "x",
    }
    result = box.attach(odd, env=env)
    box.delete(odd, prev=result, env=env).ok()


def test_s22_a_configuration_of_a_mebibyte(world: World, conf: Json, box: Container) -> None:
    large = {**conf, "padding": "x" * (1 << 20)}
    result = box.attach(large)
    box.delete(large, prev=result).ok()


def test_s23_an_error_carries_the_version_of_the_configuration(world: World, need: Need, version: str) -> None:
    need("error-version")
    error = given(world, "ADD", world.conf(version), CNI_CONTAINERID=None).failed(4)
    assert error.get("cniVersion") == version
    assert set(error) <= {"cniVersion", "code", "msg", "details"}


def test_e2_cni_path_is_optional(world: World, conf: Json, box: Container) -> None:
    """Ours by decision; the reference skeleton asks for it."""
    result = box.attach(conf, env={"CNI_PATH": None})
    box.delete(conf, prev=result, env={"CNI_PATH": None}).ok()
