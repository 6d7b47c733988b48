"""`zlayer-cni validate`: every fault of a file at once, in words and as JSON."""

import json
from pathlib import Path

import pytest

from cni.cli import validate
from cni.cli.validate import examine, run

CONF = Path(__file__).parents[2] / "conf"
LIST = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "zlayer-cni"}, {"type": "portmap"}]}


def judged(value, path="x.conflist"):
    return examine(path, value if isinstance(value, bytes) else json.dumps(value).encode())


def with_entry(**keys):
    return {**LIST, "plugins": [{"type": "loopback", "anything": 1}, {"type": "zlayer-cni", **keys}]}


@pytest.mark.parametrize("path", sorted(CONF.glob("**/*.conflist")), ids=lambda path: str(path.relative_to(CONF)))
def test_what_we_ship_is_good(path, capsys):
    assert run(str(path), as_json=False) == 0
    assert capsys.readouterr().out.startswith(f"{path}: a network list, good\n")


def test_the_two_lists_we_ship_differ_by_version_alone():
    old, new = (json.loads((CONF / name / "10-zlayer.conflist").read_text("utf-8")) for name in (".", "cni-1.1"))
    assert (old.pop("cniVersion"), new.pop("cniVersion")) == ("1.0.0", "1.1.0")
    assert old == new


def test_faults_are_told_all_at_once():
    report = judged(with_entry(mode="x", mtu="1400", isolationNetwrok="a", dns={"nameserver": []}))
    assert report.errors == [
        'plugins[1].mode: "x" is not one of auto, shared, dedicated, isolated',
        'plugins[1].mtu: expected an integer, found "1400"',
        "plugins[1].isolationNetwrok: unknown key; isolationNetwork is meant?",
        "plugins[1].dns.nameserver: unknown key; nameservers is meant?",
    ]
    assert report.warnings == []


@pytest.mark.parametrize(
    ("key", "meant"),
    [("isolation_network", "isolationNetwork"), ("joinglobl", "joinGlobal"), ("rundirs", "runDir"), ("zzz", None)],
)
def test_the_nearest_known_key(key, meant):
    (error,) = judged(with_entry(**{key: 1})).errors
    assert error == f"plugins[1].{key}: unknown key" + (f"; {meant} is meant?" if meant else "")


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({**LIST, "name": ""}, 'name: "" is not'),
        ({**LIST, "name": "a b"}, 'name: "a b" is not'),
        ({**LIST, "name": 1}, "name: expected a string, found 1"),
        ({**LIST, "cniVersion": "9.8.7"}, 'cniVersion: incompatible CNI versions: config is "9.8.7"'),
        ({**LIST, "Plugins": []}, "Plugins: unknown key; plugins is meant?"),
        ({**LIST, "disablecheck": True}, "disablecheck: unknown key; disableCheck is meant?"),
        ({**LIST, "disableCheck": "yes"}, 'disableCheck: expected true or false, found "yes"'),
        ({**LIST, "plugins": []}, "plugins: the list is empty"),
        ({**LIST, "plugins": {}}, "plugins: expected a list, found {}"),
        ({**LIST, "plugins": [1]}, "plugins[0]: expected an object, found 1"),
        ({**LIST, "plugins": [{}]}, "plugins[0].type: expected the name of a plugin, found null"),
        ({**LIST, "plugins": [{"type": "bridge"}]}, "plugins: none of them is zlayer-cni"),
        ({"name": "net"}, "plugins: the list is empty"),
        (b'{"name":"a","name":"b","plugins":[]}', "name is given more than once"),
        ([], "expected a JSON object"),
        (b"{", "this is not JSON"),
        (b"", "this is not JSON"),
        (b'\xef\xbb\xbf{"name":"net"}', "this is not JSON"),
    ],
)
def test_faults_of_a_list(raw, said):
    report = judged(raw)
    assert report.kind == "conflist"
    assert any(error.startswith(said) for error in report.errors), report.errors


