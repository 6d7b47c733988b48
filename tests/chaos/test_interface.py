"""`zlayer-cni attachments --json`, on which others build: every field that docs/cli.md promises, on each form."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from .machine import RAISED, Machine, Space
from .program import ROOT
from .scenes import passed, started
from .test_storm import QUICK


def promised() -> set[str]:
    """The fields of the table in docs/cli.md."""
    section = (ROOT / "docs/cli.md").read_text().partition("\n## attachments\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([a-z_0-9]+)`", cell)}


def listed(on: Machine) -> dict[str, dict[str, Any]]:
    words = " ".join([*on.program.command, "attachments", "--json", "--run-dir", str(on.run_dir)])
    env = " ".join(f"{name}={value}" for name, value in on.program.env.items())
    return {each["container_id"]: each for each in json.loads(on.sh(f"env {env} {words}"))}


def test_attachments_json(form: str, boot: Callable[..., Machine]) -> None:
    on = boot(form, "address_cooldown: 1")
    on.program.tune(**QUICK)
    on.start_daemon()
    assert listed(on) == {}
    space, other = Space(on), Space(on)
    said = on.call("ADD", on.conf(isolationNetwork="blue"), "one", space.path, "net7").ok()
    on.program.arm(f"daemon {RAISED}", "sleep", 2.0)
    process = started(on, "ADD", "two", other)
    passed(on, RAISED)
    found = listed(on)
    process.communicate(timeout=30)
    assert found.keys() == {"one", "two"}
    for each in found.values():
        assert each.keys() == promised()
    one = found["one"]
    assert [one[name] for name in ("network", "container_id", "interface", "service", "mode", "isolation_network")] == [
        "net", "one", "net7", "web", "auto", "blue",
    ]  # fmt: skip
    assert one["addresses"] == [ip["address"] for ip in said["ips"]]
    assert one["gateways"] == [ip["gateway"] for ip in said["ips"]]
    on_host = [name for name in (one["bridge"], one["host_interface"]) if name]
    assert on_host == [each["name"] for each in said["interfaces"][:-1]]
    assert (one["mac"], one["mtu"]) == (said["interfaces"][-1]["mac"], said["interfaces"][-1]["mtu"])
    assert (one["netns"], one["pid"], one["state"]) == (space.path, None, "live")
    assert (found["two"]["state"], found["two"]["isolation_network"]) == ("intent", None)
    assert listed(on)["two"]["state"] == "live"
