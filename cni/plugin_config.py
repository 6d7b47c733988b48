"""The few configuration keys the plugin itself must understand, read as Go would: any case, the last one wins.

Imported only when the bytes of stdin may hold one of them, or when an error needs the configuration's version.
Everything else in the configuration is the business of the verbs.
"""

import json
import os

from cni.errors import InvalidConfig, UndecodableContent
from cni.plugin import Place


def parse(stdin: bytes) -> dict[str, object]:
    """The configuration with its keys folded to lower case. `null` is empty, as in Go.

    Raises UndecodableContent (code 6) for what is not a JSON object.
    """
    try:
        config = json.loads(stdin, object_pairs_hook=lambda pairs: {key.casefold(): value for key, value in pairs})
    except RecursionError as error:
        raise UndecodableContent("error unmarshall network config: it is nested too deeply") from error
    except ValueError as error:
        raise UndecodableContent(f"error unmarshall network config: {error}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UndecodableContent("error unmarshall network config: it is not a JSON object")
    return config


def version(stdin: bytes, absent: str = "0.1.0") -> str:
    """The configuration's `cniVersion`; `absent` where it says none (CNI means 0.1.0). Raises as `parse` does."""
    value = parse(stdin).get("cniversion")
    return value if isinstance(value, str) and value else absent


def place(stdin: bytes, command: bytes) -> Place:
    """Which daemon the configuration means. Raises UndecodableContent, and InvalidConfig for a value that cannot be.

    DEL takes the default for a wrong value: somebody broke the conflist, but the container must be able to go.
    """
    found = Place()
    config = parse(stdin)
    problems = []
    for key, attribute in (("runDir", "run_dir"), ("dataDir", "data_dir")):
        value = config.get(key.casefold())
        if value is None or value == "":
            continue
        if isinstance(value, str) and value.startswith("/") and "\0" not in value:
            setattr(found, attribute, os.path.normpath(value))
        else:
            problems.append(f"{key}: {_shown(value)} is not an absolute path")
    autostart = config.get("autostart")
    if isinstance(autostart, bool):
        found.autostart = autostart
    elif autostart is not None:
        problems.append(f"autostart: {_shown(autostart)} is neither true nor false")
    overlayd = config.get("overlayd")
    socket = overlayd.get("socket") if isinstance(overlayd, dict) else None
    if isinstance(socket, str) and (socket.startswith("/") or not socket):
        found.foreign = socket
    elif overlayd is not None and (socket is not None or not isinstance(overlayd, dict)):
        problems.append(f"overlayd: {_shown(overlayd)} does not name the absolute path of a socket")
    if problems and command != b"DEL":
        raise InvalidConfig("invalid network configuration: " + "; ".join(problems))
    return found


def _shown(value: object) -> str:
    """A value for a message, cut to what a person reads."""
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + "..."
