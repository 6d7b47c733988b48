"""The supported CNI versions, and the verbs of each (CNI 1.1.0, sections 2 and 4)."""

from cni.errors import CniError, IncompatibleVersion, UndecodableContent

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = SUPPORTED[-1]
OLDEST = SUPPORTED[0]
"""What a configuration without `cniVersion` means."""

SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The first version that has the verb; verbs not listed are in all of them."""


def parse_version(text: str) -> tuple[int, int, int]:
    """One to three whole numbers separated by dots; missing ones are 0, an empty text is 0.1.0.

    Raises `UndecodableContent` for anything else.
    """
    parts = (text or OLDEST).split(".")
    if len(parts) > 3 or not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UndecodableContent(f'cniVersion: cannot make sense of "{text}"')
    numbers = [int(part) for part in parts] + [0, 0]
    return numbers[0], numbers[1], numbers[2]


def at_least(version: str, other: str) -> bool:
    """Whether `version` is `other` or a later one."""
    return parse_version(version) >= parse_version(other)


def check_version(version: str, verb: str) -> None:
    """Raise an error unless a configuration of this version may be used with this verb.

    The version must be exactly one of SUPPORTED. CHECK, GC and STATUS compare it first, so an unreadable version is
    code 6 (`UndecodableContent`) there and code 1 (`IncompatibleVersion`) elsewhere, and a version that is too old or
    too new for the verb has its own text (as in the reference's `pkg/skel`). Every error names the version.
    """
    if verb in SINCE:
        if not at_least(version, SINCE[verb]):
            details = f'config is "{version}", {verb} needs {SINCE[verb]} or later'
            raise IncompatibleVersion(f"config version does not allow {verb}", details)
        if not at_least(NEWEST, version):
            raise IncompatibleVersion(f"plugin version does not allow {verb}", incompatible(version).details)
    if version not in SUPPORTED:
        raise incompatible(version)


def incompatible(version: str) -> CniError:
    """The error for an unsupported version; its details list the supported ones."""
    ours = " ".join(f'"{version}"' for version in SUPPORTED)
    details = f'config is "{version}", plugin supports [{ours}]'
    return IncompatibleVersion("incompatible CNI versions", details)
