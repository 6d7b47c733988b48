"""What the C libraries make of it, with the resolv.conf of a result: glibc and musl, with a search domain."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dns.conftest import Names, running

ASK = r"""
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
    int code = getaddrinfo(argv[1], 0, &hints, &found);
    char text[64];
    if (code) return code < 0 ? -code : code;
    for (each = found; each; each = each->ai_next) {
        void *at = each->ai_family == AF_INET6 ? (void *)&((struct sockaddr_in6 *)each->ai_addr)->sin6_addr
                                               : (void *)&((struct sockaddr_in *)each->ai_addr)->sin_addr;
        puts(inet_ntop(each->ai_family, at, text, sizeof text));
    }
    return 0;
}
"""


@pytest.fixture(scope="module", params=["gcc", "musl-gcc"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that asks its C library for addresses."""
    if shutil.which(request.param) is None:
        pytest.skip(f"no {request.param} here")
    directory = tmp_path_factory.mktemp(request.param)
    (directory / "ask.c").write_text(ASK)
    subprocess.run([request.param, "-o", directory / "ask", directory / "ask.c"], check=True)
    return directory / "ask"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    with running(tmp_path_factory.mktemp("clients"), "dns: {upstreams: []}\n") as (node, make):
        node.attach("asker", make(), "asker")
        node.attach("one", make(), "web", runtimeConfig={"aliases": ["front"]})
        node.attach("two", make(), "web")
        node.attach("shut", make(), "vault", isolationNetwork="closed")
        node.register("crowd", *(f"198.51.100.{number + 1}" for number in range(200)))
        yield node


def run(node: Names, box: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command in a container, with the resolv.conf of its result."""
    dns = node.results[box]["dns"]
    lines = [f"nameserver {server}" for server in dns["nameservers"]] + [f"search {' '.join(dns['search'])}"]
    (node.dir / "resolv.conf").write_text("\n".join(lines) + "\n")
    (node.dir / "nsswitch.conf").write_text("hosts: dns\n")
    mounts = "".join(f"mount --bind {node.dir}/{name} /etc/{name} && " for name in ("resolv.conf", "nsswitch.conf"))
    command = ["nsenter", f"--net={node.space_of(box).path}", "unshare", "-m", "sh", "-c", f'{mounts} exec "$@"', "sh"]
    return subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=30, check=False)


def test_a_bare_name_has_all_addresses_of_both_families(here: Names, program: Path):
    wanted = {here.address(name, version) for name in ("one", "two") for version in (4, 6)}
    for name in ("web", f"web.{here.results['asker']['dns']['search'][0]}"):
        done = run(here, "asker", program, name)
        assert set(done.stdout.split()) == wanted, done


def test_a_name_that_is_hidden_does_not_exist(here: Names, program: Path):
    assert run(here, "asker", program, "vault").returncode
    assert run(here, "shut", program, "web").returncode


def test_an_answer_of_200_addresses_comes_whole(here: Names, program: Path):
    found = set(run(here, "asker", program, "crowd").stdout.split())
    # musl before 1.2.4 does not ask by TCP, and takes what has come by UDP.
    assert len(found) == 200 or ("musl" in str(program) and len(found) >= 28)


def test_getent(here: Names):
    done = run(here, "asker", "getent", "ahostsv4", "web")
    assert {line.split()[0] for line in done.stdout.splitlines()} == {here.address("one"), here.address("two")}
    name = run(here, "asker", "getent", "hosts", here.address("one")).stdout.split()
    assert name == [here.address("one"), f"one.web.{here.results['asker']['dns']['search'][0]}"]


def test_an_alias_is_found_by_its_own_service(here: Names, program: Path):
    assert here.address("one") in run(here, "two", program, "front").stdout.split()
    assert run(here, "asker", program, "front").returncode
