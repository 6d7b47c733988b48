"""Our client of etcd against a real one: transactions, pages, leases, watches, compaction, users, certificates."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from cni.daemon import settings
from cni.daemon.cluster.claims import Claims
from cni.daemon.cluster.etcd_client import EtcdClient
from cni.daemon.cluster.store import Compacted, Compare, Delete, Get, Put, StoreError, Unreachable, WrongServer
from cni.daemon.cluster.view import ClusterView
from cni.daemon.state.identity import Member
from cni.daemon.state.store import Store
from cni.daemon.state.tables import Tables
from cni.errors import PoolExhausted
from cni.secret import Secret

from .etcds import PROGRAM, EtcdServer, ask_for_passwords, certificates, three_members
from .fleet import PREFIX, inside, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(PROGRAM is None, reason="no etcd here (apt-get install etcd-server)"),
]
T = TypeVar("T")


class Lab:
    """An etcd in a namespace of its own, and calls from inside."""

    def __init__(self, directory: Path, name: str, *more: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        self.server = EtcdServer(directory, "127.0.0.1", name, *more)
        self.server.start()

    def __call__(self, work: Callable[[], T]) -> T:
        return inside(f"/run/netns/{self.name}", work)

    def client(self, **more: Any) -> EtcdClient:
        return EtcdClient(settings.Etcd(**{"endpoints": (self.server.url,), **more}))

    def close(self) -> None:
        self.server.end(9)
        run("ip", "netns", "delete", self.name, check=False)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("etcd"), f"{PREFIX}{os.getpid()}-e")
    yield made
    made.close()


def test_who_comes_second_is_told_who_was_first(lab: Lab) -> None:
    client = lab.client()

    def claim(who: bytes) -> tuple[bool, list[bytes]]:
        done, found = client.transact([Compare("/t/a", "CREATE", 0)], [Put("/t/a", who)], [Get("/t/a")])
        return done, [item.value for item in found]

    assert lab(lambda: claim(b"one")) == (True, [])
    assert lab(lambda: claim(b"two")) == (False, [b"one"])
    assert lab(lambda: client.transact([Compare("/t/a", "VALUE", b"two")], [Delete("/t/a")]))[0] is False
    assert lab(lambda: client.transact([Compare("/t/a", "VALUE", b"one")], [Delete("/t/a")]))[0] is True
    assert lab(lambda: claim(b"two")) == (True, [])


def test_many_at_once_and_one_wins(lab: Lab) -> None:
    won: list[int] = []

    def claim(n: int) -> None:
        client = lab.client()
        if lab(lambda: client.transact([Compare("/t/race", "CREATE", 0)], [Put("/t/race", b"%d" % n)]))[0]:
            won.append(n)

    threads = [threading.Thread(target=claim, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = won
    assert lab(lambda: lab.client().read("/t/race"))[0][0].value == b"%d" % winner


def test_everything_is_read_as_of_one_moment(lab: Lab) -> None:
    client = lab.client()

    def work() -> tuple[int, int]:
        for n in range(2300):
            client.put(f"/many/{n:05}", b"x")
        items, revision = client.read("/many/")
        assert [item.key for item in items] == [f"/many/{n:05}" for n in range(2300)]
        return len(items), revision - items[-1].changed

    assert lab(work) == (2300, 0)


class Claimant:
    """A node's claims, and what it sees in etcd."""

    def __init__(self, lab: Lab, directory: Path, identity: str, cluster: str) -> None:
        self.lab, self.cluster, self.client, self.view = lab, cluster, lab.client(), ClusterView("/claims/z/")
        self.registry = Tables(Store(directory / f"{identity}.db"))
        self.member = Member(identity, 0, ())
        self.claims = Claims(self.client, self.view.keys, self.registry, lambda: self.member)

    def look(self) -> None:
        items, _ = self.client.read(self.view.keys.base)
        self.view.load(((item.key, item.value) for item in items), 0.0)

    def join(self) -> str:
        self.look()
        number = self.claims.take_id(0, self.view.ids)
        self.member = Member(self.member.identity, number, ())
        return self.claims.take_slice(self.cluster, number, self.view, None)

    def reconcile(self, own: str | None = None) -> int:
        """A look at its own claims; how many slots it holds in advance then. `own`: the range of its services."""
        self.look()
        self.claims.reconcile(self.view, {}, (), [own or self.cluster])
        return len(self.spare())

    def spare(self) -> list[ipaddress.IPv4Network]:
        """The slots that it holds in advance."""
        mine = self.registry.slots.all().items()
        return [ipaddress.IPv4Network(cidr) for cidr, slot in mine if slot.use == "spare"]


