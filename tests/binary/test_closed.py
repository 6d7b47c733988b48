"""No daemon, and none may be started (`"autostart": false`): every verb says so in its own way."""

import itertools
import json
import os
import socket
import subprocess

import pytest

from cni import naming
from cni.plugin import delete_queue
from tests.binary.fake_door import Program

KEY = delete_queue.key(("net", "cafe01", "eth0"))


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_the_code_says_try_again_or_not_available(program, run_dir, conf, command, code):
    done = program.run(command, conf(prevResult={"cniVersion": "1.1.0"}))
    said = json.loads(done.stdout)
    assert (done.returncode, said["code"], said["cniVersion"]) == (1, code, "1.1.0")
    assert f"{run_dir}/cni.sock" in said["msg"]
    assert "autostart is off" in said["msg"]
    assert not run_dir.exists()


def test_a_deletion_is_written_down_once_and_can_be_replayed(program, run_dir, conf):
    for _ in range(2):
        done = program.run("DEL", conf(), CNI_ARGS=b"K=\xff")
        assert (done.returncode, done.stdout) == (0, b"")
        assert KEY.encode() in done.stderr
    ((name, body),) = delete_queue.entries(str(run_dir))
    assert name == KEY
    head, _, stdin = body.partition(b"\0\0")
    magic, *lines = head.split(b"\0")
    pairs = dict(line.split(b"=", 1) for line in lines)
    assert (magic, stdin) == (b"zcni1", conf())
    assert {pairs[k] for k in (b"CNI_COMMAND", b"CNI_CONTAINERID", b"CNI_IFNAME")} == {b"DEL", b"cafe01", b"eth0"}
    assert (pairs[b"CNI_ARGS"], pairs[b"NETNS_ERROR"]) == (b"K=\xff", b"ESTALE")
    assert int(pairs[b"QUEUED_NS"]) > 0
    assert b"NETNS_FD" not in pairs


def test_a_deletion_succeeds_when_there_is_no_place_for_it(program, run_dir, conf):
    run_dir.write_text("not a directory")
    done = program.run("DEL", conf())
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"garbage collection" in done.stderr


def test_a_full_queue_does_not_fail_a_deletion(program, run_dir, conf):
    directory = run_dir / "deletions"
    directory.mkdir(parents=True)
    for number in range(delete_queue.LIMIT):
        (directory / f"{number:032x}").touch()
    done = program.run("DEL", conf())
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"256" in done.stderr
    assert len(delete_queue.names(str(run_dir))) == delete_queue.LIMIT


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"CNI_CONTAINERID": ""}, "[CNI_CONTAINERID]"),
        ({"CNI_CONTAINERID": "", "CNI_IFNAME": ""}, "[CNI_CONTAINERID,CNI_IFNAME]"),
        ({"CNI_CONTAINERID": "a/b"}, "invalid characters in containerID"),
        ({"CNI_CONTAINERID": "abc\n"}, "invalid characters in containerID"),
        ({"CNI_IFNAME": "x" * 16}, "too long"),
        ({"CNI_IFNAME": "\u00fc" * 8}, "too long"),
        ({"CNI_IFNAME": ".."}, ". or .."),
        ({"CNI_IFNAME": "a b"}, "whitespace"),
        ({"CNI_IFNAME": "a\u00a0b"}, "whitespace"),
    ],
)
def test_an_invalid_call_is_refused_and_starts_nothing(program, run_dir, conf, more, word):
    for command, autostart in itertools.product(("ADD", "DEL"), (True, False)):
        done = program.run(command, conf(autostart=autostart), **more)
        said = json.loads(done.stdout)
        assert (done.returncode, said["code"]) == (1, 4)
        assert word in said["msg"].replace("CNI_NETNS,", "")
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("stdin", "code"),
    [
        (b"", 6),
        (b"{", 6),
        (b"[]", 6),
        (b"null", 7),
        (b"{}", 7),
        (b'{"runDir":"relative","name":"a"}', 7),
        (b'{"runDir":5,"name":"a"}', 6),
        (b'{"autostart":"no","name":"a"}', 6),
        (b'{"overlayd":true,"name":"a"}', 6),
        (b'{"name":"a b","autostart":false}', 7),
        (b"\xef\xbb\xbf{}", 6),
        (b"[" * 100000 + b"\\u", 6),
        (b'{"cniVersion":"9.8.7","name":"a","autostart":false}', 1),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(program, stdin, code):
    done = program.run("ADD", stdin)
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, code, b"")


