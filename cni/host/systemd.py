"""Runs systemctl on machines with systemd."""

from __future__ import annotations

import subprocess
from pathlib import Path

RUNNING = Path("/run/systemd/system")  # exists if and only if systemd is the init (sd_booted(3))
PATIENCE = 60  # seconds


def is_running() -> bool:
    """Whether systemd is this machine's init."""
    return RUNNING.is_dir()


def control(*words: str) -> str:
    """Run `systemctl WORDS`; returns "" if it succeeded, else its error text."""
    try:
        done = subprocess.run(
            ["systemctl", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"systemctl {' '.join(words)}: {error}"
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
