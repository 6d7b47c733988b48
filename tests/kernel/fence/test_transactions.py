"""Texts and the kernel: all or nothing, twice as once, from any thread, and closed when it cannot be."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from cni.daemon.fence import ruleset as fence
from cni.daemon.fence.compare import compare, drops, faults, reload
from cni.daemon.fence.desired import DesiredState
from cni.daemon.fence.model import FenceBridge, FenceNode, FencePort, RemoteMember, chain_of
from cni.daemon.fence.replacement import whole
from cni.host import nft as nft_module
from cni.host import nft_elements
from cni.host.nft import Nft, NftError, NftUnavailable
from cni.host.nft_elements import Change
from tests.kernel.fence import remotes

from .spaces import Space

NODE = FenceNode(("10.200.0.0/16", "fd00:200::/48"), ("10.200.0.1", "fd00:200::1"), ("zl-a-1-g",))
BRIDGE = FenceBridge("zl-a-1-web-b", "02:42:00:00:00:05")
PORT = FencePort("zl-0123456789-v", BRIDGE.name, "02:00:00:00:00:05", ("10.200.5.2", "fd00:200:0:5::2"), "red")
WANTED = DesiredState(NODE, (BRIDGE,), (PORT,), (RemoteMember("red", frozenset({"10.200.40.2"})),))


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space("host")
    yield made
    made.close()


@pytest.fixture
def nft(space: Space) -> Iterator[Nft]:
    made = space.inside(Nft)
    yield made
    made.close()


def listing(nft: Nft, terse: bool = False) -> dict[str, object]:
    return {family: nft.list_table(family, "zlayer_cni", terse=terse) for family in fence.FAMILIES}


def rules_only(space: Space) -> str:
    return space.run("nft", "-s", "list", "ruleset")


STEPS: dict[str, Callable[[], str | Change]] = {
    "base": lambda: fence.base(NODE),
    "open_bridge": lambda: fence.open_bridge(BRIDGE),
    "create_network": lambda: fence.create_network("red"),
    "admit": lambda: fence.add_port(PORT),
    "add_remote": lambda: remotes.add_remote("red", ["10.200.40.2", "fd00:200:0:40::2"]),
    "remove_remote": lambda: remotes.remove_remote("red", ["10.200.40.2", "fd00:200:0:40::2"]),
    "expel": lambda: fence.remove_port(PORT),
    "forget_network": lambda: fence.forget_network("red"),
    "close_bridge": lambda: fence.close_bridge(BRIDGE),
    "uninstall": fence.uninstall,
}


def test_every_change_twice_is_the_same_as_once(space: Space, nft: Nft) -> None:
    """Forwards to full, and back to where it began."""
    after = {}
    for name, text in STEPS.items():
        nft.run(text())
        after[name] = rules_only(space)
        nft.run(text())
        assert rules_only(space) == after[name], name
    assert after["remove_remote"] == after["admit"]
    assert after["expel"] == after["create_network"]
    assert after["forget_network"] == after["open_bridge"]
    assert after["close_bridge"] == after["base"]
    assert after["uninstall"] == ""


def test_a_network_with_members_is_not_forgotten(nft: Nft, space: Space) -> None:
    for name in ("base", "open_bridge", "create_network", "admit"):
        nft.run(STEPS[name]())
    before = rules_only(space)
    with pytest.raises(NftError):
        nft.run(fence.forget_network("red"))
    assert rules_only(space) == before


def test_no_admission_to_a_network_that_does_not_exist(nft: Nft, space: Space) -> None:
    nft.run(fence.base(NODE))
    before = rules_only(space)
    with pytest.raises(NftError) as refused:
        nft.run(fence.add_port(PORT))
    assert "No such file" in refused.value.details
    assert refused.value.code == 105
    assert rules_only(space) == before


def test_a_bad_line_spoils_the_whole_text(nft: Nft, space: Space) -> None:
    for text in ("add table inet zlt\nadd chain inet zlt_other c\n", "add table inet zlt\nnonsense\n"):
        with pytest.raises(NftError) as refused:
            nft.run(text)
        assert refused.value.details
        assert rules_only(space) == ""


@pytest.mark.parametrize("destroys", [None, True, False])
def test_elements_on_every_kernel(space: Space, nft: Nft, destroys: bool | None) -> None:
    """With the kernel's own `destroy`, and in the two steps that older ones need."""
    elements = space.inside(lambda: nft_elements.Elements(destroys))
    nft.run(fence.base(NODE))
    for network in ("red", "blue"):
        nft.run(fence.create_network(network))

    apply = elements.apply
    empty = rules_only(space)
    apply(fence.remove_port(PORT))
    assert rules_only(space) == empty
    apply(fence.add_port(PORT))
    full = rules_only(space)
    apply(fence.add_port(PORT))
    assert rules_only(space) == full
    apply(fence.remove_port(replace(PORT, addresses=PORT.addresses[:1])))
    apply(fence.add_port(PORT))
    assert rules_only(space) == full
    apply(fence.add_port(replace(PORT, network="blue")))
    assert f'"{PORT.name}" : goto {chain_of("blue")}' in rules_only(space)
    apply(fence.remove_port(replace(PORT, network="blue")))
    apply(fence.remove_port(PORT))
    assert rules_only(space) == empty
    with pytest.raises(nft_elements.Refused):
        apply(fence.add_port(replace(PORT, network="green")))
    assert rules_only(space) == empty
    elements.close()


