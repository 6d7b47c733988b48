"""A plugin that is measured: its configuration, its calls as whole processes, and the processor time they take."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROUTED = "routed"
"""Ours without a bridge."""
VERBS = ("ADD", "CHECK", "STATUS", "DEL")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CNI_IFNAME": "eth0"}


@dataclass
class Contender:
    """One plugin with its configuration, and the seconds that its calls took, by verb."""

    name: str
    program: str
    conf: dict[str, object]
    path: str = "/usr/lib/cni"
    run_dir: Path | None = None
    """Our daemon's run directory; None for a plugin without a daemon."""
    times: dict[str, list[float]] = field(default_factory=lambda: {verb: [] for verb in VERBS})

    def call(self, verb: str, container: str, netns: str, previous: object = None, **conf: object) -> bytes:
        """One call; its stdout. Ends the program if the call fails."""
        begun = time.perf_counter()
        pid, out = self.start(verb, container, netns, previous, **conf)
        answer = finish(self, verb, pid, out)
        self.times[verb].append(time.perf_counter() - begun)
        return answer

    def start(self, verb: str, container: str, netns: str, previous: object = None, **conf: object) -> tuple[int, int]:
        """Start a call; returns its PID and the pipe of its stdout. Stdin is a pipe, as a runtime's."""
        document = {**self.conf, **conf} if previous is None else {**self.conf, **conf, "prevResult": previous}
        env = {
            **ENVIRONMENT,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container,
            "CNI_NETNS": netns,
            "CNI_PATH": self.path,
        }
        if verb == "STATUS":
            env = {**ENVIRONMENT, "CNI_COMMAND": verb, "CNI_PATH": self.path}
        source, sink = os.pipe()
        os.write(sink, json.dumps(document).encode())
        os.close(sink)
        reader, writer = os.pipe()
        actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, writer, 1)]
        try:
            return os.posix_spawn(self.program, [self.program], env, file_actions=actions), reader
        finally:
            os.close(source)
            os.close(writer)

    def forget(self) -> None:
        """Forget the times measured so far."""
        self.times = {verb: [] for verb in VERBS}

    def daemon(self) -> int:
        """The PID of our daemon."""
        assert self.run_dir is not None
        return int((self.run_dir / "overlayd.pid").read_text())

    def stop(self) -> None:
        """End our daemon, if one runs."""
        if self.run_dir is None:
            return
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            pid = self.daemon()
            for _ in range(400):
                os.kill(pid, 15)
                time.sleep(0.05)

    def processor(self) -> float:
        """Seconds of processor time: of ended calls and their children, and of our daemon."""
        used = sum(os.times()[2:4])
        if self.run_dir is not None:
            fields = Path(f"/proc/{self.daemon()}/stat").read_text().rpartition(")")[2].split()
            used += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return used


def finish(contender: Contender, verb: str, pid: int, out: int) -> bytes:
    """Wait for a call that `start` began; its stdout. Ends the program if the call fails."""
    with os.fdopen(out, "rb") as file:
        answer = file.read()
    _, status = os.waitpid(pid, 0)
    if status:
        sys.exit(f"bench: {contender.name} {verb} failed: {answer.decode()}")
    return answer


def reference_dir(chosen: Path | None) -> Path:
    """The directory of the reference plugins: the newest ones that tests/blackbox/reference.sh has built, else
    Debian's."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    for candidate in (chosen, cache / "zlayer-cni" / "reference", Path("/usr/lib/cni"), Path("/opt/cni/bin")):
        if candidate is not None and all((candidate / name).exists() for name in ("bridge", "host-local")):
            return candidate
    sys.exit("bench: no reference plugins here (Debian: apt-get install containernetworking-plugins)")


def contenders(reference: Path, run_dir: Path, scratch: Path) -> list[Contender]:
    """Ours, installed and as the single file, with one daemon: two in one network namespace would repair each other's
    tables. The reference, plain and with ipMasq. Ours without a bridge, with the same daemon."""
    ours = {"cniVersion": "1.1.0", "type": "zlayer-cni"}
    theirs = {"cniVersion": "1.0.0", "type": "bridge", "isGateway": True, "isDefaultGateway": True}
    plugins = []
    for name, program in (("installed", "zlayer-cni.d"), ("single file", "zlayer-cni")):
        place = run_dir / "ours"
        dirs = {"name": "ours", "runDir": str(place), "dataDir": str(scratch / "ours")}
        copied = scratch / f"program-{name[:1]}"  # the build may be repeated while this runs
        source = ROOT / "dist" / program
        if source.is_dir():
            shutil.copytree(source, copied, symlinks=True)
        else:
            shutil.copy(source, copied)
        file = copied / "zlayer-cni" if copied.is_dir() else copied
        plugins.append(Contender(name, str(file), {**ours, **dirs}, run_dir=place))
    for name, masquerade, subnet in (("bridge", False, "10.77.0.0/16"), ("bridge ipMasq", True, "10.78.0.0/16")):
        ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": str(scratch / subnet[:5])}
        conf = {**theirs, "name": f"ref{int(masquerade)}", "bridge": f"ref{int(masquerade)}", "ipMasq": masquerade}
        plugins.append(Contender(name, str(reference / "bridge"), {**conf, "ipam": ipam}, str(reference)))
    routed = {**plugins[0].conf, "name": ROUTED, "attach": "routed"}
    return [*plugins, Contender(ROUTED, plugins[0].program, routed, run_dir=plugins[0].run_dir)]


def firewall(reference: Path) -> Contender:
    """The reference's `firewall`, to be chained behind the plain `bridge`."""
    conf = {"cniVersion": "1.0.0", "type": "firewall", "name": "ref0", "backend": "iptables"}
    return Contender("firewall", str(reference / "firewall"), conf, str(reference))


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def ratio(ours: list[float], theirs: list[float]) -> float:
    """The ratio of the medians."""
    return statistics.median(ours) / statistics.median(theirs)


@contextlib.contextmanager
def namespaces(prefix: str, count: int) -> Iterator[list[str]]:
    """Network namespaces `<prefix>0` ...; removed afterwards."""
    from benchmark import netns

    names = [f"{prefix}{number}" for number in range(count)]
    for name in names:
        netns.add(name)
    try:
        yield names
    finally:
        for name in names:
            netns.delete(name)
