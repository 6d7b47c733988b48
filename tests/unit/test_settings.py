"""The daemon's YAML: every key, its range, and a message that names key and value."""

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni import defaults
from cni.daemon import settings_reader
from cni.daemon.settings import Dns, Settings
from cni.daemon.settings_reader import parse
from cni.errors import InvalidConfig

A_KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def refused(text):
    with pytest.raises(InvalidConfig) as caught:
        parse(text, "node.yaml")
    assert caught.value.code == 7
    assert caught.value.msg.startswith("node.yaml: ")
    return caught.value.msg


@pytest.mark.parametrize("text", ["", "# nothing but talk\n", "---\n", "{}", "~"])
def test_an_empty_file_is_the_defaults(text):
    assert parse(text) == Settings()


def test_every_key_goes_through():
    found = parse(
        """
        deployment: prod
        instance_id: 7
        node_id: 18446744073709551615
        cluster_cidr: 10.64.0.0/14
        cluster_cidr6: fd00:64::/48
        slice_cidr: 10.65.0.0/20
        wg_port: 51821
        data_dir: /srv/zlayer
        run_dir: /run/other
        overlay_socket: /run/other/overlay.sock
        dns: {nameservers: [10.0.0.53, "fd00::53"], search: [blue.local], options: ["ndots:2"], domain: local}
        masquerade: false
        mtu: 1400
        address_cooldown: 2.5
        log_level: debug
        """
    )
    assert found == Settings(
        deployment="prod",
        instance_id="7",
        node_id=2**64 - 1,
        cluster_cidr="10.64.0.0/14",
        cluster_cidr6="fd00:64::/48",
        slice_cidr="10.65.0.0/20",
        wg_port=51821,
        data_dir="/srv/zlayer",
        run_dir="/run/other",
        overlay_socket="/run/other/overlay.sock",
        dns=Dns(("10.0.0.53", "fd00::53"), ("blue.local",), ("ndots:2",), "local"),
        masquerade=False,
        mtu=1400,
        address_cooldown=2.5,
        log_level="debug",
    )
    assert found.cidrs == ("10.64.0.0/14", "fd00:64::/48")


def test_every_key_is_in_the_file_that_users_copy():
    text = Path(__file__).parents[2].joinpath("conf", "overlayd.yaml").read_text()
    assert {key for key in Settings.__struct_fields__ if f"{key}:" not in text} == set()
    parse(text)


