"""A scratch machine: own network, mounts and processes, in which a real runtime may do as it likes.

`Machine` starts scratch_init.py in fresh namespaces and runs commands in them. Nothing of the host's network, /run
or /var/lib is reachable by accident, and closing one pipe ends everything, also when the test run is killed. The one
thing a container runtime writes outside is its cgroups; they are named after the test run and swept at start and end.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "zlt-runtimes-"
NODE = "192.0.2.1"
OUTSIDE = "192.0.2.2"
FAR_OUTSIDE = "198.51.100.7"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

# Mounted namespaces but those below /run/netns, which the runtime itself mounts and lazily unmounts.
HELD_ELSEWHERE = '$3 == "nsfs" && $2 !~ "^/run/netns/" { print $2 }'

T = TypeVar("T")


class PluginUnusable(AssertionError):
    """The plugin under test could not be asked what it holds."""


class Failed(AssertionError):
    """A command in the machine ended badly; the message holds the call and all it said."""


def wait_for(what: str, look: Callable[[], T | None], seconds: float = 60) -> T:
    """What `look` returns once it is neither None nor False; Failed, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise Failed(f"not seen within {seconds} s: {what}")
        time.sleep(0.05)


class Machine:
    """One scratch machine, which finds `plugin`, the CNI plugin under test, in its plugin directories."""

    def __init__(self, plugin: Path) -> None:
        self.plugin = plugin
        self.cgroup = f"{PREFIX}{os.getpid()}"
        self.daemon_seen = False  # whether the plugin's own daemon was ever up: from then on it has to answer
        self._init = subprocess.Popen(
            [
                "unshare",
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--propagation",
                "private",
                sys.executable,
                "-I",
                str(Path(__file__).with_name("scratch_init.py")),
                str(plugin.absolute()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
        )
        assert self._init.stdout is not None
        word, _, number = self._init.stdout.readline().strip().partition(" ")
        if word != "ready":
            self.close()
            raise Failed("the scratch machine did not start; what it said is on standard error")
        self._enter = ["nsenter", "-t", number, "-n", "-m", "-p", "--"]

    def close(self) -> None:
        """End the machine and all in it. Safe to repeat."""
        assert self._init.stdin is not None
        self._init.stdin.close()
        self._init.wait(60)
        sweep_cgroups([self.cgroup])

    def command(self, argv: Iterable[str | Path]) -> list[str]:
        """`argv` as the outside must start it to have it run inside."""
        return [*self._enter, *map(str, argv)]

    def run(
        self, *argv: str | Path, stdin: str = "", env: dict[str, str] | None = None, seconds: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return how it ended, whatever that is."""
        return subprocess.run(
            self.command(argv),
            input=stdin,
            capture_output=True,
            text=True,
            env=ENVIRONMENT | (env or {}),
            timeout=seconds,
            cwd="/",
            check=False,
        )

    def must(self, *argv: str | Path, stdin: str = "", env: dict[str, str] | None = None, seconds: float = 120) -> str:
        """The standard output of a command that has to succeed; Failed otherwise."""
        done = self.run(*argv, stdin=stdin, env=env, seconds=seconds)
        if done.returncode:
            raise Failed(told(done, env))
        return done.stdout

    def start(self, *argv: str | Path, log: Path) -> subprocess.Popen[str]:
        """Start a command inside, which ends with the machine; its output goes to `log`, outside."""
        with log.open("w") as out:
            return subprocess.Popen(
                self.command(argv),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=ENVIRONMENT,
                cwd="/",
                text=True,
            )

    def write(self, path: str, text: str, mode: str = "644") -> None:
        """Put a file where only the machine sees it, whole or not at all."""
        self.must("mkdir", "-p", str(Path(path).parent))
        put = 'cat > "$0.new" && chmod "$1" "$0.new" && mv "$0.new" "$0"'
        self.must("sh", "-c", put, path, mode, stdin=text)

    def copy(self, source: Path, path: str) -> None:
        """Copy a file of the outside into the machine."""
        with source.open("rb") as file:
            done = subprocess.run(
                self.command(["sh", "-c", 'mkdir -p "${0%/*}" && cat > "$0"', path]), stdin=file, check=False
            )
        if done.returncode:
            raise Failed(f"could not copy {source} to {path}")

    def links(self) -> dict[str, dict[str, Any]]:
        """The machine's links by name, with their addresses, as `ip -json -details` shows them."""
        listed = json.loads(self.must("ip", "-json", "-details", "address", "show") or "[]")
        return {link["ifname"]: link for link in listed if link}

    def ports(self) -> set[str]:
        """The host ends of container interfaces: every veth of the machine but its uplink."""
        return {
            name
            for name, link in self.links().items()
            if link.get("linkinfo", {}).get("info_kind") == "veth" and name != "uplink"
        }

    def ports_become(self, expected: set[str]) -> None:
        """The container interfaces are, or soon become, exactly these: DEL need not wait for the kernel's work."""
        with suppress(Failed):
            wait_for("", lambda: self.ports() == expected, 20)
        found = self.ports()
        if found != expected:
            raise Failed(f"container interfaces of the machine: {sorted(found)}, expected {sorted(expected)}")

    def firewall(self) -> list[str]:
        """The lines of the nftables ruleset, sorted, without the values of counters."""
        text = self.must("nft", "--stateless", "list", "ruleset") if shutil.which("nft") else ""
        return sorted(line.strip() for line in text.splitlines() if line.strip())

    def state(self) -> dict[str, Any]:
        """What a container may leave behind on a machine; equal before and after means it left nothing.

        Without MAC addresses and flags, which change while a bridge has no port, and without counters.
        """
        listed = self.links()
        shell = "ip {0} route show table all | sed 's/ linkdown//'; ip {0} rule"
        return {
            "links": {
                name: (
                    link.get("linkinfo", {}).get("info_kind"),
                    link.get("master"),
                    link["mtu"],
                    sorted(a["local"] for a in link["addr_info"] if a.get("scope") != "link"),
                )
                for name, link in listed.items()
            },
            "routes": sorted(
                line
                for family in ("-4", "-6")
                for line in self.must("sh", "-c", shell.format(family)).splitlines()
                if "fe80:" not in line and "multicast" not in line and "ff00::/8" not in line
            ),
            "firewall": self.firewall(),
            "namespaces": sorted(self.must("ls", "/run/netns").split()),
            "cached results": self.cached_results(),
            "namespaces held elsewhere": self.must("awk", HELD_ELSEWHERE, "/proc/mounts").split(),
        }

    def settled(self) -> dict[str, Any]:
        """The state, once it stands still: the kernel removes links and namespaces asynchronously."""
        seen = [self.state()]

        def still() -> bool:
            time.sleep(0.3)
            seen.append(self.state())
            return len(seen) > 3 and all(each == seen[-1] for each in seen[-4:])

        wait_for("the machine stands still", still)
        return seen[-1]

    def settles_at(self, before: dict[str, Any], seconds: float = 20) -> None:
        """The state is, or soon becomes, `before` again; Failed, with the difference, otherwise."""
        with suppress(Failed):
            wait_for("", lambda: self.state() == before, seconds)
        after = self.state()
        changed = {key: {"before": before[key], "after": after[key]} for key in before if before[key] != after[key]}
        if changed:
            raise Failed(f"the machine is not as it was: {json.dumps(changed, indent=1)}")

    def processes(self, name: str) -> list[str]:
        """The numbers, in the machine, of all processes of this name."""
        look = 'cd /proc && for p in [0-9]*; do [ "$(cat $p/comm 2>/dev/null)" = "$0" ] && echo $p; done; true'
        return self.must("sh", "-c", look, name).split()

    def cached_results(self) -> list[str]:
        """libcni's cached results: one file an attachment."""
        return sorted(self.must("sh", "-c", "ls /var/lib/cni/results 2>/dev/null || true").split())


def told(done: subprocess.CompletedProcess[str], env: dict[str, str] | None = None) -> str:
    """A failed command as a person wants to read it: the call, its environment, its end, all it said."""
    call = " ".join(done.args[done.args.index("--") + 1 :] if "--" in done.args else done.args)
    extra = "".join(f"{name}={value!r} " for name, value in (env or {}).items())
    said = f"  stdout: {done.stdout!r}\n  stderr: {done.stderr!r}"
    return f"{extra}{call}\n  ended with {done.returncode}\n{said}"


def sweep_cgroups(names: Iterable[str]) -> None:
    """Remove the cgroups of these names in every hierarchy; their processes are gone or going."""
    hierarchies = [CGROUPS, *(d for d in CGROUPS.iterdir() if d.is_dir())] if CGROUPS.is_dir() else []
    for top in [h / name for name in names for h in hierarchies if (h / name).is_dir()]:
        for directory in [*sorted(top.rglob("*/"), key=lambda d: -len(d.parts)), top]:
            for _ in range(40):
                with suppress(FileNotFoundError):
                    try:
                        directory.rmdir()
                    except OSError as error:
                        if isinstance(error, FileNotFoundError):
                            raise
                        time.sleep(0.05)
                        continue
                break


def stale_cgroups() -> set[str]:
    """Names of cgroups left by test runs that are no more."""
    hierarchies = [CGROUPS, *(d for d in CGROUPS.iterdir() if d.is_dir())] if CGROUPS.is_dir() else []
    names = {d.name for h in hierarchies for d in h.glob(PREFIX + "*")}
    return {n for n in names if not Path("/proc", n.removeprefix(PREFIX)).exists()}
