"""libcni's own command line, as a script at a node's shell would use it."""

from __future__ import annotations

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from .machine import Failed, Machine, told
from .network import Network

DIRECTORY = "/run/zlt/cnitool.d"


class Cnitool:
    """cnitool in a scratch machine, which finds the given conflists."""

    def __init__(self, machine: Machine, program: Path, *conflists: dict[str, Any]) -> None:
        self.machine = machine
        self._count = 0
        machine.copy(program, "/run/zlt/cnitool")
        machine.must("chmod", "755", "/run/zlt/cnitool")
        for number, conflist in enumerate(conflists):
            machine.write(f"{DIRECTORY}/{number}.conflist", json.dumps(conflist))

    def run(
        self,
        verb: str,
        network: str,
        netns: str = "/run/netns/none",
        *,
        args: str = "",
        cap: dict[str, Any] | None = None,
        ifname: str = "",
    ) -> CompletedProcess[str]:
        """One call; `args` is CNI_ARGS, `cap` CAP_ARGS."""
        env = {"CNI_PATH": "/run/zlt/bin", "NETCONFPATH": DIRECTORY}
        given = {"CNI_ARGS": args, "CAP_ARGS": json.dumps(cap) if cap else "", "CNI_IFNAME": ifname}
        env |= {name: value for name, value in given.items() if value}
        return self.machine.run("/run/zlt/cnitool", verb, network, netns, env=env)

    def must(self, verb: str, network: str, netns: str = "/run/netns/none", **given: Any) -> dict[str, Any]:
        """The result of a call that has to succeed (empty but for add)."""
        done = self.run(verb, network, netns, **given)
        if done.returncode:
            raise Failed(told(done))
        return json.loads(done.stdout or "{}")  # type: ignore[no-any-return]

    def namespace(self, name: str) -> Network:
        """A fresh network namespace, which stands for a container.

        `name` gets a number: cnitool makes the container's id of the path, and every test wants its own containers.
        """
        self._count += 1
        return self.namespace_at(f"/run/netns/{name}-{self._count}")

    def namespace_at(self, path: str) -> Network:
        """A fresh network namespace bound to this path below /run/netns."""
        self.machine.must("ip", "netns", "add", Path(path).name)
        return Network(self.machine, path)
