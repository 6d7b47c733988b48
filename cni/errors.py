"""Everything that can go wrong, each with the number a runtime reads.

The code is on the class. Codes 1 to 99 are the specification's (CNI 1.1.0, section 5, and 8 from its reference
library); codes from 100 are ours and are listed in docs/errors.md. No other code is ever printed.
"""


class CniError(Exception):
    """Anything the runtime should read on stdout. `code` is the number, `details` may be empty."""

    code = 999

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details


class IncompatibleVersion(CniError):
    """The configuration asks for a CNI version, or a verb for a version, that does not go."""

    code = 1


class UnsupportedField(CniError):
    """A configuration field holds a value we do not support; the message names both."""

    code = 2


class InvalidEnvironment(CniError):
    """A CNI_* variable is missing or unusable; the message names it."""

    code = 4


class InputOutput(CniError):
    """Standard input could not be read, or a needed file not written."""

    code = 5


class UndecodableContent(CniError):
    """Bytes that should be JSON of a known shape are not."""

    code = 6


class InvalidConfig(CniError):
    """The configuration can be read but makes no sense; the message names key and value."""

    code = 7


class InvalidNetns(CniError):
    """CNI_NETNS is the host's own namespace, or is no network namespace."""

    code = 8


class TryAgainLater(CniError):
    """A passing condition: the same call may succeed in a while."""

    code = 11


class NotAvailable(CniError):
    """STATUS: an ADD would not succeed now."""

    code = 50


class NotAvailableLimited(CniError):
    """STATUS: an ADD would not succeed, and running containers may have limited connectivity."""

    code = 51


class AttachFailed(CniError):
    """The kernel, or the overlay daemon, refused a step of an attach; nothing is left of it."""

    code = 100


class InterfaceExists(CniError):
    """The container already has an interface of that name, or the host end's name is another attachment's.

    What is there was not touched.
    """

    code = 101


class CheckFailed(CniError):
    """CHECK found that an attachment is not as ADD left it; the message says what."""

    code = 102


class AddressUnavailable(CniError):
    """The address asked for is taken, outside the service's subnets, or reserved."""

    code = 103


class PoolExhausted(CniError):
    """No address is left, and none will become free by waiting."""

    code = 104


class FenceFailed(CniError):
    """The isolation fence could not be put in force, so the container was not attached."""

    code = 105


class CleanupFailed(CniError):
    """Some of what DEL or GC had to remove could not be removed; calling again may help."""

    code = 106


class StateUnusable(CniError):
    """The daemon's records cannot be used: another daemon holds them, or a newer version wrote them."""

    code = 107