def test_slots_held_in_advance_are_nobodys_loss(lab: Lab, tmp_path: Path) -> None:
    """A range of four: who needs a slice gets one, though another node held it in advance."""
    cluster = "10.9.0.0/24"
    one, two, three, four = (Claimant(lab, tmp_path, f"node{n}", cluster) for n in range(1, 5))

    def work() -> None:
        slices = [one.join()]
        assert one.reconcile() == 1
        slices.append(two.join())
        assert (two.reconcile(), one.reconcile()) == (0, 0)
        slices += [three.join(), four.join()]
        assert len(set(slices)) == 4
        assert one.reconcile() == 0
        five = Claimant(lab, tmp_path, "node5", cluster)
        with pytest.raises(PoolExhausted):
            five.join()

    lab(work)


def test_slots_held_in_advance_are_in_the_range_of_the_services(lab: Lab, tmp_path: Path) -> None:
    """Those outside of it are released: no service of the node could use one."""
    who, own = Claimant(lab, tmp_path, "part", "10.7.0.0/16"), ipaddress.IPv4Network("10.7.64.0/22")

    def work() -> None:
        who.join()
        assert who.reconcile() == 2
        outside = who.spare()
        assert not any(network.overlaps(own) for network in outside)
        assert who.reconcile(str(own)) == 2
        assert all(network.subnet_of(own) for network in who.spare())
        who.look()
        assert not {str(network) for network in outside} & who.view.slots.keys()
        assert who.claims.take_spare(4, "web", lambda network: False) is None
        assert len(who.spare()) == 2
        given = who.claims.take_spare(4, "web", lambda network: network.overlaps(own))
        assert given is not None and given not in who.spare()

    lab(work)


def test_a_slot_that_nobody_can_read_is_nobodys_to_take(lab: Lab, tmp_path: Path) -> None:
    who = Claimant(lab, tmp_path, "reader", "10.8.0.0/16")

    def work() -> None:
        who.join()
        who.client.put(who.view.keys.slot("10.8.7.0/26"), b"{")
        assert not who.claims.claim(ipaddress.ip_network("10.8.7.0/26"), "web")
        assert who.claims.claim(ipaddress.ip_network("10.8.7.64/26"), "web")

    lab(work)


def test_a_lease_ends_and_its_keys_with_it(lab: Lab) -> None:
    client = lab.client()
    lease = lab(lambda: client.grant(5))
    lab(lambda: client.put("/lease/a", b"here", lease))
    assert lab(lambda: client.keep_alive(lease))
    assert lab(lambda: client.read("/lease/"))[0][0].lease == lease
    for _ in range(2):
        lab(lambda: client.revoke(lease))
    assert lab(lambda: client.read("/lease/"))[0] == []
    assert not lab(lambda: client.keep_alive(lease))
    with pytest.raises(StoreError) as caught:
        lab(lambda: client.put("/lease/a", b"here", lease))
    assert caught.value.code == 5


def test_a_watch_tells_what_happened_since(lab: Lab) -> None:
    client = lab.client()
    lab(lambda: client.put("/watch/a", b"1"))
    revision = lab(lambda: client.read("/watch/"))[1]
    lab(lambda: client.put("/watch/a", b"2"))
    lab(lambda: client.transact([], [Delete("/watch/a"), Put("/watch/b", b"3")]))
    heard: list[tuple[str, bytes, bool]] = []

    def work() -> None:
        for _, events in client.watch("/watch/", revision + 1):
            heard.extend((e.item.key, e.item.value, e.gone) for e in events)
            if len(heard) >= 3:
                return

    lab(work)
    assert heard == [("/watch/a", b"2", False), ("/watch/a", b"", True), ("/watch/b", b"3", False)]


def test_what_was_compacted_is_said_to_be(lab: Lab) -> None:
    client = lab.client()
    lab(lambda: client.put("/c/a", b"1"))
    revision = lab(lambda: client.read("/c/"))[1]
    lab(lambda: client._call("/v3/kv/compaction", {"revision": str(revision)}))
    with pytest.raises(Compacted):
        lab(lambda: list(client.watch("/c/", 1)))


def test_another_endpoint_answers_where_one_is_dead(lab: Lab) -> None:
    client = lab.client(endpoints=("http://127.0.0.1:9", lab.server.url))
    assert lab(lambda: client.read("/nothing/"))[0] == []
    dead = lab.client(endpoints=("http://127.0.0.1:9",))
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        lab(lambda: dead.read("/nothing/"))