def test_one_family_is_one_cidr():
    assert Settings().cidrs == ("10.200.0.0/16",)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nod_id: 3", ["nod_id"]),
        ("dns: {servers: [10.0.0.1]}", ["servers"]),
        ("node_id: -1", ["node_id", "-1"]),
        ("node_id: 18446744073709551616", ["node_id", "18446744073709551616"]),
        ("node_id: true", ["node_id", "True"]),
        ("node_id: seven", ["node_id", "'seven'"]),
        ("node_id: 1.5", ["node_id", "1.5"]),
        ("instance_id: 1.5", ["instance_id", "1.5"]),
        ("deployment: 7", ["deployment", "7"]),
        ("cluster_cidr: 10.200.0.0", ["cluster_cidr", "10.200.0.0"]),
        ("cluster_cidr: 10.200.1.0/16", ["cluster_cidr", "10.200.1.0/16"]),
        ("cluster_cidr: banana", ["cluster_cidr", "banana"]),
        ("cluster_cidr: 10.200.0.0/26", ["cluster_cidr", "10.200.0.0/26"]),
        ("cluster_cidr6: fd00::/120", ["cluster_cidr6", "fd00::/120"]),
        ("cluster_cidr6: 10.201.0.0/16", ["cluster_cidr6", "10.201.0.0/16"]),
        ("slice_cidr: 10.201.0.0/20", ["slice_cidr", "10.201.0.0/20"]),
        ("slice_cidr: fd00::/64", ["slice_cidr", "fd00::/64"]),
        ("cluster_cidr: 10.200.0.0/255.255.0.0", ["cluster_cidr", "10.200.0.0/255.255.0.0", "prefix length"]),
        ("slice_cidr: 10.200.1.0/0.0.0.255", ["slice_cidr", "10.200.1.0/0.0.0.255"]),
        ("service_cidr: 10.200.64.0/255.255.192.0", ["service_cidr", "10.200.64.0/255.255.192.0"]),
        (f"peers: [{{public_key: {A_KEY}, allowed_ips: [10.0.0.0/255.0.0.0]}}]", ["peers[0]", "10.0.0.0/255.0.0.0"]),
        ("wg_port: 0", ["wg_port", "0"]),
        ("wg_port: 65536", ["wg_port", "65536"]),
        ("mtu: 1279", ["mtu", "1279"]),
        ("mtu: 65536", ["mtu", "65536"]),
        ("mtu: '1400'", ["mtu", "'1400'"]),
        ("address_cooldown: -1", ["address_cooldown", "-1"]),
        ("address_cooldown: 3601", ["address_cooldown", "3601"]),
        ("address_cooldown: .inf", ["address_cooldown", "inf"]),
        ("address_cooldown: .nan", ["address_cooldown", "nan"]),
        ("log_level: loud", ["log_level", "'loud'"]),
        ("masquerade: 1", ["masquerade", "1"]),
        ("dns: {nameservers: [10.0.0.1, ten]}", ["dns.nameservers", "ten"]),
        ("dns: {nameservers: 10.0.0.1}", ["dns.nameservers", "'10.0.0.1'"]),
        ("dns: {search: [1]}", ["dns.search", "1"]),
        ("dns: {upstreams: [ns.example]}", ["dns.upstreams", "ns.example"]),
        ("dns: {upstreams: ['10.0.0.1:0']}", ["dns.upstreams", "10.0.0.1:0"]),
        ("dns: {zones: {a..b: [10.0.0.1]}}", ["dns.zones", "a..b"]),
        ("dns: {zones: {corp.example: []}}", ["dns.zones.corp.example", "0 servers"]),
        ("dns: {zones: {corp.example: [ten]}}", ["dns.zones.corp.example", "ten"]),
        ("dns: {zone: a b}", ["dns.zone", "'a b'"]),
        ("dns: {port: 0}", ["dns.port", "0"]),
        ("dns: {hidden: empty}", ["dns.hidden", "nxdomain, refused", "'empty'"]),
        ("dns: {serve: false, host: true}", ["dns.host", "dns.serve"]),
        ("dns: {serve: false, intercept: true}", ["dns.intercept", "dns.serve"]),
        ("run_dir: run/here", ["run_dir", "run/here"]),
        ("data_dir: ''", ["data_dir", "''"]),
        ("overlay_socket: overlay.sock", ["overlay_socket", "overlay.sock"]),
    ],
)
def test_a_fault_is_named_with_its_key_and_value(line, words):
    said = refused(line)
    assert [word for word in words if word not in said] == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cluster_cdir: 10.0.0.0/8", "cluster_cdir: unknown key; cluster_cidr is meant?"),
        ("dns:\n  serach: [a]", "dns.serach: unknown key; search is meant?"),
        ("cluster:\n  etcd:\n    endpoint: [http://a:1]", "cluster.etcd.endpoint: unknown key; endpoints is meant?"),
        ("peers: [{allowed_ips: []}]", "peers[0].public_key: is missing"),
        ("log_level: loud", "log_level: expected one of debug, info, warning, error, got 'loud'"),
        ("advertise: [here]", "advertise: here: not host:port (invalid socket address syntax)"),
        ("node_id: 1\n# again\nnode_id: 2", "not YAML: line 3, column 1: node_id stands there twice"),
        ("foo: [1,\nbar: 2\n", "not YAML: line 3, column 1: expected ',' or ']', but got '<stream end>', "),
        ("\tnode_id: 1", "not YAML: line 1, column 1: found character '\\t' that cannot start any token, "),
        ("1: 2", "the file: a key that is no name"),
        ("node_id: seven", "node_id: expected a whole number, got 'seven' (line 1)"),
    ],
)
def test_a_fault_is_one_line_that_says_where_and_what_is_meant(text, said):
    found = refused(text).removeprefix("node.yaml: ")
    assert found.startswith(said), found
    assert "\n" not in found


MANY = f"""\
node_id: seven
cluster_cdir: 10.0.0.0/8
wg_port: 0
mtu: 100
masquerade: 1
dns:
  serach: [a]
  nameservers: [ten, 10.0.0.1, eleven]
peers:
  - {{public_key: x, allowed_ips: [10.0.0.0/8]}}
  - {{public_key: {A_KEY}, allowed_ips: [banana]}}
advertise: [here]
run_dir: run/here
"""


