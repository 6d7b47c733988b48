"""The errors that answer a call, each with the code that a runtime reads.

The code is a class attribute. Codes 1 to 99 are defined by the specification (CNI 1.1.0, section 5; 8 by its reference
library). Codes from 100 are defined by zlayer-cni and listed in docs/errors.md. No other code is printed.
"""


class CniError(Exception):
    """An error that the runtime reads on stdout. `code` is its number, `details` may be empty."""

    code = 999

    def __init__(self, msg: str, details: str = "") -> None:
        super().__init__(msg)
        self.msg = msg
        self.details = details


class IncompatibleVersion(CniError):
    """The configuration asks for a CNI version that is not supported, or for a verb that its version does not have."""

    code = 1


class UnsupportedField(CniError):
    """A configuration field holds a value that is not supported; the message names field and value."""

    code = 2


class InvalidEnvironment(CniError):
    """A CNI_* variable is missing or unusable; the message names it."""

    code = 4


class InputOutput(CniError):
    """Standard input cannot be read, or a required file cannot be written."""

    code = 5


class UndecodableContent(CniError):
    """The input is not JSON of the expected structure."""

    code = 6


class InvalidConfig(CniError):
    """The configuration can be decoded but is not valid; the message names key and value."""

    code = 7


class InvalidNetns(CniError):
    """CNI_NETNS is the host's own network namespace, or not a network namespace."""

    code = 8


class TryAgainLater(CniError):
    """A temporary condition: the same call may succeed later."""

    code = 11


class NotAvailable(CniError):
    """STATUS: an ADD would fail now."""

    code = 50


class NotAvailableLimited(CniError):
    """STATUS: an ADD would fail, and running containers may have limited connectivity."""

    code = 51


class AttachFailed(CniError):
    """The kernel or the overlay daemon refused a step of an attach; the steps before it are undone."""

    code = 100


class InterfaceExists(CniError):
    """The container already has an interface of that name, or another attachment uses the name of the host end.

    The existing interface is not changed.
    """

    code = 101


class CheckFailed(CniError):
    """CHECK found that an attachment differs from what ADD created; the message names the difference."""

    code = 102


class AddressUnavailable(CniError):
    """The requested address is taken, outside the service's subnets, or reserved."""

    code = 103


class PoolExhausted(CniError):
    """No address is free, and none becomes free by waiting."""

    code = 104


class FenceFailed(CniError):
    """The isolation fence could not be loaded, so the container was not attached."""

    code = 105


class CleanupFailed(CniError):
    """DEL or GC could not remove everything; a repeated call may succeed."""

    code = 106


class StateUnusable(CniError):
    """The daemon's records cannot be used: another daemon has them open, or a newer version wrote them."""

    code = 107
