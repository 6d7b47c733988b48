"""A daemon in a namespace with containers of several services and networks, and questions that they ask."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.query
import dns.rdatatype
import dns.reversename
import pytest

from cni.overlay import wire
from tests.kernel import toolnode
from tests.kernel.toolnode import Node
from tests.mesh.fleet import Agent

SERVER4, SERVER6 = "10.200.0.1", "fd00:200::1"
ZONE = "zlayer.zlayer.local"


class Names(Node):
    """A node whose containers ask its DNS server."""

    def exchange(self, box: str, message: bytes, tcp: bool = False, server: str = SERVER4, seconds: float = 2) -> bytes:
        """The answer to a message that a container sends. Raises TimeoutError."""
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        kind = socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM
        with self.space_of(box).inside(lambda: socket.socket(family, kind)) as sock:
            sock.settimeout(seconds)
            sock.connect((server, 53))
            if not tcp:
                sock.send(message)
                return sock.recv(65535)
            sock.sendall(len(message).to_bytes(2, "big") + message)
            stream = sock.makefile("rb")
            return stream.read(int.from_bytes(stream.read(2), "big"))

    def query(self, box: str, name: str, kind: str = "A", **how: Any) -> dns.message.Message:
        """The answer to a question, read by dnspython."""
        keys = ("use_edns", "payload", "want_dnssec")
        question = dns.message.make_query(name, kind, **{key: how.pop(key) for key in keys if key in how})
        answer = dns.message.from_wire(self.exchange(box, question.to_wire(), **how))
        assert question.is_response(answer), answer
        return answer

    def addresses(self, box: str, name: str, kind: str = "A", **how: Any) -> set[str]:
        """The data of the records of an answer."""
        return {data.to_text() for rrset in self.query(box, name, kind, **how).answer for data in rrset}

    def code(self, box: str, name: str, kind: str = "A", **how: Any) -> str:
        """The answer's code as a word."""
        return dns.rcode.to_text(self.query(box, name, kind, **how).rcode())

    def call(self, verb: str, name: str, space: toolnode.Space, service: str, **conf: Any) -> dict[str, Any]:
        """A verb of CNI's for a container without a pod's name; its result."""
        document: dict[str, Any] = {"cniVersion": "1.0.0", "name": "net", "type": "zlayer-cni", "service": service}
        document |= {"runDir": self.run_dir, "dataDir": str(self.dir / "data"), "autostart": False, **conf}
        call = {"CNI_COMMAND": verb, "CNI_CONTAINERID": name, "CNI_NETNS": space.path, "CNI_IFNAME": "eth0"}
        call |= {"CNI_PATH": "/opt/cni/bin", "CNI_ARGS": conf.pop("args", "")}
        with self.program(env=call, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            out, _ = process.communicate(json.dumps(document).encode(), timeout=60)
        assert process.returncode == 0, out
        return json.loads(out) if out else {}

    def attach(self, name: str, space: toolnode.Space, service: str, **conf: Any) -> None:
        """A container without a pod's name."""
        self.boxes[name] = space
        self.results[name] = self.call("ADD", name, space, service, **conf)

    def detach(self, name: str, service: str, **conf: Any) -> None:
        self.call("DEL", name, self.boxes[name], service, **conf)

    def restart(self, number: int = signal.SIGTERM) -> None:
        """End the daemon by a signal, and start another."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(60)
        self.start()

    def register(self, name: str, *addresses: str) -> None:
        """Register a name, as a ZLayer agent does."""
        agent = Agent(str(self.dir / "agents.sock"))
        for address in addresses:
            agent.ok(wire.RegisterDns(name, address))
        agent.close()

    def problem(self, code: str) -> str:
        """The text of a problem; "" if the node does not have it."""
        found = [each["text"] for each in self.ask("status")["problem_details"] if each["code"] == code]
        return found[0] if found else ""

    def full(self, name: str) -> str:
        return f"{name}.{ZONE}."


@contextlib.contextmanager
def running(
    directory: Path, settings: str = "", before: Callable[[toolnode.Space], object] = lambda _: None
) -> Iterator[tuple[Names, Callable[[], toolnode.Space]]]:
    """A node that serves, and what makes namespaces. `settings`: further lines of the YAML; `before`: is called with
    the node's namespace before the daemon starts."""
    with toolnode.spaces() as make:
        host, outside = make(), make()
        toolnode.uplink(host, outside)
        before(host)
        node = Names(directory, host, outside)
        node.settings += settings
        node.start()
        try:
            yield node, make
        finally:
            node.close()


CONTAINERS = (
    ("web-1", "web", None),
    ("web-2", "web", None),
    ("db-1", "db", None),
    ("vault-1", "vault", "closed"),
    ("keys-1", "keys", "closed"),
    ("other-1", "other", "elsewhere"),
)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Names]:
    """Containers on the flat mesh and in two isolation networks."""
    with running(tmp_path_factory.mktemp("dns")) as (made, make):
        for name, service, network in CONTAINERS:
            made.add(name, make(), service, network)
        yield made


reverse = functools.partial(dns.reversename.from_address)
