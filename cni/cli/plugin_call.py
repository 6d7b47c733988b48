"""A verb of CNI, called as a runtime calls it: this program with CNI's environment and a configuration."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from cni.host import program
from cni.plugin import autostart, client


class CallFailed(Exception):
    """The plugin refused: `code` is CNI's, the text the plugin's."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def command(run_dir: str, data_dir: str) -> tuple[str, ...]:
    """The plugin's command: this program. Raises OSError if it cannot be unpacked."""
    location = client.Location()
    location.run_dir, location.data_dir = run_dir, data_dir
    words = autostart.program(location, client.Waiter(30))
    return tuple(words[: words.index("overlayd")])


def call(words: Sequence[str], variables: Mapping[str, str], conf: Mapping[str, object]) -> dict[str, Any]:
    """The result of one call. Raises CallFailed, OSError."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
    env |= {"CNI_PATH": "/opt/cni/bin", **variables}
    code, out, err = program.run_once(list(words), env, json.dumps(conf).encode())
    try:
        answer = json.loads(out) if out.strip() else {}
    except ValueError:
        answer = {}
    if code:
        text = answer.get("msg") or err.decode("utf-8", "replace").strip() or f"the plugin ended with {code}"
        details = f": {answer['details']}" if answer.get("details") else ""
        raise CallFailed(int(answer.get("code", 0)), f"{text}{details}")
    return dict(answer)
