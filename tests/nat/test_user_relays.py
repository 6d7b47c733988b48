"""Relays that forward in user space: ZLayer's protocol, and TURN against coturn."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mesh.fleet import Node, run, wait_for

from .flow import Flow
from .lab import ADDRESS, Lab
from .test_paths import MEET, SERVERS, echoed, meet, path_of

USER, SECRET = "node", "of-the-relay"
TURN_PORTS = (4478, 4479)  # of coturn, beside the laboratory's STUN server: plain, TLS


def secret(lab: Lab) -> str:
    """A file with the credential."""
    path = lab.directory / "credential"
    path.write_text(f"{SECRET}\n")
    return str(path)


def zlayer(lab: Lab) -> dict[str, object]:
    """The settings of a node that uses the relay at site 3."""
    access = {"address": f"{lab.public_address(3)}:3478", "credential_file": secret(lab)}
    return {**SERVERS, "relays": [access]}


def serving(lab: Lab) -> dict[str, object]:
    """The settings of a node that is that relay. It is in no cluster with the others: a relay of another owner."""
    return {"relay": {"ports": "41000-41019", "credential_file": secret(lab)}}


def certificate(directory: Path) -> tuple[str, str]:
    """A certificate for the server's address, and its key."""
    files = str(directory / "turn.crt"), str(directory / "turn.key")
    run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-days", "2", "-subj", "/CN=turn", "-addext", f"subjectAltName=IP:{ADDRESS}"),
        *("-out", files[0], "-keyout", files[1]),
    )
    return files


@contextmanager
def coturn(lab: Lab) -> Iterator[subprocess.Popen[bytes]]:
    """A real TURN server in the internet."""
    certificate_file, key_file = certificate(lab.directory)
    words = [
        "ip",
        "netns",
        "exec",
        lab.underlay,
        "turnserver",
        "-n",
        "--no-cli",
        "-L",
        ADDRESS,
        "-p",
        str(TURN_PORTS[0]),
    ]
    words += ["--tls-listening-port", str(TURN_PORTS[1]), "--cert", certificate_file, "--pkey", key_file]
    words += ["--lt-cred-mech", "-u", f"{USER}:{SECRET}", "-r", "example.org", "--min-port", "42000"]
    words += ["--max-port", "42099", "--pidfile", str(lab.directory / "turn.pid"), "--log-file", "stdout"]
    with (lab.directory / "turn.log").open("wb") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            yield server
        finally:
            server.terminate()


def turn(lab: Lab, address: str) -> dict[str, object]:
    """The settings of a node that uses coturn."""
    access = {"address": address, "username": USER, "credential_file": secret(lab)}
    if address.startswith("turns:"):
        access["ca_file"] = str(lab.directory / "turn.crt")
    return {**SERVERS, "turn": [access]}


def forwarder(node: Node) -> int:
    """The pid of the node's forwarder."""
    pids = run("ip", "netns", "pids", node.name).split()
    words = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return next(pid for pid, line in words.items() if b"relay-forwarder" in line)


@pytest.mark.parametrize("both", [True, False], ids=["both", "one"])
def test_two_symmetric_sides_meet_by_zlayers_protocol(lab: Lab, both: bool, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    relay = lab.at("public", 3, nat=serving(lab))
    lab.wait_for_device(relay)
    first = lab.joined("sym", 1, nat=zlayer(lab))
    second = lab.joined("sym", 2, nat=zlayer(lab) if both else SERVERS)
    began = time.monotonic()
    wait_for(lambda: echoed(first, second), "the tunnel", 30)
    seconds = time.monotonic() - began
    found = path_of(first, second)
    measured(f"sym      sym      {seconds:5.1f} s  {found['path']}: {found['path_why']}")
    assert seconds < MEET
    assert found["path"] == path_of(second, first)["path"] == "relayed"
    assert lab.document(first)["nat"]["relayed"][0].startswith(f"{lab.public_address(3)}:410")


@pytest.mark.parametrize("scheme", ["turn", "tcp", "turns"])
def test_two_symmetric_sides_meet_by_coturn(lab: Lab, scheme: str, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    address = {
        "turn": f"turn:{ADDRESS}:{TURN_PORTS[0]}",
        "tcp": f"turn:{ADDRESS}:{TURN_PORTS[0]}?transport=tcp",
        "turns": f"turns:{ADDRESS}:{TURN_PORTS[1]}",
    }[scheme]
    with coturn(lab):
        first, second, seconds = meet(lab, "sym", "sym", nat=turn(lab, address))
        found = path_of(first, second)
        measured(f"sym      sym      {seconds:5.1f} s  {found['path']}: {found['path_why']}")
        assert seconds < MEET
        assert found["path"] == "relayed"


def test_the_forwarder_survives_the_daemon(lab: Lab, measured: Callable[[str], None]) -> None:
    lab.start_stun()
    with coturn(lab):
        first, second, _ = meet(lab, "sym", "sym", nat=turn(lab, f"turn:{ADDRESS}:{TURN_PORTS[0]}"))
        wait_for(lambda: path_of(first, second)["path"] == "relayed", "the relay")
        process = forwarder(first)
        with Flow(first, str(second.status().node_ip)) as flow:
            first.end()
            time.sleep(2)
            first.start()
            wait_for(lambda: path_of(first, second)["path"] == "relayed", "the relay again")
            time.sleep(3)
        measured(f"daemon restarted on a TURN path: {flow.lost} of {flow.sent} echoes lost, gap {flow.gap:.2f} s")
        assert forwarder(first) == process
        assert flow.gap < 0.5
