"""The CNI_* variables: what is missing, what is unusable, and in which order it is said."""

import json

import pytest

from cni.errors import CniError, IncompatibleVersion, InvalidConfig, InvalidEnvironment, UndecodableContent
from cni.netconf.environment import Call, check_args, parse_call, validate_call
from cni.netconf.request import read_request, version_of
from cni.netconf.versions import SUPPORTED, check_version, parse_version

ATTACH = {"CNI_CONTAINERID": "box-1", "CNI_NETNS": "/run/netns/box", "CNI_IFNAME": "eth0"}
GOOD = b'{"cniVersion":"1.1.0","name":"net","type":"zlayer-cni"}'


def env(command, **changed):
    found = {"CNI_COMMAND": command, **ATTACH, **changed}
    return {key: value for key, value in found.items() if value is not None}


def refusal(work, *args):
    with pytest.raises(CniError) as caught:
        work(*args)
    return caught.value


# --- what is missing ---

NEEDED = {
    "ADD": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
    "CHECK": ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"],
    "DEL": ["CNI_CONTAINERID", "CNI_IFNAME"],
    "GC": ["CNI_PATH"],
    "STATUS": [],
    "VERSION": [],
    "DANCE": [],
}


@pytest.mark.parametrize("command", NEEDED)
@pytest.mark.parametrize("blank", [{}, dict.fromkeys(ATTACH, "")], ids=["absent", "empty"])
def test_all_that_is_missing_is_said_in_one_message(command, blank):
    variables = {"CNI_COMMAND": command, **blank}
    if not NEEDED[command]:
        assert parse_call(variables).command == command
        return
    error = refusal(parse_call, variables)
    assert (error.code, error.msg) == (4, f"required env variables [{','.join(NEEDED[command])}] missing")


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
@pytest.mark.parametrize("name", ATTACH)
def test_one_missing_variable(command, name):
    variables = env(command, **{name: None})
    if name not in NEEDED[command]:
        assert parse_call(variables).netns == ""
        return
    assert refusal(parse_call, variables).msg == f"required env variables [{name}] missing"


def test_no_command_is_missing_too():
    assert refusal(parse_call, {**ATTACH}).msg == "required env variables [CNI_COMMAND] missing"


def test_everything_is_read():
    call = parse_call(env("ADD", CNI_ARGS="A=b;C=d", CNI_PATH="/opt/cni/bin", CNI_NETNS_OVERRIDE="True"))
    assert call == Call(
        command="ADD",
        container_id="box-1",
        netns="/run/netns/box",
        ifname="eth0",
        args={"A": "b", "C": "d"},
        raw_args="A=b;C=d",
        path="/opt/cni/bin",
        override=True,
    )


@pytest.mark.parametrize(("text", "lifted"), [("TRUE", 1), ("true", 1), ("1", 1), ("0", 0), ("yes", 0), ("", 0)])
def test_override(text, lifted):
    assert parse_call(env("ADD", CNI_NETNS_OVERRIDE=text)).override is bool(lifted)


# --- what is unusable ---

BAD_IDS = ["some-%%container-id", "-a", ".a", "_a", "a b", "a/b", "a\n", "ä", "a\u0661", "a\udcff"]
GOOD_IDS = ["a", "A.b_c-9", "0" * 64, "x" * 300]


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
@pytest.mark.parametrize("container", BAD_IDS, ids=ascii)
def test_bad_container_ids(command, container):
    error = refusal(validate_call, parse_call(env(command, CNI_CONTAINERID=container)))
    assert (error.code, error.details) == (4, container)
    assert "CNI_CONTAINERID" in error.msg
    assert "invalid characters in containerID" in error.msg


@pytest.mark.parametrize("container", GOOD_IDS, ids=len)
def test_good_container_ids(container):
    validate_call(parse_call(env("ADD", CNI_CONTAINERID=container)))