def test_what_is_absent_is_told(nft: Nft) -> None:
    lines = [line for line in fence.add_port(PORT).text().splitlines() if line.startswith("add")]
    assert nft.absent(fence.add_port(PORT)) == lines
    for name in ("base", "open_bridge", "create_network"):
        nft.run(STEPS[name]())
    assert nft.absent(fence.add_port(PORT)) == lines
    nft.run(fence.add_port(PORT))
    assert nft.absent(fence.add_port(PORT)) == []
    gone = [line for line in lines if " home4 " in line]
    nft.run(gone[0].replace("add", "delete", 1))
    assert nft.absent(fence.add_port(PORT)) == gone
    nft.run(
        "delete element inet zlayer_cni net4 { 10.200.5.2 }\n"
        "add element inet zlayer_cni net4 { 10.200.5.2 : goto net_flat }\n"
    )
    assert len(nft.absent(fence.add_port(PORT))) == 2


def test_calls_from_a_thread_elsewhere_stay_in_the_daemons_namespace(nft: Nft, space: Space) -> None:
    other = Space("elsewhere")
    other.inside(lambda: (nft.run(fence.base(NODE)), nft.run(fence.open_bridge(BRIDGE))))
    assert other.run("nft", "list", "ruleset") == ""
    assert BRIDGE.name in rules_only(space)
    assert other.inside(lambda: nft.list_table("inet", "zlayer_cni")) is not None
    other.close()


def test_many_threads(nft: Nft) -> None:
    nft.run(fence.base(NODE))
    nft.run(fence.create_network("red"))
    ports = [replace(PORT, name=f"p{i}", addresses=(f"10.200.5.{i}",)) for i in range(2, 34)]

    def work(own: list[FencePort]) -> None:
        for port in own:
            nft.run(fence.add_port(port))
            assert nft.absent(fence.add_port(port)) == []

    threads = [threading.Thread(target=work, args=(ports[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line for port in ports for line in nft.absent(fence.add_port(port))] == []


def test_a_missing_library_is_said_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft_module, "SONAME", "libnftables-that-is-not-here.so.1")
    with pytest.raises(NftUnavailable) as missing:
        Nft()
    assert "install libnftables" in missing.value.msg
    assert missing.value.code == 105


def test_a_bundled_library_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: object, space: Space) -> None:
    """What the frozen program brought is used, and one that is broken is passed over."""
    from pathlib import Path

    assert isinstance(tmp_path, Path)
    (tmp_path / nft_module.SONAME).write_bytes(b"no library")
    monkeypatch.setattr("sys._MEIPASS", str(tmp_path), raising=False)
    space.inside(Nft).close()
    monkeypatch.setattr(nft_module, "SONAME", "libnftables-that-is-not-here.so.1")
    (tmp_path / nft_module.SONAME).write_bytes(b"no library")
    with pytest.raises(NftUnavailable) as missing:
        Nft()
    assert str(tmp_path) in missing.value.details


def test_a_closed_context_is_refused(space: Space) -> None:
    nft = space.inside(Nft)
    nft.close()
    nft.close()
    for text in (fence.base(NODE), fence.add_port(PORT)):
        with pytest.raises(NftUnavailable):
            nft.run(text)


def test_a_refused_transaction_changes_nothing(space: Space, nft: Nft) -> None:
    """Another process owns a table of our name: every write of ours is refused, and is reported."""

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)

    owner = space.inside(start)
    try:
        assert owner.stdin is not None
        owner.stdin.write("add table inet zlayer_cni { flags owner; }\n")
        owner.stdin.flush()
        deadline = time.monotonic() + 30
        while "zlayer_cni" not in space.run("nft", "list", "tables") and time.monotonic() < deadline:
            time.sleep(0.02)
        for text in (fence.base(NODE), fence.uninstall()):
            with pytest.raises(NftError) as refused:
                nft.run(text)
            assert "Operation not permitted" in refused.value.details
        for change in (fence.open_bridge(BRIDGE), fence.add_port(PORT)):
            with pytest.raises(NftError):
                nft.run(change)
        assert nft.list_table("bridge", "zlayer_cni") is None
        with pytest.raises(NftError):  # this library cannot even list such a table
            listing(nft)
    finally:
        owner.kill()
        owner.wait()
    deadline = time.monotonic() + 30
    while "zlayer_cni" in space.run("nft", "list", "tables") and time.monotonic() < deadline:
        time.sleep(0.02)
    nft.run(*compare(listing(nft), WANTED))  # type: ignore[arg-type]
    assert faults(listing(nft, terse=True), WANTED) == []  # type: ignore[arg-type]


