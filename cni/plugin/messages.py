"""The plugin's own output: the VERSION result, and errors that no daemon has rendered.

Builds JSON by string operations: to import json takes longer than the rest of the call. The parser is imported only if
the version cannot be found in the configuration without it.
"""

import posix
import select

from cni.plugin import client
from cni.plugin.client import SUPPORTED_VERSIONS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.errors import CniError


def version_answer(waiter: client.Waiter, is_open: bool) -> bytes:
    """The VERSION result. It repeats the input's version (specification), but never waits for input (libcni sends
    none)."""
    version = SUPPORTED_VERSIONS[-1]
    stdin = b""
    try:
        while is_open and len(stdin) < 65536 and waiter.wait(0, select.POLLIN, 0.25):
            part = posix.read(0, 65536)
            if not part:
                break
            stdin += part
    except OSError:
        pass  # There is no input version to repeat.
    if stdin:
        version = _plain_version(stdin) or _config_version(stdin, version, absent=version)
    supported = ",".join(f'"{v}"' for v in SUPPORTED_VERSIONS)
    return f'{{"cniVersion":{quote(version)},"supportedVersions":[{supported}]}}\n'.encode()


def _plain_version(stdin: bytes) -> str:
    """The version if it can be read without parsing: given once, at the top level, and supported. Else empty."""
    before, key, after = stdin.partition(b'"cniVersion"')
    parts = after.split(b'"', 2)
    outermost = before.count(b"{") == 1 and b"}" not in before
    if not (key and outermost and len(parts) == 3 and parts[0].strip() == b":"):
        return ""
    text = parts[1].decode("ascii", "replace")
    return text if text in SUPPORTED_VERSIONS and b"cniversion" not in parts[2].lower() else ""


def _config_version(stdin: bytes, otherwise: str, absent: str = SUPPORTED_VERSIONS[0]) -> str:
    """The `cniVersion` of a configuration; `absent` if it has none, `otherwise` if it cannot be read."""
    try:
        from cni.plugin import config

        return config.version(stdin, absent)
    except Exception:  # noqa: BLE001 - the error to be printed must be printed in any case
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
        version = SUPPORTED_VERSIONS[-1]  # The runtime could not read an answer in an unknown version.
    more = f',"details":{quote(details)}' if details else ""
    return f'{{"cniVersion":{quote(version)},"code":{code},"msg":{quote(msg)}{more}}}\n'.encode()


def quote(text: str) -> str:
    """`text` as a JSON string in ASCII; to import json takes five times as long as the rest of the call."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    out = []
    for unit in memoryview(text.encode("utf-16-le", "surrogatepass")).cast("H"):
        char = chr(unit)
        out.append(f"\\{char}" if char in '"\\' else char if 0x20 <= unit < 0x7F else f"\\u{unit:04x}")
    return f'"{"".join(out)}"'