WRONG = "interface name contains / or : or whitespace characters"
BAD_IFNAMES = [
    ("a" * 16, "interface name is too long"),
    ("\u00e4" * 8, "interface name is too long"),
    (".", "interface name is . or .."),
    ("..", "interface name is . or .."),
    ("a/b", WRONG),
    ("a:b", WRONG),
    ("a b", WRONG),
    ("a\tb", WRONG),
    ("a\n", WRONG),
    ("a\u00a0b", WRONG),
    ("a\u2003b", WRONG),
    ("a\udcff", "interface name is not UTF-8"),
]


@pytest.mark.parametrize("command", ["ADD", "CHECK", "DEL"])
@pytest.mark.parametrize(("name", "words"), BAD_IFNAMES, ids=lambda value: ascii(value)[:24])
def test_bad_interface_names(command, name, words):
    error = refusal(validate_call, parse_call(env(command, CNI_IFNAME=name)))
    assert (error.code, error.msg) == (4, f"CNI_IFNAME: {words}")


@pytest.mark.parametrize("name", ["a" * 15, "\u00e4" * 7, "...", "eth0.100", "net1"])
def test_good_interface_names(name):
    validate_call(parse_call(env("ADD", CNI_IFNAME=name)))


@pytest.mark.parametrize("command", ["GC", "STATUS"])
def test_what_a_verb_does_not_need_is_not_judged(command):
    validate_call(parse_call(env(command, CNI_IFNAME="a/b", CNI_CONTAINERID="%", CNI_ARGS="rubbish", CNI_PATH="x")))


def test_a_netns_that_no_result_could_repeat():
    assert "CNI_NETNS" in refusal(validate_call, parse_call(env("ADD", CNI_NETNS="/n/\udcff"))).msg
    validate_call(parse_call(env("DEL", CNI_NETNS="/n/\udcff")))


@pytest.mark.parametrize("command", ["DANCE", "add", "Add", " ADD"])
def test_an_unknown_verb(command):
    error = refusal(validate_call, parse_call(env(command)))
    assert (error.code, error.msg) == (4, f"unknown CNI_COMMAND: {command}")


# --- CNI_ARGS ---


@pytest.mark.parametrize(
    "text",
    [
        "",
        "IP=10.0.0.1",
        "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=d;MAC=",
        "X=1;IgnoreUnknown=1",
        "IgnoreUnknown=TRUE;X=1",
        "TENANT=blue",
        "IgnoreUnknown=1;X=\udcff",
    ],
)
def test_good_args(text):
    check_args(parse_call(env("ADD", CNI_ARGS=text)), used=["TENANT"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rubbish", 'ARGS: invalid pair "rubbish"'),
        ("A=b;", 'ARGS: invalid pair ""'),
        ("A=b=c", 'ARGS: invalid pair "A=b=c"'),
        ("X=1;IP=10.0.0.1;Y=2", 'ARGS: unknown args ["X=1" "Y=2"]'),
        ("X=1;IgnoreUnknown=0", 'ARGS: unknown args ["X=1"]'),
        ("IgnoreUnknown=maybe", "IgnoreUnknown must be"),
        ("K8S_POD_NAME=\udcff", "a value is not UTF-8"),
        ("IgnoreUnknown=1;TENANT=\udcff", "a value is not UTF-8"),
    ],
)
def test_bad_args(text, said):
    call = parse_call(env("ADD", CNI_ARGS=text))
    validate_call(call)  # another step's business
    error = refusal(check_args, call, ["TENANT"])
    assert error.code == 4
    assert error.msg.startswith("CNI_ARGS: ")
    assert said in error.msg


# --- the order ---