OURS = {"type": "zlayer-cni"}


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ([OURS, OURS], "plugins[1] (zlayer-cni): every ADD fails, because plugins[0] (zlayer-cni) has made"),
        ([OURS, {"type": "portmap"}, OURS], "plugins[2] (zlayer-cni): every ADD fails"),
        ([{"type": "portmap"}, OURS], "plugins[0] (portmap): it changes what an earlier plugin made"),
        ([{"type": "loopback"}, {"type": "tuning"}, OURS], "plugins[1] (tuning): it changes"),
        ([{"type": "firewall"}, OURS], "plugins[0] (firewall)"),
        ([{"type": "bridge"}, OURS], "plugins[1] (zlayer-cni): every ADD fails, because plugins[0] (bridge) has made"),
        ([OURS, {"type": "macvlan"}], "plugins[1] (macvlan): every ADD fails"),
        ([OURS, {"type": "host-local"}], "plugins[1] (host-local): it gives out addresses"),
        ([OURS, {"type": "../portmap"}], "plugins[1].type: '../portmap' is not a file's name"),
        (
            [OURS, {"type": "portmap", "capabilities": {"portMappings": 1}}],
            "plugins[1].capabilities.portMappings: expected",
        ),
        ([OURS, {"type": "portmap", "capabilities": ["portMappings"]}], "plugins[1].capabilities: expected an object"),
    ],
)
def test_lists_with_which_every_add_fails(plugins, said):
    (error,) = judged({**LIST, "plugins": plugins}).errors
    assert error.startswith(said), error


@pytest.mark.parametrize("after", ["portmap", "bandwidth", "firewall", "tuning", "sbr", "vrf", "third-party"])
def test_what_may_come_after_ours(after):
    assert judged({**LIST, "plugins": [{"type": "loopback"}, OURS, {"type": after}]}).errors == []


def test_a_list_in_a_file_for_a_single_plugin():
    assert judged(LIST, "10-x.conf").errors == [
        "the file's name: a runtime reads a list only from a file named *.conflist"
    ]


def test_plugins_that_are_not_installed_or_too_old(tmp_path):
    for name, versions in (("zlayer-cni", ["1.0.0", "1.1.0"]), ("portmap", ["0.4.0", "1.0.0"])):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{json.dumps({'supportedVersions': versions})}'\n")
        (tmp_path / name).chmod(0o755)
    old = {**LIST, "plugins": [OURS, {"type": "portmap"}, {"type": "tuning"}]}
    (missing,) = examine("x.conflist", json.dumps(old).encode(), str(tmp_path)).errors
    assert missing == f"plugins[2] (tuning): there is no {tmp_path}/tuning, so every ADD fails"
    new = {**LIST, "cniVersion": "1.1.0"}
    (too_old,) = examine("x.conflist", json.dumps(new).encode(), str(tmp_path)).errors
    assert too_old == "plugins[1] (portmap): every ADD fails, because it speaks CNI up to 1.0.0, not 1.1.0"


@pytest.mark.parametrize("value", [True, False, "true", "false"])
def test_switches_of_a_list(value):
    assert judged({**LIST, "disableCheck": value, "disableGC": value}).valid


def test_warnings_are_no_faults():
    report = judged({**with_entry(ipMasq=True, capabilities={"portMappings": True}), "cniVersion": "1.1.0"})
    assert report.valid
    assert [warning.split(":")[0] for warning in report.warnings] == [
        "cniVersion",
        "plugins[1].ipMasq",
        "plugins[1].capabilities.portMappings",
    ]


def test_an_entry_alone():
    report = judged({"Type": "zlayer-cni", "mtu": 1, "x": 1}, "entry.json")
    assert report.kind == "entry"
    assert report.errors == ["mtu: 1 is neither 0 nor between 576 and 65535", "x: unknown key"]


def test_daemon_settings_are_judged_by_the_daemon(tmp_path):
    good, bad = tmp_path / "overlayd.yaml", tmp_path / "settings"
    good.write_text("log_level: debug\n", "utf-8")
    bad.write_text("log_levle: debug\n", "utf-8")
    assert [run(str(path), as_json=False) for path in (good, bad)] == [0, 1]
    (error,) = examine(str(bad), bad.read_bytes()).errors
    assert "log_levle" in error


def test_every_fault_of_the_settings_is_told(tmp_path):
    path = tmp_path / "overlayd.yaml"
    path.write_text("node_id: seven\nlog_levle: debug\nwg_port: 0\n", "utf-8")
    assert examine(str(path), path.read_bytes()).errors == [
        "node_id: expected a whole number, got 'seven' (line 1)",
        "log_levle: unknown key; log_level is meant? (line 2)",
        "wg_port: expected a whole number of at least 1, got 0 (line 3)",
    ]


def test_as_json(tmp_path, capsys):
    path = tmp_path / "x.conflist"
    path.write_text(json.dumps(with_entry(mtu=1)), "utf-8")
    assert run(str(path), as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == {
        "file": str(path),
        "kind": "conflist",
        "valid": False,
        "errors": ["plugins[1].mtu: 1 is neither 0 nor between 576 and 65535"],
        "warnings": [],
    }


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_cannot_be_read(tmp_path, name, capsys):
    assert run(str(tmp_path / name), as_json=False) == validate.UNREADABLE
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(str(tmp_path))
