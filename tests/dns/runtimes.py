"""A web server and its clients in containers of a real runtime, for the tests of what each makes of names."""

from __future__ import annotations

import time
from collections.abc import Callable
from subprocess import CompletedProcess

from tests.runtimes.machine import told

SERVED = "served by web"
WEB = ("sh", "-c", f"echo {SERVED} >/index.html; exec busybox httpd -f -p 80 -h /")
# The host's C library and wget, in place of the image's static busybox, which ends in a name lookup.
GLIBC = tuple(word for path in ("/usr", "/lib", "/lib64") for word in ("--volume", f"{path}:{path}:ro"))
ZONE = "zlayer.zlayer.local"

Run = Callable[..., CompletedProcess[str]]


def fetch(run: Run, host: str = "web") -> str:
    """What `wget http://HOST` in a container prints; a failure is told."""
    done = run("/usr/bin/wget", "-nv", "-T", "10", "-t", "1", "-O", "-", f"http://{host}/")
    return done.stdout.strip() if done.returncode == 0 else told(done)


def served_soon(run: Run, host: str = "web") -> None:
    """Fails unless the server's page comes from inside a container; its process may still be starting."""
    end, said = time.monotonic() + 20, ""
    while (said := fetch(run, host)) != SERVED:
        assert time.monotonic() < end, said
        time.sleep(0.2)
