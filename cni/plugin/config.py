"""The configuration keys that the plugin itself reads, as Go reads them: case is ignored, the last of equal keys
counts.

Imported only if the bytes of stdin may hold one of these keys, or if an error needs the configuration's version. The
verbs (cni/verbs.py) read all other keys.
"""

from cni.errors import CniError, InvalidConfig, UndecodableContent
from cni.plugin.client import Location

_BLANKS = " \t\n\r"
_LIMITS = {"runDir": 80, "dataDir": 1024, "socket": 107}
"""The longest path in bytes, by key; as in `cni.netconf.values`, whose import takes too long here."""


def parse(stdin: bytes) -> dict[str, object]:
    """The configuration with its keys in lower case. `null` is an empty configuration, as in Go.

    Raises UndecodableContent (code 6) if it is not a JSON object.
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
    """The JSON value in `text`, by the scanner of the json package: to import the package takes longer than the rest of
    a call. Raises ValueError."""
    start = len(text) - len(text.lstrip(_BLANKS))
    try:
        from _json import make_scanner

        value, end = make_scanner(_Scanning())(text, start)  # type: ignore[arg-type]
        if not text[end:].strip(_BLANKS):
            return value
    except (ImportError, StopIteration, SystemError):
        pass  # There is no scanner, or it failed without an error text: json gives one.
    import json

    return json.loads(text, object_pairs_hook=_folded, parse_constant=_refuse)


def _folded(pairs: list[tuple[str, object]]) -> dict[str, object]:
    return {key.casefold(): value for key, value in pairs}


def _refuse(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


class _Scanning:
    """The attributes that json's scanner reads from its caller."""

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
    """The configuration's `cniVersion`; `absent` if it has none (0.1.0 by the specification). Raises as `parse`
    does."""
    value = parse(stdin).get("cniversion")
    return value if isinstance(value, str) and value else absent


def place(stdin: bytes, command: bytes) -> Location:
    """The daemon that the configuration names.

    Raises UndecodableContent (code 6) for a wrong type and InvalidConfig (code 7) for an invalid value. DEL uses the
    default instead: a container must be removable also after its conflist was broken.
    """
    location = Location()
    config = parse(stdin)
    problems: list[CniError] = []
    location.run_dir = _path(config, "runDir", problems) or location.run_dir
    location.data_dir = _path(config, "dataDir", problems) or location.data_dir
    autostart = config.get("autostart")
    if isinstance(autostart, bool):
        location.autostart = autostart
    elif autostart is not None:
        problems.append(_wrong_type("autostart", "true or false", autostart))
    overlayd = config.get("overlayd")
    if isinstance(overlayd, dict):
        location.foreign = _path(overlayd, "socket", problems, "overlayd.")
    elif overlayd is not None:
        problems.append(_wrong_type("overlayd", "an object", overlayd))
    if problems and command != b"DEL":
        raise problems[0]
    return location


def _path(config: dict[str, object], key: str, problems: list[CniError], where: str = "") -> str:
    """The absolute path under `key`, normalised; empty if there is none, or if it is invalid (see `problems`)."""
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
    """`path` without doubled slashes, dot segments and a trailing slash. Most paths have none and need no import."""
    if not ("//" in path or "/." in path or path.endswith("/")):
        return path
    import os

    return os.path.normpath(path)


def _wrong_type(where: str, expected: str, value: object) -> UndecodableContent:
    return UndecodableContent(f"{where}: expected {expected}, found {_shown(value)}")


def _shown(value: object) -> str:
    """A value as JSON for a message, truncated to 80 characters."""
    import json  # imported here: only an error needs it

    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