@pytest.mark.parametrize("command", ["add", "NONSENSE", b"\xff\xfe"])
def test_an_unknown_verb_is_code_4(program, conf, command):
    done = program.run(None, conf(autostart=True), CNI_COMMAND=command)
    said = json.loads(done.stdout)
    assert (done.returncode, said["code"]) == (1, 4)
    assert said["msg"].startswith("unknown CNI_COMMAND: ")


def test_a_stale_socket_is_a_closed_door(program, run_dir, conf):
    run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run_dir / "cni.sock"))
    said = json.loads(program.run("ADD", conf()).stdout)
    assert (said["code"], "Connection refused" in said["msg"]) == (11, True)


def test_keys_are_found_in_any_case_and_behind_escapes(program, run_dir, conf, tmp_path):
    text = conf().replace(b'"runDir"', b'"RUN\\u0064ir"').replace(b'"autostart"', b'"AutoStart"')
    assert program.run("DEL", text).returncode == 0
    assert delete_queue.names(str(run_dir)) == [KEY]


def test_the_last_of_two_equal_keys_wins(program, run_dir, tmp_path):
    text = f'{{"name":"net","runDir":"/nowhere","autostart":false,"rundir":"{run_dir}","cniVersion":"1.0.0"}}'
    said = json.loads(program.run("ADD", text.encode()).stdout)
    assert said["code"] in (6, 11)  # The verbs' own judgement calls a repeated key a fault.
    assert "/nowhere" not in said["msg"]
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.root
def test_a_deletion_takes_the_containers_link_away_at_once(program, run_dir, conf):
    """Whether or not it can be queued: the container is off the network, and nothing but its own link is touched."""
    space = f"zlt-link-{os.getpid()}"
    ours, others = naming.attachment_veth("net", "cafe01", "eth0"), naming.attachment_veth("net", "cafe01", "eth1")
    inside = Program(program.form, ["nsenter", f"--net=/run/netns/{space}", *program.argv], program.env)
    subprocess.run(["ip", "netns", "add", space], check=True)
    try:
        for name in (ours, others):
            subprocess.run(["ip", "-n", space, "link", "add", name, "type", "veth", "peer", f"p{name[2:]}"], check=True)
        run_dir.write_text("no place for a queue")
        env = {"CNI_NETNS": "", "PATH": "/usr/bin:/bin"}
        for _ in range(2):
            done = inside.run("DEL", conf(), **env)
            assert (done.returncode, done.stdout) == (0, b"")
            assert f"its link {ours} is gone".encode() in done.stderr
        listed = subprocess.run(["ip", "-n", space, "-o", "link"], check=True, capture_output=True, text=True).stdout
        assert (ours in listed, others in listed) == (False, True)
    finally:
        subprocess.run(["ip", "netns", "del", space], check=True)


def test_a_foreign_overlayd_is_served_in_this_process(program, run_dir, conf, tmp_path):
    """The single file hands the call, with its stdin, to the unpacked program, which has the client. Without the
    launcher an obviously invalid call extracts nothing."""
    stdin = conf(overlayd={"socket": str(tmp_path / "absent.sock")}, more="x" * 100_000, cniVersion="0.4.0")
    data = tmp_path / "data"
    assert json.loads(program.run("ADD", stdin, CNI_NETNS="").stdout)["code"] == 4
    assert data.exists() == (program.form == "single")
    for _ in range(2):
        done = program.run("ADD", stdin, LD_LIBRARY_PATH="/opt/runtime/lib")
        said = json.loads(done.stdout)
        assert (done.returncode, said["cniVersion"]) == (1, "0.4.0")
        assert said["code"] in (7, 8, 11), said
    assert len(list(data.glob("program/*/zlayer-cni"))) == (1 if program.form in ("single", "plain") else 0)
