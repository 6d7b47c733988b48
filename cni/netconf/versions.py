"""The CNI versions we speak, and which verb may come with which of them (CNI 1.1.0, sections 2 and 4)."""

from cni.errors import CniError, IncompatibleVersion, UndecodableContent

SUPPORTED = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = SUPPORTED[-1]
OLDEST = SUPPORTED[0]
"""What a configuration without `cniVersion` means."""

SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
"""The first version that has the verb; verbs not listed are in all of them."""


def parse_version(text: str) -> tuple[int, int, int]:
    """One to three whole numbers with dots between; missing ones are 0, an empty text is 0.1.0.

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
    """Pass if a configuration of this version may come with this verb.

    The version must be one of SUPPORTED to the letter, but CHECK, GC and STATUS compare it first, so that
    an unreadable one is code 6 there (`UndecodableContent`) and code 1 (`IncompatibleVersion`) elsewhere; and
    one that is too old or too new for the verb says so (the reference's `pkg/skel`).
    """
    if verb in SINCE:
        if not at_least(version, SINCE[verb]):
            raise IncompatibleVersion(f"config version does not allow {verb}")
        if not at_least(NEWEST, version):
            raise IncompatibleVersion(f"plugin version does not allow {verb}")
    if version not in SUPPORTED:
        raise incompatible(version)


def incompatible(version: str) -> CniError:
    """The error for a version we do not speak; its details say which we do."""
    ours = " ".join(f'"{each}"' for each in SUPPORTED)
    details = f'config is "{version}", plugin supports [{ours}]'
    return IncompatibleVersion("incompatible CNI versions", details)
