"""One container that floods the node's server with questions does not keep it from answering the others."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dns.message

from tests.dns.conftest import SERVER4, Names, running

FLOOD = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.connect((sys.argv[1], 53))
    message = bytes.fromhex(sys.argv[2])
    print("floods", flush=True)
    while True:
        sock.send(message)
"""
FLOODS, QUESTIONS = 2, 30
PATIENCE = 5.0  # seconds: a resolver's own


@contextlib.contextmanager
def flooding(node: Names, box: str, name: str) -> Iterator[None]:
    """The container sends the question as fast as it can, and reads no answer."""
    message = dns.message.make_query(name, "A").to_wire().hex()
    command = ["nsenter", f"--net={node.space_of(box).path}", sys.executable, "-c", FLOOD, SERVER4, message]
    made = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(FLOODS)]
    try:
        for each in made:
            assert each.stdout is not None
            each.stdout.readline()
        yield
    finally:
        for each in made:
            each.kill()
            each.communicate()


def test_a_flood_of_one_container_starves_no_other(tmp_path: Path):
    with running(tmp_path, "dns: {upstreams: []}\n") as (node, make):
        for name in ("flooder", "asker", "web"):
            node.attach(name, make(), name)
        node.register("crowd", *(f"198.51.100.{number + 1}" for number in range(28)))
        message = dns.message.make_query(node.full("web"), "A").to_wire()
        lost = 0
        with flooding(node, "flooder", node.full("crowd")):
            time.sleep(1)
            for _ in range(QUESTIONS):
                try:
                    node.exchange("asker", message, seconds=PATIENCE)
                except TimeoutError:
                    lost += 1
        dropped = node.ask("status")["dns"]["counts"]["over_share"]
    sys.stdout.write(f"{lost} of {QUESTIONS} questions lost, {dropped} datagrams dropped\n")
    assert dropped > 0
    assert lost <= QUESTIONS // 5