def test_drops_are_counted_by_rule(nft: Nft) -> None:
    nft.run(fence.base(NODE))
    nft.run(fence.create_network("red"))
    counted = drops(listing(nft))  # type: ignore[arg-type]
    assert counted["inet", "to_host", "host address"] == (0, 0)
    assert counted["bridge", chain_of("red"), "between networks"] == (0, 0)


def test_a_stale_network_goes_with_the_resync(nft: Nft) -> None:
    nft.run(fence.base(NODE))
    for network in ("red", "old"):
        nft.run(fence.create_network(network))
    nft.run(fence.add_port(replace(PORT, network="old")))
    parts = compare(listing(nft), WANTED)  # type: ignore[arg-type]
    assert parts
    nft.run(*parts)
    assert compare(listing(nft), WANTED) == []  # type: ignore[arg-type]
    assert chain_of("old") not in str(listing(nft))


def test_a_base_without_masquerade_takes_it_away(nft: Nft, space: Space) -> None:
    nft.run(fence.base(NODE))
    assert "masquerade" in rules_only(space)
    nft.run(fence.base(replace(NODE, masquerade=False)))
    nft.run(fence.base(replace(NODE, masquerade=False)))
    assert "masquerade" not in rules_only(space)


def older(text: str, marker: str) -> str:
    """As a version would have said it that has the same names and fewer ports; `marker` is its own."""
    (ours,) = {chain.name for chain in fence.chains(NODE) if chain.name.startswith(fence.MARKER)}
    lines = [line.replace(ours, marker) for line in text.splitlines() if marker or ours not in line]
    assert "4789" in text
    return "\n".join(lines).replace("4789, ", "") + "\n"


@pytest.mark.parametrize("marker", ["", "base_00000000"])
def test_rules_of_another_version_are_replaced(nft: Nft, space: Space, marker: str) -> None:
    """Though they have the names of ours, or no marker at all. No membership is touched."""
    nft.run(older(whole(WANTED), marker))
    said = faults(listing(nft, terse=True), WANTED)  # type: ignore[arg-type]
    assert len(said) == 2
    assert all("another version" in line for line in said)
    assert faults(listing(nft, terse=True), WANTED, alone=False) == []  # type: ignore[arg-type]
    parts = compare(listing(nft), WANTED)  # type: ignore[arg-type]
    assert parts
    assert PORT.name not in str(parts)
    nft.run(*parts)
    assert compare(listing(nft), WANTED) == []  # type: ignore[arg-type]
    assert faults(listing(nft, terse=True), WANTED) == []  # type: ignore[arg-type]
    mended = rules_only(space)
    nft.run(whole(WANTED))
    assert sorted(mended.splitlines()) == sorted(rules_only(space).splitlines())


def test_two_daemons_with_other_cidrs_let_each_other_be(nft: Nft) -> None:
    """Each would see the other's marker. Who is left alone puts its own rules in force."""
    other = DesiredState(replace(NODE, clusters=("10.201.0.0/16", "fd00:201::/48")))
    nft.run(whole(WANTED))
    assert faults(listing(nft, terse=True), other, alone=False) == []  # type: ignore[arg-type]
    assert len(faults(listing(nft, terse=True), other)) == 2  # type: ignore[arg-type]
    nft.run(reload(listing(nft), other))  # type: ignore[arg-type]
    assert faults(listing(nft, terse=True), WANTED, alone=False) == []  # type: ignore[arg-type]
    assert len(faults(listing(nft, terse=True), WANTED)) == 2  # type: ignore[arg-type]
    nft.run(*compare(listing(nft), WANTED))  # type: ignore[arg-type]
    assert compare(listing(nft), WANTED) == []  # type: ignore[arg-type]


FAR = [
    ("10.200.64.0/26", "10.200.64.64/26", "10.200.64.128/26", "10.200.77.5/32", "fd00:200::7/128", "fd00:200:7::/64"),
    ("10.200.64.64/26", "10.200.128.0/18", "fd00:200:7::/64"),
    ("10.200.64.0/18",),
    (),
]


@pytest.mark.parametrize("damage", ["", "flush chain inet zlayer_cni to_host"])
def test_networks_behind_a_tunnel_come_and_go(nft: Nft, damage: str) -> None:
    """Neighbours without a gap between them and single addresses too; also while the whole is mended."""
    for far in FAR:
        want = replace(WANTED, node=replace(NODE, far=far))
        if damage and nft.list_table("inet", "zlayer_cni"):
            nft.run(damage)
        parts = compare(listing(nft), want)
        assert parts
        nft.run(*parts)
        assert compare(listing(nft), want) == []
