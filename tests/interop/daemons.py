"""The two daemons that speak the protocol, each on a scratch machine: ZLayer's own, and ours."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cni.overlay.manager import OverlayManager
from cni.overlay.nat import NatSettings
from cni.overlay.state import Timeouts
from tests.interop.machine import Machine, wait_until

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("ZLAYER_CACHE", Path.home() / ".cache" / "zlayer-cni"))
UPSTREAM = CACHE / "overlayd" / "bin" / "zlayer-overlayd"
CLIENT = CACHE / "upstream-client" / "bin" / "upstream-client"
VERSION = "0.14.3"


class Daemon:
    """One daemon at a time on a machine, started, stopped and started again."""

    name = ""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.home = machine.home / self.name
        self.home.mkdir()
        self.socket = str(self.home / "overlayd.sock")
        self.log = self.home / "log"
        self.process: subprocess.Popen[Any] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def start(self) -> None:
        """Start it and wait until it listens."""
        Path(self.socket).unlink(missing_ok=True)
        self.process = self.machine.start(*self.command(), log=self.log, env=self.environment())
        wait_until(self._listens, f"{self.name}: {self.log.read_text()}", 20.0)

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"{self.name} ended: {self.log.read_text()}"
        return Path(self.socket).exists()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, whatever state it is in; waits for its end."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        if self.process is not None:
            self.process.wait()

    def manager(self, seconds: float = 10.0) -> OverlayManager:
        """A client of its own for it; NAT traversal is off, for there is no STUN server to be reached."""
        manager = OverlayManager.with_slice("prod", "10.200.0.0/16", "10.200.0.16/28", 51420, "42")
        manager.with_local_node_id(3).with_nat_config(NatSettings(enabled=False))
        return manager.with_socket(self.socket).with_timeouts(Timeouts(call=seconds))


class Upstream(Daemon):
    """ZLayer's `zlayer-overlayd`, unmodified."""

    name = "upstream"

    def command(self) -> list[str]:
        return [str(UPSTREAM), "--data-dir", str(self.home), "--socket", self.socket]

    def environment(self) -> dict[str, str]:
        # Without the variable a data directory of one's own cannot bring the global overlay up (contract 6.2).
        return {**os.environ, "ZLAYER_DATA_DIR": str(self.home), "NO_COLOR": "1"}


class Ours(Daemon):
    """`zlayer-cni overlayd`, from source."""

    name = "ours"

    def command(self) -> list[str]:
        directories = ["--run-dir", str(self.home / "run"), "--data-dir", str(self.home / "data")]
        return [sys.executable, "-m", "cni", "overlayd", *directories, "--socket", self.socket]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}
