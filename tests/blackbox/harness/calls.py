"""One call of a plugin, as a runtime makes it, and what came back.

The rules that hold for every answer (conformance P1 to P4, and exactly one JSON document) are checked in
`Answer.ok` and `Answer.failed`, so that every test of the suite is also a test of them.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# What a runtime was seen to give (conformance 14): no HOME, no TMPDIR.
BARE_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

PATIENCE = 90.0  # seconds; more than any verb may take, and what a busy machine adds


@dataclass(frozen=True)
class Answer:
    """What one call gave back. `took` is in seconds."""

    verb: str
    rc: int
    out: bytes
    err: str
    took: float

    def __str__(self) -> str:
        return f"{self.verb}: rc {self.rc}\n  stdout: {self.out[:2000]!r}\n  stderr: {self.err[-2000:]}"

    def document(self) -> dict[str, Any]:
        """Stdout as exactly one JSON object."""
        try:
            value = json.loads(self.out)
        except ValueError as error:
            raise AssertionError(f"stdout is not exactly one JSON document ({error})\n{self}") from None
        assert isinstance(value, dict), f"stdout is not a JSON object\n{self}"
        return value

    def ok(self) -> dict[str, Any]:
        """The call succeeded: the result of ADD or VERSION; {} for the verbs that print nothing."""
        assert self.rc == 0, f"should have succeeded\n{self}"
        self._no_traceback()
        if self.verb in {"ADD", "VERSION"}:
            return self.document()
        assert self.out == b"", f"{self.verb} prints nothing on success\n{self}"
        return {}

    def failed(self, *codes: int, says: Sequence[str] = ()) -> dict[str, Any]:
        """The call failed properly, with one of `codes` (none given: any), its text holding each of `says`."""
        assert self.rc != 0, f"should have failed\n{self}"
        self._no_traceback()
        error = self.document()
        code = error.get("code")
        assert type(code) is int and code > 0, f"an error needs a positive integer code\n{self}"
        assert isinstance(error.get("msg"), str) and error["msg"], f"an error needs a msg\n{self}"
        assert isinstance(error.get("details", ""), str), f"details is a string\n{self}"
        assert not codes or code in codes, f"code should be one of {codes}\n{self}"
        for word in says:
            assert word in error["msg"] + error.get("details", ""), f"the error should say {word!r}\n{self}"
        return error

    def _no_traceback(self) -> None:
        for sign in ("Traceback (most recent call last)", "panic: ", "goroutine 1 ["):
            assert sign not in self.err, f"a crash on stderr\n{self}"


def call(
    command: Sequence[str],
    env: Mapping[str, str],
    stdin: bytes | int | None,
    *,
    cwd: str = "/",
    patience: float = PATIENCE,
) -> Answer:
    """Run `command` in the calling thread's network namespace.

    `stdin` may be bytes, or a file descriptor to hand over as it is. The pipes are read to their end as Go's
    exec does: a daemon that inherits our stdout keeps the runtime waiting, and fails here.
    """
    started = time.monotonic()
    feed = subprocess.PIPE if isinstance(stdin, bytes) else stdin
    with subprocess.Popen(
        command, stdin=feed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**env}, cwd=cwd
    ) as process:
        try:
            out, err = process.communicate(stdin if isinstance(stdin, bytes) else None, timeout=patience)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=1)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            verb = env.get("CNI_COMMAND")
            raise AssertionError(f"{verb}: no answer (or an output pipe left open) for {patience} s") from None
    verb = env.get("CNI_COMMAND", "")
    return Answer(verb, process.returncode, out, err.decode(errors="replace"), time.monotonic() - started)
