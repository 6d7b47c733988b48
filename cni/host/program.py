"""Runs one of our programs once, to check that it works in its directory."""

from __future__ import annotations

import subprocess

PATIENCE = 30  # seconds


def run_once(argv: list[str], env: dict[str, str], stdin: bytes) -> tuple[int, bytes, bytes]:
    """(exit code, stdout, stderr) of a short-lived program. Raises OSError if it cannot be started, or does not end
    within PATIENCE."""
    try:
        done = subprocess.run(argv, env=env, input=stdin, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{argv[0]} did not end within {PATIENCE} s") from error
    return done.returncode, done.stdout, done.stderr
