"""The few configuration keys the plugin itself must understand, read as Go would: any case, the last one wins.

Imported only when the bytes of stdin may hold one of them, or when an error needs the configuration's version.
Everything else in the configuration is the business of the verbs.
"""

from cni.errors import CniError, InvalidConfig, UndecodableContent
from cni.plugin.client import Location

_BLANKS = " \t\n\r"
_LIMITS = {"runDir": 80, "dataDir": 1024, "socket": 107}
"""Bytes of each path, as in `cni.netconf.values`, which costs too much to import here."""


def parse(stdin: bytes) -> dict[str, object]:
    """The configuration with its keys folded to lower case. `null` is empty, as in Go.

    Raises UndecodableContent (code 6) for what is not a JSON object.
    """
    try:
        config = _decode(stdin.decode())
    except RecursionError as error:
        raise UndecodableContent("error unmarshall network config: it is nested too deeply") from error
    except ValueError as error:
        raise UndecodableContent(f"error unmarshall network config: {error}") from error
    if config is None:
        return {}
    if not isinstance(config, dict):
        raise UndecodableContent("error unmarshall network config: it is not a JSON object")
    return config


def _decode(text: str) -> object:
    """The JSON value in `text`, by the scanner inside json: the package around it takes longer to import than the rest
    of a call. Raises ValueError."""
    start = len(text) - len(text.lstrip(_BLANKS))
    try:
        from _json import make_scanner

        value, end = make_scanner(_Scanning())(text, start)  # type: ignore[arg-type]
        if not text[end:].strip(_BLANKS):
            return value
    except (ImportError, StopIteration, SystemError):
        pass  # No scanner here, or it could not find the words for what is wrong: json has them.
    import json

    return json.loads(text, object_pairs_hook=_folded, parse_constant=_refuse)


def _folded(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {key.casefold(): value for key, value in pairs}


def _refuse(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


class _Scanning:
    """What json's scanner asks of its caller."""

    __slots__ = ("memo",)
    strict = True
    object_hook = None
    object_pairs_hook = staticmethod(_folded)
    parse_float = float
    parse_int = int
    parse_constant = staticmethod(_refuse)

    def __init__(self) -> None:
        self.memo: dict[str, str] = {}


def version(stdin: bytes, absent: str = "0.1.0") -> str:
    """The configuration's `cniVersion`; `absent` where it says none (CNI means 0.1.0). Raises as `parse` does."""
    value = parse(stdin).get("cniversion")
    return value if isinstance(value, str) and value else absent


def place(stdin: bytes, command: bytes) -> Location:
    """Which daemon the configuration means.

    Raises UndecodableContent (code 6) for a wrong type and InvalidConfig (code 7) for a value that cannot be. DEL
    takes the default for either: somebody broke the conflist, but the container must be able to go.
    """
    found = Location()
    config = parse(stdin)
    problems: list[CniError] = []
    found.run_dir = _path(config, "runDir", problems) or found.run_dir
    found.data_dir = _path(config, "dataDir", problems) or found.data_dir
    autostart = config.get("autostart")
    if isinstance(autostart, bool):
        found.autostart = autostart
    elif autostart is not None:
        problems.append(_wrong_type("autostart", "true or false", autostart))
    overlayd = config.get("overlayd")
    if isinstance(overlayd, dict):
        found.foreign = _path(overlayd, "socket", problems, "overlayd.")
    elif overlayd is not None:
        problems.append(_wrong_type("overlayd", "an object", overlayd))
    if problems and command != b"DEL":
        raise problems[0]
    return found


def _path(config: dict[str, object], key: str, problems: list[CniError], where: str = "") -> str:
    """An absolute path, as written but for doubled slashes; empty when there is none, or none that will do."""
    value = config.get(key.casefold())
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        problems.append(_wrong_type(where + key, "a string", value))
    elif not value.startswith("/") or "\0" in value:
        problems.append(InvalidConfig(f"{where}{key}: {_shown(value)} is not an absolute path"))
    elif not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        problems.append(UndecodableContent(f"error unmarshall network config: {where}{key}: a lone surrogate"))
    elif len(value.encode()) > _LIMITS[key]:
        problems.append(InvalidConfig(f"{where}{key}: {_shown(value)} is longer than {_LIMITS[key]} bytes"))
    else:
        return _plain(value)
    return ""


def _plain(path: str) -> str:
    """`path` without doubled slashes, dots, and a slash at its end. Most have none, and need no import."""
    if not ("//" in path or "/." in path or path.endswith("/")):
        return path
    import os

    return os.path.normpath(path)


def _wrong_type(where: str, wanted: str, value: object) -> UndecodableContent:
    return UndecodableContent(f"{where}: expected {wanted}, found {_shown(value)}")


def _shown(value: object) -> str:
    """A value for a message, cut to what a person reads."""
    import json  # an error is being written: time does not matter

    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
