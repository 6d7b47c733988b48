"""A call goes through the door unread, and its answer comes out unread."""

import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from cni import plugin_protocol
from tests.binary.fake_door import answer, hang, opened

RESULT = b'{"cniVersion":"1.1.0","any":"bytes \xff\x00 at all"}\n'


@pytest.mark.parametrize("command", ["ADD", "CHECK", "GC", "STATUS", "add", "NONSENSE"])
def test_the_answer_is_printed_to_the_byte(program, run_dir, conf, command):
    with opened(run_dir, lambda _: answer(7, RESULT, b"a warning \xfe\n")):
        done = program.run(command, conf())
    assert (done.returncode, done.stdout, done.stderr) == (7, RESULT, b"a warning \xfe\n")


@pytest.mark.parametrize("code", [1, 2, 4, 6, 7, 8])
def test_a_deletion_that_is_wrong_in_itself_is_told_to_the_byte(program, run_dir, conf, code):
    said = b'{"code":%d,"msg":"what is wrong","odd":"\\u0000"}\n' % code
    with opened(run_dir, lambda _: answer(1, said, b"a warning \xfe\n")):
        done = program.run("DEL", conf())
    assert (done.returncode, done.stdout, done.stderr) == (1, said, b"a warning \xfe\n")


@pytest.mark.parametrize("said", [b'{"code":11,"msg":"later"}\n', b'{"code":999,"msg":"odd"}\n', b"\xff", b""])
def test_a_deletion_that_cannot_be_done_now_succeeds_and_is_kept(program, run_dir, conf, said):
    with opened(run_dir, lambda _: answer(1, said, b"")):
        done = program.run("DEL", conf())
    assert (done.returncode, done.stdout) == (0, b"")
    assert len([path for path in (run_dir / "deletions").iterdir() if not path.name.startswith(".")]) == 1


def test_the_request_holds_what_the_runtime_gave(program, run_dir, conf):
    stdin = conf(more="\u00fc") + b"  \n\n"
    more = {"CNI_ARGS": b"A=\xff\xfe;B=", "CNI_PATH": "", "CNI_NETNS_OVERRIDE": "1", "HOME": "/nowhere"}
    with opened(run_dir) as door:
        assert program.run("ADD", stdin, **more).returncode == 0
    (request,) = door.requests
    own = Path("/proc/self/ns/net").stat()
    attempt = request.pairs.pop(b"ATTEMPT")
    assert request.pairs.pop(b"TELLS") == b"1"  # an ADD whose plugin is killed before it could print is undone
    assert len(bytes.fromhex(attempt.decode())) == 16
    assert re.fullmatch(rb"\d+:\d+", request.pairs.pop(b"WHOSE"))  # the process that the runtime started, and when
    assert (b"UNPACKED" in request.pairs) == (program.form == "plain")  # what it leaves if it is killed
    request.pairs.pop(b"UNPACKED", None)
    launched = program.form in ("single", "unpacked")
    assert request.pairs.pop(b"LAUNCHER", None) == (b"1" if launched else None)
    assert request.pairs == {
        b"CNI_COMMAND": b"ADD",
        b"CNI_CONTAINERID": b"cafe01",
        b"CNI_IFNAME": b"eth0",
        b"CNI_NETNS": b"/proc/self/ns/net",
        b"CNI_ARGS": b"A=\xff\xfe;B=",
        b"CNI_PATH": b"",
        b"CNI_NETNS_OVERRIDE": b"1",
        b"OWN_NETNS": b"%d:%d" % (own.st_dev, own.st_ino),
        b"NETNS_FD": b"1",
    }
    assert request.stdin == stdin
    assert request.netns == (own.st_dev, own.st_ino)


