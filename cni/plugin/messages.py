"""What the plugin says by itself: the VERSION result, and errors that no daemon worded.

Plain string work: json would cost more than the rest of the call. It is imported only where a version has to be found
in a configuration that is out of the ordinary.
"""

import posix
import select

from cni.plugin import client as plugin_door
from cni.plugin.client import SUPPORTED_VERSIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.errors import CniError


def version_answer(waiter: plugin_door.Waiter, is_open: bool) -> bytes:
    """The VERSION result. It echoes the input's version (SPEC), but never waits for an input (libcni gives none)."""
    version = SUPPORTED_VERSIONS[-1]
    stdin = b""
    try:
        while is_open and len(stdin) < 65536 and waiter.wait(0, select.POLLIN, 0.02):
            part = posix.read(0, 65536)
            if not part:
                break
            stdin += part
    except OSError:
        pass  # Nothing to echo, then.
    if stdin:
        version = _plain_version(stdin) or _config_version(stdin, version, absent=version)
    supported = ",".join(f'"{v}"' for v in SUPPORTED_VERSIONS)
    return f'{{"cniVersion":{quote(version)},"supportedVersions":[{supported}]}}\n'.encode()


def _plain_version(stdin: bytes) -> str:
    """The version where it can be told without parsing: named once, outermost, and one of ours. Else empty."""
    before, key, after = stdin.partition(b'"cniVersion"')
    parts = after.split(b'"', 2)
    outermost = before.count(b"{") == 1 and b"}" not in before
    if not (key and outermost and len(parts) == 3 and parts[0].strip() == b":"):
        return ""
    text = parts[1].decode("ascii", "replace")
    return text if text in SUPPORTED_VERSIONS and b"cniversion" not in parts[2].lower() else ""


def _config_version(stdin: bytes, otherwise: str, absent: str = SUPPORTED_VERSIONS[0]) -> str:
    """The `cniVersion` of a configuration, `absent` where it has none, `otherwise` where it cannot be read."""
    try:
        from cni.plugin import config

        return config.version(stdin, absent)
    except Exception:  # noqa: BLE001 - it decorates an error that must come out whatever this one is
        return otherwise


def error_answer(error: "Exception | CniError", stdin: bytes) -> bytes:
    """An error as one JSON object (SPEC, section 5), in the version of the configuration that `stdin` holds."""
    code = getattr(error, "code", None)
    if isinstance(code, int):
        msg, details = str(getattr(error, "msg", error)), str(getattr(error, "details", ""))
    else:
        code, msg, details = 999, f"internal error: {type(error).__name__}: {error}", ""
    version = _config_version(stdin, SUPPORTED_VERSIONS[-1])
    if version not in SUPPORTED_VERSIONS:
        version = SUPPORTED_VERSIONS[-1]  # An answer in a version that nobody speaks helps nobody.
    more = f',"details":{quote(details)}' if details else ""
    return f'{{"cniVersion":{quote(version)},"code":{code},"msg":{quote(msg)}{more}}}\n'.encode()


def quote(text: str) -> str:
    """`text` as a JSON string of plain ASCII, whatever is in it; json would cost five times the rest of the call."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = []
    for unit in memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"):
        char = chr(unit)
        out.append(f"\\{char}" if char in '"\\' else char if 0x20 <= unit < 0x7F else f"\\u{unit:04x}")
    return f'"{"".join(out)}"'