def test_it_is_found_again_after_a_restart(lab: Lab) -> None:
    client = lab.client()

    def work() -> None:  # one thread, so one connection: it went stale
        client.put("/again", b"1")
        lab.server.end()
        with pytest.raises(Unreachable):
            client.read("/again")
        lab.server.start()
        assert client.read("/again")[0][0].value == b"1"
        lab.server.end()
        lab.server.start()
        assert client.read("/again")[0][0].value == b"1"

    lab(work)


def test_a_user_and_a_password(tmp_path: Path) -> None:
    made = Lab(tmp_path, f"{PREFIX}{os.getpid()}-u", "--auth-token-ttl", "2")
    try:
        made(lambda: ask_for_passwords(made.client()))
        with pytest.raises(StoreError, match="user name is empty"):
            made(lambda: made.client().read("/x/"))
        with pytest.raises(StoreError, match="authentication failed"):
            made(lambda: made.client(user="root", password=Secret("wrong")).read("/x/"))
        secret = tmp_path / "secret"
        secret.write_text("secret\n")
        client = made.client(user="root", password_file=str(secret))
        made(lambda: client.put("/x/a", b"1"))
        client._transport._token = "stale.1"  # as after etcd's own restart, or the token's end
        assert made(lambda: client.read("/x/"))[0][0].value == b"1"
        heard = made(lambda: next(iter(client.watch("/x/", 1))))
        assert heard is not None
    finally:
        made.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
def test_certificates_both_ways(tmp_path: Path) -> None:
    at = certificates(tmp_path, "127.0.0.1")
    options = ("--cert-file", at["server.pem"], "--key-file", at["server.key"])
    made = Lab(tmp_path, f"{PREFIX}{os.getpid()}-t", *options, "--client-cert-auth", "--trusted-ca-file", at["ca.pem"])
    try:
        good = made.client(ca_file=at["ca.pem"], cert_file=at["node.pem"], key_file=at["node.key"])
        made(lambda: good.put("/x", b"1"))
        assert made(lambda: good.read("/x"))[0][0].value == b"1"
        with pytest.raises(StoreError):
            made(lambda: made.client(ca_file=at["ca.pem"]).read("/x"))
        with pytest.raises(StoreError, match=r"(?i)certificate"):
            made(lambda: made.client(cert_file=at["node.pem"], key_file=at["node.key"]).read("/x"))
        with pytest.raises(StoreError, match="certificates for etcd"):
            made(lambda: made.client(ca_file="/nonexistent").read("/x"))
    finally:
        made.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
def test_renewed_certificates_are_read_again(tmp_path: Path) -> None:
    """Swapped by a symbolic link, as in a Kubernetes volume; a half of a new pair leaves the last good one in use."""
    old, new = tmp_path / "old", tmp_path / "new"
    for directory in (old, new):
        directory.mkdir()
        certificates(directory, "127.0.0.1")
    current = tmp_path / "current"
    current.symlink_to(old)
    noted: dict[str, str] = {}
    served = {"--cert-file": "server.pem", "--key-file": "server.key", "--trusted-ca-file": "ca.pem"}
    options = [word for option, name in served.items() for word in (option, str(current / name))]
    made = Lab(tmp_path, f"{PREFIX}{os.getpid()}-r", *options, "--client-cert-auth")
    try:
        files = {"ca_file": "ca.pem", "cert_file": "node.pem", "key_file": "node.key"}
        where = settings.Etcd(endpoints=(made.server.url,), **{k: str(current / name) for k, name in files.items()})
        client = EtcdClient(where, noted.__setitem__)
        made(lambda: client.put("/x", b"1"))

        swap(current, new)
        made.server.end()
        made.server.start()
        made(lambda: client.put("/x", b"2"))
        assert noted == {"store-certificates": ""}

        key = (new / "node.key").read_bytes()
        (new / "node.key").write_bytes((old / "node.key").read_bytes())
        made(lambda: client.put("/x", b"3"))  # each call is a new thread, so a new connection
        assert "node.key" in noted["store-certificates"]
        (new / "node.key").unlink()
        made(lambda: client.check("/x"))
        assert "No such file" in noted["store-certificates"]
        (new / "node.key").write_bytes(key)
        made(lambda: client.check("/x"))
        assert noted == {"store-certificates": ""}
    finally:
        made.close()


def swap(link: Path, target: Path) -> None:
    fresh = link.with_name("fresh")
    fresh.symlink_to(target)
    fresh.replace(link)