def test_all_faults_are_told_with_their_lines_and_in_our_words():
    said = refused(MANY).removeprefix("node.yaml: ").split("; ")
    lines = {}
    for fault in said:
        if found := re.search(r"^([^:( ]*).*\(line (\d+)\)$", fault):
            lines[found[1]] = int(found[2])
    assert lines == {
        "node_id": 1, "cluster_cidr": 2, "wg_port": 3, "mtu": 4, "masquerade": 5, "search": 7, "dns.nameservers": 8,
        "peers[0]": 10, "peers[1]": 11, "advertise": 12, "run_dir": 13,
    }  # fmt: skip
    assert sum("dns.nameservers" in fault for fault in said) == 2
    assert not re.search(r"`|Expected", refused(MANY))


def test_what_a_faulty_key_judges_is_not_judged():
    said = refused("cluster_cidr: 7\nslice_cidr: 10.9.0.0/26\nservice_cidr: 10.9.1.0/20\n")
    assert said.count("; ") == 0
    assert "slice_cidr" not in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("wg_port: 0", "expected a whole number of at least 1, got 0"),
        ("wg_port: 65536", "expected a whole number of at most 65535, got 65536"),
        ("masquerade: 1", "expected true or false, got 1"),
        ("dns: {search: a}", "expected a list, got 'a'"),
        ("deployment: 7", "expected a text, got 7"),
        ("dns: 7", "expected keys with values, got 7"),
    ],
)
def test_faults_are_told_in_our_words(line, words):
    assert words in refused(line)


def test_no_secret_is_told():
    said = refused("cluster:\n  etcd:\n    password: secret\n    user_name: me\n    endpoints: [http://a:1]")
    assert said == "node.yaml: cluster.etcd.user_name: unknown key; user is meant? (line 4)"


@pytest.mark.parametrize("text", ["[]", "- 1", "text", "7", "true", "2026-01-01"])
def test_what_is_no_mapping_is_refused(text):
    assert "mapping" in refused(text)


@pytest.mark.parametrize(
    "text", ["{", "a: b: c", "\t- a", "!!python/object/apply:os.system [true]", "&a [*a", "mtu: !!int x", "\0"]
)
def test_what_is_no_yaml_is_refused(text):
    assert "not YAML" in refused(text)


@pytest.mark.parametrize("text", ["1: 2", "? [a]\n: 1", "~: 1", "? {a: b}\n: 1"])
def test_keys_that_are_no_names_are_refused(text):
    refused(text)


def test_deep_nesting_is_refused():
    refused("dns: " + "[" * 5000)


def test_a_value_that_holds_itself_is_refused():
    refused("dns: &a {search: *a}")


@given(st.text(alphabet=string.printable, max_size=60))
def test_any_text_is_settings_or_a_coded_error(text):
    try:
        assert isinstance(parse(text), Settings)
    except InvalidConfig as error:
        assert error.msg.startswith("settings: ")


# --- which file ---


def test_an_explicit_file_must_be_there(tmp_path):
    with pytest.raises(InvalidConfig, match="cannot read"):
        settings_reader.find(str(tmp_path / "none.yaml"), None)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"deployment: \xe9"])
def test_a_file_that_is_no_utf8_is_refused(tmp_path, content):
    path = tmp_path / "node.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidConfig, match="cannot read"):
        settings_reader.load(str(path))


def test_a_directory_is_refused(tmp_path):
    with pytest.raises(InvalidConfig, match="cannot read"):
        settings_reader.load(str(tmp_path))


def test_the_data_directorys_file_is_found(tmp_path):
    assert settings_reader.find(None, str(tmp_path)) == Settings()
    (tmp_path / "overlayd.yaml").write_text("node_id: 9\n")
    assert settings_reader.find(None, str(tmp_path)).node_id == 9


def test_an_explicit_file_goes_before_the_data_directorys(tmp_path):
    (tmp_path / "overlayd.yaml").write_text("node_id: 9\n")
    (tmp_path / "mine.yaml").write_text("node_id: 5\n")
    assert settings_reader.find(str(tmp_path / "mine.yaml"), str(tmp_path)).node_id == 5


def test_the_systems_file_is_for_the_default_data_directory_alone(tmp_path, monkeypatch):
    (tmp_path / "system.yaml").write_text("node_id: 4\n")
    monkeypatch.setattr(settings_reader, "SYSTEM_FILE", str(tmp_path / "system.yaml"))
    monkeypatch.setattr(defaults, "DATA_DIR", str(tmp_path / "default"))
    assert settings_reader.find(None, None).node_id == 4
    assert settings_reader.find(None, str(tmp_path / "default")).node_id == 4
    assert settings_reader.find(None, str(tmp_path / "other")) == Settings()
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "overlayd.yaml").write_text("node_id: 6\n")
    assert settings_reader.find(None, None).node_id == 6
