"""A container runtime's part, as far as a plugin sees it: the environment, a network configuration, a namespace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cni.host.netns_holder import Process
from cni.proc import alive_since
from tests.interop.daemons import ROOT, Daemon

DIST = Path(os.environ.get("ZLAYER_DIST", ROOT / "dist"))
PROGRAMS = {
    "source": [sys.executable, "-m", "cni"],
    "unpacked": [str(DIST / "zlayer-cni.d" / "zlayer-cni")],
    "single": [str(DIST / "zlayer-cni")],
}
"""The plugin in its three forms."""


@dataclass(frozen=True)
class Answer:
    """What the plugin said, and how long it took."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.stdout)

    @property
    def error(self) -> int:
        """The error's code; 0 for none."""
        return 0 if self.code == 0 else self.json["code"]


@dataclass
class Runtime:
    """Calls one form of the plugin in front of one daemon."""

    daemon: Daemon
    program: list[str]
    run_dir: Path = field(init=False)
    results: dict[tuple[str, str, str], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_dir = self.daemon.machine.home / "run"

    def network(self, name: str) -> str:
        """The network's name, which carries the machine's, so that its holders can be told from other tests'."""
        return f"{self.daemon.machine.home.name}-{name}"

    def call(self, command: str, container: str = "", netns: str = "", ifname: str = "net0", **conf: Any) -> Answer:
        """One call. `network` in `conf` names the network (default "net"); the rest goes into the configuration."""
        name = self.network(conf.pop("network", "net"))
        key = (name, container, ifname)
        document = self._document(name)
        if command == "CHECK" and key in self.results:
            document["prevResult"] = self.results[key]
        started = time.monotonic()
        done = self.daemon.machine.run(
            *self.program,
            check=False,
            input=json.dumps(document | conf),
            env=self._environment(command, container, netns, ifname),
        )
        answer = Answer(done.returncode, done.stdout, done.stderr, time.monotonic() - started)
        if command == "ADD" and answer.code == 0:
            self.results[key] = answer.json
        return answer

    def start(self, command: str, container: str, netns: str, **conf: Any) -> subprocess.Popen[str]:
        """A call that is not waited for, for net0."""
        document = self._document(self.network("net"))
        process = subprocess.Popen(
            self.daemon.machine.inside(*self.program),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment(command, container, netns, "net0"),
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(document | conf))
        process.stdin.close()
        process.stdin = None  # or `communicate` would write to it
        return process

    def _document(self, name: str) -> dict[str, Any]:
        return {
            "cniVersion": "1.1.0",
            "name": name,
            "type": "zlayer-cni",
            "runDir": str(self.run_dir),
            "dataDir": str(self.daemon.machine.home / "data"),
            "overlayd": {"socket": self.daemon.socket},
        }

    def _environment(self, command: str, container: str, netns: str, ifname: str) -> dict[str, str]:
        found = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        found |= {"PYTHONPATH": str(ROOT), "CNI_COMMAND": command, "CNI_PATH": "/opt/cni/bin"}
        if container:
            found |= {"CNI_CONTAINERID": container, "CNI_NETNS": netns, "CNI_IFNAME": ifname}
        return found

    def add(self, container: str, netns: str, ifname: str = "net0", **conf: Any) -> dict[str, Any]:
        """An ADD that must succeed; its result."""
        answer = self.call("ADD", container, netns, ifname, **conf)
        assert answer.code == 0, answer.stdout + answer.stderr
        return answer.json

    def delete(self, container: str, netns: str = "", ifname: str = "net0", **conf: Any) -> Answer:
        """A DEL, which must succeed."""
        answer = self.call("DEL", container, netns, ifname, **conf)
        assert (answer.code, answer.stdout) == (0, ""), answer.stdout + answer.stderr
        return answer

    def address(self, result: dict[str, Any]) -> str:
        """The address in a result, without its prefix."""
        return result["ips"][0]["address"].partition("/")[0]

    def holders(self) -> list[Process]:
        """The holder processes of this machine's attachments."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                title = (path / "cmdline").read_text()
            except (OSError, UnicodeDecodeError):
                continue
            if title.startswith("zlayer-cni: holds ") and self.daemon.machine.home.name in title:
                found.append(Process(int(path.name), alive_since(int(path.name))))
        return [each for each in found if each.start_time]

    def records(self) -> list[dict[str, Any]]:
        """The attachments the plugin remembers."""
        return [json.loads(path.read_text()) for path in sorted((self.run_dir / "foreign").glob("*.json"))]

    def owed(self) -> list[str]:
        """What the daemon has still to be told."""
        return [path.name for path in (self.run_dir / "foreign" / "owed").glob("*.json")]

    def veths(self) -> list[str]:
        """The host ends on the machine."""
        return sorted(name for name in self.daemon.machine.links() if name.startswith("veth-"))

    def inside(self, netns: str) -> dict[str, dict[str, Any]]:
        """A namespace's interfaces but for lo."""
        links = self.daemon.machine.ip("-details", "address", netns=netns)
        return {link["ifname"]: link for link in links if link["ifname"] != "lo"}

    def pings(self, netns: str, address: str, *options: str) -> bool:
        """Whether a namespace reaches an address."""
        command = ["nsenter", f"--net={netns}", "ping", "-c1", "-W2", "-q", *options, address]
        return self.daemon.machine.run(*command, check=False).returncode == 0

    def nothing_left(self) -> None:
        """No host end, no holder, no record, no debt."""
        left = (self.veths(), self.holders(), self.records(), self.owed())
        assert left == ([], [], [], []), left