@pytest.mark.parametrize(
    ("variables", "stdin", "kind", "said"),
    [
        (env("ADD", CNI_NETNS=""), b"{", InvalidEnvironment, "missing"),
        (env("ADD", CNI_IFNAME="a/b"), b"{", UndecodableContent, "error unmarshall network config"),
        (env("DANCE"), b"{", UndecodableContent, "error unmarshall network config"),
        (env("DANCE"), b"{}", InvalidConfig, "missing network name"),
        (env("ADD", CNI_CONTAINERID="%", CNI_IFNAME="a/b"), GOOD, InvalidEnvironment, "CNI_CONTAINERID"),
        (env("ADD", CNI_IFNAME="a/b"), b'{"name":"n","cniVersion":"9"}', InvalidEnvironment, "CNI_IFNAME"),
        (env("DANCE"), b'{"name":"n","cniVersion":"9"}', InvalidEnvironment, "unknown CNI_COMMAND"),
        (env("ADD"), b'{"name":"n","cniVersion":"9","mode":1}', IncompatibleVersion, "incompatible"),
        (env("ADD"), b'{"name":"n","mode":1}', UndecodableContent, "mode"),
    ],
)
def test_faults_are_found_in_the_references_order(variables, stdin, kind, said):
    error = refusal(read_request, variables, stdin)
    assert type(error) is kind
    assert said in error.msg


# --- versions ---

SINCE = {"ADD": 0, "DEL": 0, "CHECK": SUPPORTED.index("0.4.0"), "GC": 6, "STATUS": 6}


@pytest.mark.parametrize("verb", SINCE)
@pytest.mark.parametrize("version", SUPPORTED)
def test_verb_and_version(verb, version):
    if SUPPORTED.index(version) >= SINCE[verb]:
        check_version(version, verb)
        return
    error = refusal(check_version, version, verb)
    assert (error.code, error.msg) == (1, f"config version does not allow {verb}")
    assert error.details == f'config is "{version}", {verb} needs {SUPPORTED[SINCE[verb]]} or later'


@pytest.mark.parametrize("version", ["9.8.7", "1", "1.0", "1.1.1", "01.1.0", "1.1.0 "])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_an_unsupported_version(version, verb):
    error = refusal(check_version, version, verb)
    assert (error.code, error.msg) == (1, "incompatible CNI versions")
    ours = '["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]'
    assert error.details == f'config is "{version}", plugin supports {ours}'


@pytest.mark.parametrize("verb", ["CHECK", "GC", "STATUS"])
def test_a_version_too_new_for_the_verb(verb):
    error = refusal(check_version, "9.8.7", verb)
    assert (error.code, error.msg) == (1, f"plugin version does not allow {verb}")
    assert error.details.startswith('config is "9.8.7", plugin supports [')


@pytest.mark.parametrize("version", ["adsfsadf", "1.1.0.0", "1..0", "1.-1", "1.x", "1.\u0661", "9" * 5000])
def test_an_unreadable_version(version):
    assert [refusal(check_version, version, verb).code for verb in ("ADD", "DEL", "CHECK", "GC", "STATUS")] == [
        *(1, 1),
        *(6, 6, 6),
    ]


def test_short_versions_can_be_compared():
    assert [parse_version(text) for text in ("", "1", "1.1", "0.3.1")] == [(0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 3, 1)]


@pytest.mark.parametrize(
    ("stdin", "version"),
    [
        (GOOD, "1.1.0"),
        (b'{"name":"n"}', "0.1.0"),
        (b'{"name":"n","cniVersion":"0.4.0","mode":7}', "0.4.0"),
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"CNIVERSION":"0.4.0","name":"%"}', "0.4.0"),
        (b'{"cniVersion":7}', "1.1.0"),
        (b"rubbish", "1.1.0"),
        (b"null", "1.1.0"),
        (json.dumps({"name": "n", "cniVersion": "9.8.7"}).encode(), "9.8.7"),
    ],
)
def test_the_version_to_answer_in(stdin, version):
    assert version_of(stdin) == version


@pytest.mark.parametrize("name", ["eth%d", "%d", "%", "a%sb", "all", "default"])
def test_a_name_that_means_something_else_to_the_kernel_is_not_given(name):
    error = refusal(validate_call, parse_call(env("ADD", CNI_IFNAME=name)))
    assert (error.code, error.details) == (4, name)
    assert "CNI_IFNAME" in error.msg


@pytest.mark.parametrize("command", ["DEL", "CHECK"])
def test_a_name_that_nothing_can_have_is_no_reason_to_refuse_a_deletion(command):
    validate_call(parse_call(env(command, CNI_IFNAME="eth%d")))
