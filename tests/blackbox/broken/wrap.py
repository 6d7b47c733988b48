"""A plugin that does something wrong around one that works: `python3 broken/FAULT.py REAL-PLUGIN`.

Only what the wrappers share: running the real plugin, and reading what it was asked.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

verb = os.environ.get("CNI_COMMAND", "")
netns = os.environ.get("CNI_NETNS", "")
ifname = os.environ.get("CNI_IFNAME", "")
cid = os.environ.get("CNI_CONTAINERID", "")


def asked():
    """Stdin, read once; b"" for VERSION, which must not wait for it."""
    return b"" if verb in ("VERSION", "") else sys.stdin.buffer.read()


def config(stdin):
    try:
        value = json.loads(stdin)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def leases(conf):
    """The directory where the real plugin keeps this network's addresses."""
    return Path(conf.get("ipam", {}).get("dataDir", "/nonexistent")) / str(conf.get("name"))


def own_leases(conf):
    """The addresses that this container holds."""
    return [path for path in leases(conf).glob("*.*.*.*") if cid and cid in path.read_text()]


def real(stdin, **env):
    """The real plugin's answer: (rc, stdout, stderr)."""
    done = subprocess.run(sys.argv[1:], input=stdin, capture_output=True, check=False, env={**os.environ, **env})
    return done.returncode, done.stdout, done.stderr


def answer(rc, out, err=b""):
    """Say it and end."""
    sys.stdout.buffer.write(out)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(err)
    sys.stderr.buffer.flush()
    os._exit(rc)


def edit(change):
    """The real plugin, with the result of an ADD that went well changed by `change`."""
    stdin = asked()
    rc, out, err = real(stdin)
    if verb == "ADD" and rc == 0:
        result = json.loads(out)
        change(result)
        out = json.dumps(result).encode()
    answer(rc, out, err)
