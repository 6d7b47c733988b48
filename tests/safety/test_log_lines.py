"""Names and keys of others' making never make a line of the daemon's log."""

from __future__ import annotations

from tests.mesh.etcds import Clustered
from tests.mesh.fleet import wait_for

FORGED = "2026-01-01 00:00:00,000 ERROR cni.daemon: all is lost"


def test_a_key_of_the_store_with_a_line_break_is_written_out(clustered: Clustered, program: tuple[str, ...]) -> None:
    node = clustered.member(1, start=False)
    node.program = program
    node.start()
    clustered.put(f"{clustered.base(node)}node/x\n{FORGED}\x1b[2K", b"{}")
    wait_for(lambda: "all is lost" in node.log.read_text(), "the record in the log")
    lines = node.log.read_text().splitlines()
    assert not [line for line in lines if line.startswith(FORGED[:40])], "a line that the daemon did not write"
    (said,) = [each for each in node.tool("status")["problem_details"] if each["code"] == "record-refused"]
    assert said["text"].isprintable()
