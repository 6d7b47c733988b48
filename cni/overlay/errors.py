"""The failures of calls on an overlayd, classified by what the caller can do about them.

A `TransportError` means that the connection is broken: the client dials again and repeats the request once. An
`ApplicationError` is the daemon's own answer, or an answer that the protocol does not allow: a repetition would give
the same. Classes and texts are contract 3.3. `DeadlinePassed` and `UnsupportedPeerChange` are additions: ZLayer's
client has no deadlines, and does not avoid the requests that stop its daemon.
"""

from cni.errors import AttachFailed, CniError, TryAgainLater, UndecodableContent


class CodecError(UndecodableContent, ValueError):
    """Bytes that are no frame of the protocol, or a value that cannot be put into one."""


class FrameTooLarge(UndecodableContent):
    """A frame over the limit, sent or announced; `size` is its body in bytes."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"frame too large: {size} bytes (max {limit})")
        self.size = size


class TruncatedFrame(UndecodableContent):
    """The stream ended inside a frame's body."""


class OverlaydError(CniError):
    """A call on an overlayd failed. Only subclasses are raised."""


class TransportError(OverlaydError, TryAgainLater):
    """The connection failed or could not be made: dial, I/O, end of stream, codec, or size."""


class DeadlinePassed(TransportError):
    """The daemon did not answer in time. It may still carry the request out."""


class ApplicationError(OverlaydError, AttachFailed):
    """The daemon answered, and not with the result of the request."""


class Refused(ApplicationError):
    """The daemon answered `err`. `message` is its text, without the prefixes that `msg` has."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(f"overlayd: overlay engine error: {message}", details)
        self.message = message


class Unexpected(ApplicationError):
    """A well-formed answer of another kind than the request allows, or a request from the daemon."""


class UnsupportedPeerChange(ApplicationError):
    """ZLayer's overlayd cannot hold all of a peer; `not_programmed` are the CIDRs that were not programmed.

    The other CIDRs have been programmed. Raised only in front of a daemon that does not identify itself as ours: there
    a peer has room for one CIDR, and a change to a peer that the device already has stops the daemon for good
    (contract 5.3/22, 23).
    """

    def __init__(self, msg: str, not_programmed: tuple[str, ...] = ()) -> None:
        super().__init__(msg)
        self.not_programmed = not_programmed
