"""A peer with several endpoints is called at each of them in turn; a peer that never answers is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .fixtures import engine
from .fleet import Fleet, Node, fleet, link, run, seconds_until, wait_for

__all__ = ["engine"]

pytestmark = pytest.mark.root
DEAD = "198.51.100.77:51420"  # no machine has that address


@pytest.fixture
def made() -> Iterator[Fleet]:
    with fleet("e") as new:
        yield new


def codes(node: Node) -> list[str]:
    return [each["code"] for each in node.tool("status")["problem_details"]]


def test_the_second_endpoint_is_tried(made: Fleet, engine: None, measured: Callable[[str], None]) -> None:
    one, two = (made.node(number, start=False) for number in (1, 2))
    link(one, two)
    (peer,) = one.settings["peers"]
    peer["endpoints"], peer["endpoint"] = [f"198.51.100.78:{51420}", peer["endpoint"]], DEAD
    two.settings["peers"][0].pop("endpoint")
    for node in (one, two):
        node.start()
    a, b = one.container(), two.container()
    measured(f"the third endpoint answers after {seconds_until(lambda: a.pings(b.address, wait=0.5), 'it', 30):.0f} s")
    one.end()
    one.start()
    assert a.pings(b.address, wait=1), "a daemon that begins goes on where the peer answers"
    assert [each["endpoint"] for each in one.tool("peers")] == [f"{two.underlay}:51420"]


def test_the_second_address_of_a_name_is_tried(made: Fleet, engine: None, measured: Callable[[str], None]) -> None:
    one, two = (made.node(number, start=False) for number in (4, 2))
    link(one, two)
    one.settings["peers"][0]["endpoint"] = "two.example:51420"
    two.settings["peers"][0].pop("endpoint")
    names = Path("/etc/netns", one.name)
    names.mkdir(parents=True)
    try:
        # The lookup sorts by the bits in common with the own address (RFC 6724, rule 9): 198.51.100.5 has more.
        (names / "hosts").write_text(f"198.51.100.5 two.example\n{two.underlay} two.example\n")
        order = run("ip", "netns", "exec", one.name, "getent", "ahostsv4", "two.example").split()
        assert order.index("198.51.100.5") < order.index(two.underlay)
        for node in (one, two):
            node.start()
        a, b = one.container(), two.container()
        seconds = seconds_until(lambda: a.pings(b.address, wait=0.5), "the second address", 30)
    finally:
        (names / "hosts").unlink()
        names.rmdir()
    measured(f"the second address of a name answers after {seconds:.0f} s")
    assert [peer["endpoint"] for peer in one.tool("peers")] == [f"{two.underlay}:51420"]


def test_a_node_without_an_address_gives_no_token(made: Fleet) -> None:
    """The other node could never call it. `join` returns a token too, so it is refused as well."""
    one, two = made.node(1), made.node(2)
    run_dir = ("--run-dir", str(one.directory / "run"))
    token = two.tool("peer", "token")["token"]
    run("ip", "-n", one.name, "address", "flush", "dev", "eth0")
    for words in (("peer", "token"), ("join", token)):
        refused = one.cli(*words, *run_dir)
        assert (refused.returncode, refused.stdout) == (1, ""), words
        assert "no address of this node is known" in refused.stderr
        assert "advertise" in refused.stderr
    assert one.tool("peers") == []
    run("ip", "-n", one.name, "address", "add", f"{one.underlay}/24", "dev", "eth0")
    assert one.cli("join", token, *run_dir).returncode == 0


@pytest.mark.long
def test_a_peer_that_never_answered_is_told(made: Fleet, engine: None) -> None:
    one = made.node(1, start=False)
    absent = made.node(2, start=False)
    link(one, absent)
    one.start()
    one.container()
    wait_for(lambda: "peer-silent" in codes(one), "the problem", 60)
    assert one.cli("status", "--run-dir", str(one.directory / "run")).returncode == 1
    (problem,) = one.tool("status")["problem_details"]
    assert "never heard" in problem["text"]
    assert f"{absent.underlay}:51420" in problem["text"]
    far = "10.200.64.9"
    why = one.cli("why", "node", far, "--run-dir", str(one.directory / "run")).stdout
    assert "does not answer" in why
    absent.start()
    wait_for(lambda: "peer-silent" not in codes(one), "its end", 30)
