"""`zlayer-cni connectivity accept`: take part in other nodes' tests, for ten minutes. With `connectivity: allow` the
daemon listens, and starts this command when a test comes.

It listens on one port of the node address, and answers a node of the mesh only: the source must be the first address of
an allowed network of a peer whose key is on this node's device, so no container can ask. WireGuard has authenticated
it, and the fence drops such a source from any other device.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import sys
import threading
import time
from ipaddress import ip_address, ip_network

from cni import answers
from cni.cli import ask
from cni.cli.connectivity.boxes import SCARCE, Box, Boxes, Place
from cni.cli.connectivity.far import CONTROL, LONGEST, read_line
from cni.cli.connectivity.probes import Responder
from cni.cli.plugin_call import CallFailed
from cni.host.program import inherited_listeners
from cni.host.short_thread import inside

IDLE = 30.0  # seconds without a test after which the command ends that the daemon has started
AT_ONCE = 4  # tests at a time: two namespaces each
_WORD = re.compile(r"[a-z0-9-]{1,40}")


def run(run_dir: str, seconds: float) -> int:
    """Take part for `seconds`. Exit code 0. Raises NoDaemon, Refused, OSError if the port is taken."""
    status = ask.ask(run_dir, "status", answers.Status)
    node = ask.ask(run_dir, "graph", answers.Graph).node
    place = Place(run_dir, status.data_dir)
    inherited = inherited_listeners()
    listeners = inherited or [_listener(address) for address in node.addresses]
    room = threading.BoundedSemaphore(AT_ONCE)
    if not inherited:
        sys.stderr.write(f"tests of other nodes are accepted at {', '.join(node.addresses)}, for {seconds:g} s\n")
    end = time.monotonic() + seconds
    running: list[threading.Thread] = []
    try:
        while (left := end - time.monotonic()) > 0:
            ready = select.select(listeners, [], [], min(left, IDLE))[0]
            if inherited and not ready and not any(thread.is_alive() for thread in running):
                break
            for listener in ready:
                try:
                    client, (source, *_) = listener.accept()
                except BlockingIOError:
                    continue
                thread = threading.Thread(target=_serve, args=(client, source, place, room))
                thread.start()
                running = [each for each in running if each.is_alive()] + [thread]
    finally:
        for listener in listeners:
            listener.close()
        for thread in running:
            thread.join(LONGEST)
    return 0


def _listener(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((address, CONTROL))
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    return sock


def _serve(client: socket.socket, source: str, place: Place, room: threading.BoundedSemaphore) -> None:
    with client:
        client.settimeout(10)
        with contextlib.suppress(OSError):
            began = time.monotonic()
            try:
                asked = _request(client)
                peer = _peer_of(place.run_dir, source)
                check_room(place.run_dir)
            except (ask.NoDaemon, ask.Refused, ValueError) as error:
                client.sendall(_line({"error": str(error)}))
                return
            if not room.acquire(blocking=False):
                client.sendall(_line({"error": f"{AT_ONCE} tests run already"}))
                return
            try:
                sys.stderr.write(f"test of {peer} ({source})\n")
                _take_part(client, place, asked, began)
            finally:
                room.release()


def _request(client: socket.socket) -> tuple[str, str]:
    """The tag and the isolation network of the test. Raises ValueError, OSError."""
    asked = json.loads(read_line(client))
    words = (asked.get("tag"), asked.get("network")) if isinstance(asked, dict) else (None, None)
    if not all(isinstance(word, str) and _WORD.fullmatch(word) for word in words):
        raise ValueError("the request is not one of this version")
    return str(words[0]), str(words[1])


def check_room(run_dir: str) -> None:
    """Raises ValueError while addresses are scarce: the namespaces of a test would take them from containers."""
    status = ask.ask(run_dir, "status", answers.Status)
    if any(problem.code == SCARCE for problem in status.problem_details or ()):
        raise ValueError("addresses are scarce on it")


def _peer_of(run_dir: str, source: str) -> str:
    """The name of the peer whose node address the source is. Raises ValueError if it is none."""
    peers = ask.ask(run_dir, "peers", list[answers.Peer])
    name = node_of(peers, source)
    if name is None:
        raise ValueError(f"{source} is the node address of no peer whose key this node has")
    return name


def node_of(peers: list[answers.Peer], source: str) -> str | None:
    """The peer on the node's own device of which `source` is the node address: the first of an allowed network."""
    address = ip_address(source)
    for peer in peers:
        if peer.service is None and peer.on_device:
            for text in peer.allowed_ips:
                network = ip_network(text, strict=False)
                first = network[0] if network.num_addresses == 1 else network[1]
                if address == first:
                    return peer.name or peer.public_key
    return None


def _take_part(client: socket.socket, place: Place, asked: tuple[str, str], began: float) -> None:
    tag, network = asked
    scratch = Boxes(place, f"{tag}-far")
    responders: list[Responder] = []
    try:
        made = [scratch.add("flat", "ct-far", None), scratch.add("isolated", "ct-far", network)]
        responders += [respond(box) for box in made]
        described = [
            {"name": box.name, "network": box.network, "addresses": box.addresses, "mtu": box.mtu} for box in made
        ]
        client.sendall(_line({"boxes": described, "time": time.time(), "took": time.monotonic() - began}))
        client.settimeout(LONGEST)
        client.recv(1)  # the other end has closed, or the time is up
    except (CallFailed, OSError) as error:
        client.sendall(_line({"error": f"it cannot attach a namespace: {error}"}))
    finally:
        for responder in responders:
            responder.close()
        scratch.close()


def respond(box: Box) -> Responder:
    """A responder at every address of the namespace. Raises OSError."""
    return Responder(box.addresses, lambda work: inside(box.fd, work))


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"
