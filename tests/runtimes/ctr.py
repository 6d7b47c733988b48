"""`ctr run --cni`: containers with a root file system made of busybox."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE, CompletedProcess, Popen, TimeoutExpired

from .machine import ENVIRONMENT, Failed, Machine, told, wait_for
from .network import Network
from .pause import APPLETS, BUSYBOX

ROOT = "/run/zlt/root"
# Run in ROOT with the applets as arguments.
MAKE_ROOT = """\
cd "$0" && chmod 755 bin/busybox && mkdir -p etc proc sys dev tmp run &&
for applet; do ln -s busybox "bin/$applet"; done
"""


class Ctr:
    """`ctr run --cni` with a root file system made of busybox."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.words = ["ctr", "-n", machine.cgroup]
        machine.copy(BUSYBOX, f"{ROOT}/bin/busybox")
        machine.must("sh", "-c", MAKE_ROOT, ROOT, *APPLETS)

    def _run_words(self, name: str, command: tuple[str, ...], options: tuple[str, ...] = ()) -> list[str]:
        return [*self.words, "run", "--rm", "--cni", *options, "--rootfs", ROOT, name, *command]

    def run(self, name: str, *command: str, seconds: float = 60) -> CompletedProcess[str]:
        """A container that runs `command` to its end, and is removed."""
        return self.machine.run(*self._run_words(name, command), seconds=seconds)

    @contextmanager
    def running(self, name: str, *options: str) -> Iterator[Container]:
        """A container that sleeps while the block runs; then it is killed and `ctr run --rm` calls DEL. `options`: of
        `ctr run`."""
        words = self.machine.command(self._run_words(name, ("/bin/sleep", "600"), options))
        process = Popen(words, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=ENVIRONMENT, cwd="/", text=True)
        try:
            yield Container(self, name, self._first_process(name, process))
        finally:
            self.machine.run(*self.words, "task", "kill", "-s", "KILL", name)
            try:
                process.communicate(timeout=90)
            except TimeoutExpired:
                process.kill()
                raise Failed(f"ctr run {name} did not end after its container was killed") from None

    def _first_process(self, name: str, process: Popen[str]) -> str:
        def look() -> str | None:
            if process.poll() is not None:
                out, err = process.communicate()
                raise Failed(told(CompletedProcess(process.args, process.returncode, out, err)))
            for line in self.machine.must(*self.words, "task", "ls").splitlines():
                words = line.split()
                if words[0] == name and words[2] == "RUNNING":
                    return words[1]
            return None

        return wait_for(f"container {name} runs", look)


@dataclass
class Container:
    """A running container; `process` is the machine's number of its first process."""

    ctr: Ctr
    name: str
    process: str

    def run(self, *command: str) -> CompletedProcess[str]:
        """Run a command in the container, by the runtime."""
        words = [*self.ctr.words, "task", "exec", "--exec-id", uuid.uuid4().hex, self.name]
        return self.ctr.machine.run(*words, *command)

    @property
    def network(self) -> Network:
        """Its network, read from outside the container."""
        return Network(self.ctr.machine, f"/proc/{self.process}/ns/net")