def test_a_netns_that_cannot_be_opened_is_told_and_never_waited_for(program, run_dir, conf, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    errors = {"missing": b"ENOENT", "fifo": b"EINVAL", "directory": b"EINVAL", "loop": b"ELOOP"}
    for path, error in errors.items():
        with opened(run_dir) as door:
            assert program.run("DEL", conf(), CNI_NETNS=str(tmp_path / path)).returncode == 0
        (request,) = door.requests
        assert request.pairs[b"NETNS_ERROR"] == error
        assert b"NETNS_FD" not in request.pairs
        assert request.netns is None


def test_two_mebibytes_both_ways(program, run_dir, conf):
    large = os.urandom(1 << 20).hex()
    with opened(run_dir, lambda r: answer(0, r.stdin)) as door:
        done = program.run("CHECK", conf(large=large))
    assert done.stdout == door.requests[0].stdin == conf(large=large)


def test_more_than_the_door_takes_is_refused(program, run_dir, conf):
    with opened(run_dir) as door:
        done = program.run("ADD", conf(large="x" * plugin_protocol.LARGEST))
    assert (done.returncode, json.loads(done.stdout)["code"]) == (1, 7)
    assert door.requests == []


def test_a_run_directory_that_no_socket_fits_in_is_refused(program, run_dir, conf):
    deep = run_dir / ("d" * 120)
    done = program.run("ADD", conf(runDir=str(deep)))
    said = json.loads(done.stdout)
    assert (done.returncode, said["code"]) == (1, 7)
    assert "runDir" in said["msg"]
    assert not deep.exists()


def test_a_daemon_that_dies_over_the_call_is_asked_once_more_with_the_same_id(program, run_dir, conf):
    with opened(run_dir, lambda _: None, lambda _: answer(0, RESULT)) as door:
        done = program.run("ADD", conf())
    assert (done.returncode, done.stdout) == (0, RESULT)
    first, second = door.requests
    assert first.pairs[b"ATTEMPT"] == second.pairs[b"ATTEMPT"]


@pytest.mark.parametrize(("command", "code"), [("ADD", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
def test_a_daemon_that_always_dies_is_reported(program, run_dir, conf, command, code):
    with opened(run_dir, lambda _: None) as door:
        done = program.run(command, conf(prevResult={"cniVersion": "1.1.0"}))
    said = json.loads(done.stdout)
    assert (done.returncode, said["code"], said["cniVersion"], len(door.requests)) == (1, code, "1.1.0", 2)
    assert str(door.path) in said["msg"]


@pytest.mark.parametrize("body", [b"", b"no number\n", b"0 x\n", b"0"])
def test_an_answer_that_is_none_is_no_traceback(program, run_dir, conf, body):
    with opened(run_dir, lambda _: body):
        done = program.run("ADD", conf())
    assert (done.returncode, json.loads(done.stdout)["code"], done.stderr) == (1, 11, b"")


def test_a_daemon_that_hangs_makes_status_say_50_in_two_seconds(program, run_dir, conf):
    """The quickest of some tries counts: what a machine with other work adds is not ours."""
    done_with_it, took = threading.Event(), []
    with opened(run_dir, lambda _: hang(done_with_it)) as door:
        while not took or (min(took) >= 2.0 and len(took) < 8):
            begun = time.monotonic()
            done = program.run("STATUS", conf())
            took.append(time.monotonic() - begun)
            said = json.loads(done.stdout)
            assert said["code"] == 50
            assert str(door.path) in said["msg"]
            assert "1.7 s" in said["msg"]
        done_with_it.set()
    assert min(took) < 2.0, took


@pytest.mark.parametrize("program", ["source"], indirect=True)
def test_a_daemon_that_hangs_makes_del_queue_and_check_say_11_in_ten_seconds(program, run_dir, conf):
    done_with_it, took = threading.Event(), []
    with opened(run_dir, lambda _: hang(done_with_it)):
        while not took or (min(took) >= 10 and len(took) < 4):  # the quickest counts, as above
            begun = time.monotonic()
            started = [program.start(command, conf()) for command in ("DEL", "CHECK")]
            deleted, checked = ((p.communicate(timeout=60), p.returncode) for p in started)
            took.append(time.monotonic() - begun)
            assert (deleted[1], deleted[0][0]) == (0, b"")
            assert b"queued" in deleted[0][1]
            assert (checked[1], json.loads(checked[0][0])["code"]) == (1, 11)
        done_with_it.set()
    assert min(took) < 10, took


def test_an_add_whose_result_cannot_be_written_is_undone(program, run_dir, conf):
    with opened(run_dir, lambda r: answer(0, RESULT * 5000 if r.pairs[b"CNI_COMMAND"] == b"ADD" else b"")) as door:
        process = program.start("ADD", conf())
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [r.pairs[b"CNI_COMMAND"] for r in door.requests] == [b"ADD", b"DEL"]
    assert b"undone" in stderr
    add, undo = door.requests
    assert add.pairs[b"ATTEMPT"] != undo.pairs[b"ATTEMPT"]
    assert (add.stdin, add.pairs[b"CNI_CONTAINERID"]) == (undo.stdin, undo.pairs[b"CNI_CONTAINERID"])


def test_a_full_disk_under_stdout_undoes_the_add_too(program, run_dir, conf):
    with opened(run_dir, lambda _: answer(0, RESULT)) as door, Path("/dev/full").open("wb") as full:
        process = program.start("ADD", conf(), stdout=full)
        process.communicate(timeout=60)
    assert process.returncode == 1
    assert [r.pairs[b"CNI_COMMAND"] for r in door.requests] == [b"ADD", b"DEL"]


def test_a_closed_stdout_does_nothing_at_all(program, run_dir, conf):
    with opened(run_dir) as door:
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *program.argv],
            env=program.environment("ADD"),
            input=conf(),
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, door.requests) == (1, [])


@pytest.mark.parametrize("command", ["DEL", "CHECK", "GC", "STATUS"])
def test_a_closed_stdout_is_nothing_to_a_verb_without_a_result(program, run_dir, conf, command):
    with opened(run_dir, lambda _: answer(0)) as door:
        done = subprocess.run(
            ["/bin/sh", "-c", 'exec "$@" >&-', "sh", *program.argv],
            env=program.environment(command),
            input=conf(cniVersion="1.1.0"),
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, [r.pairs[b"CNI_COMMAND"] for r in door.requests]) == (0, [command.encode()])