class Members:
    """An etcd of three members, and the watch of a client on the first of them."""

    def __init__(self, directory: Path, name: str) -> None:
        self.name = name
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        self.servers = three_members(directory, name, ("127.0.0.1", "127.0.0.2", "127.0.0.3"))
        self.client = EtcdClient(settings.Etcd(endpoints=tuple(server.url for server in self.servers)))

    def __call__(self, work: Callable[[], T]) -> T:
        return inside(f"/run/netns/{self.name}", work)

    def seconds_until_the_watch_ends(self, fault: Callable[[], None]) -> float:
        """Watch, cause the fault, check the endpoint once a second; how long it takes until the watch raises."""
        watching = threading.Event()
        ended = threading.Event()

        def watch() -> None:
            try:
                for _ in self.client.watch("/w/", 1):
                    watching.set()
            except Unreachable:
                ended.set()

        threading.Thread(target=lambda: self(watch), daemon=True).start()
        assert watching.wait(10)
        fault()
        began = time.monotonic()
        while not ended.wait(0.5) and time.monotonic() - began < 20:
            self(lambda: self.client.check("/w/"))
        return time.monotonic() - began

    def nft(self, text: str) -> None:
        run("ip", "netns", "exec", self.name, "nft", text)

    def close(self) -> None:
        for server in self.servers:
            server.end(9)
        run("ip", "netns", "delete", self.name, check=False)


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Members]:
    made = Members(tmp_path_factory.mktemp("members"), f"{PREFIX}{os.getpid()}-m")
    yield made
    made.close()


def test_a_member_that_is_cut_off_from_the_others_ends_the_watch(members: Members) -> None:
    """It serves what it has, and hears of no change."""
    members(lambda: members.client.put("/w/a", b"1"))
    text = "table inet cut { chain out { type filter hook output priority 0; ip daddr 127.0.0.1 tcp dport 2380 drop; "
    text += "ip saddr 127.0.0.1 tcp sport 2380 drop; ip daddr { 127.0.0.2, 127.0.0.3 } tcp dport 2380 drop; "
    text += "ip saddr { 127.0.0.2, 127.0.0.3 } tcp sport 2380 ip daddr 127.0.0.1 drop; }; }"
    assert members.seconds_until_the_watch_ends(lambda: members.nft(text)) < 8
    members.nft("delete table inet cut")


def test_a_member_that_hangs_ends_the_watch_and_no_write_waits_long(members: Members) -> None:
    members(lambda: members.client.put("/w/a", b"2"))
    at = next(server for server in members.servers if server.url == members.client.endpoint)
    assert members.seconds_until_the_watch_ends(lambda: at.send(signal.SIGSTOP)) < 6
    began = time.monotonic()
    members(lambda: members.client.put("/w/a", b"3"))
    assert time.monotonic() - began < 6
    at.send(signal.SIGCONT)


def html(connection: socket.socket, body: bytes, head: bytes) -> None:
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 " + head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    connection.close()


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        (b"200 OK\r\nContent-Type: text/html", b"<html>Welcome</html>", "HTTP 200 with text/html.*Welcome"),
        (b"302 Found\r\nLocation: https://login.example/", b"", "HTTP 302.*which leads to https://login.example/"),
        (b"200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip", b"\x1f\x8b\x08", "encoded as gzip"),
        (b"200 OK\r\nContent-Type: application/json", b'{"status":"ok"}', "not as etcd: KeyError: 'header'"),
        (b"200 OK\r\nContent-Type: application/json", b"[]", "not as etcd"),
        (b"403 Forbidden\r\nContent-Type: application/json", b'{"kind":"Status","code":403}', "HTTP 403 with"),
    ],
    ids=["html", "redirect", "gzip", "other-json", "a-list", "another-api"],
)
def test_what_is_not_etcd_is_named(head: bytes, body: bytes, expected: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=lambda: html(server.accept()[0], body, head), daemon=True).start()
        with pytest.raises(WrongServer, match=f"127.0.0.1:{server.getsockname()[1]}: .*{expected}"):
            EtcdClient(settings.Etcd(endpoints=(url,))).read("/x/")


def test_an_etcd_without_its_gateway_is_named(tmp_path: Path) -> None:
    made = Lab(tmp_path, f"{PREFIX}{os.getpid()}-g", "--enable-grpc-gateway=false")
    try:
        with pytest.raises(WrongServer, match=r"127\.0\.0\.1:2379: .* HTTP 404 with text/plain.*page not found"):
            made(lambda: made.client().read("/x/"))
    finally:
        made.close()


def test_the_namespaces_are_gone_afterwards() -> None:
    wait_for(lambda: not list(Path("/run/netns").glob(f"{PREFIX}{os.getpid()}-[utrg]")), "the namespaces")
