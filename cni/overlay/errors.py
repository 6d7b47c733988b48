"""What can go wrong in the conversation with an overlayd, sorted by what the caller can do about it.

`TransportError` means the connection is no good: the client dials again and repeats the request once. An
`ApplicationError` is the daemon's own answer, or a protocol surprise: repeating it would change nothing. The
classes and their words are contract 3.3; `DeadlinePassed` and `NotTaken` are ours, for ZLayer's client has no
deadlines and does not know what its daemon cannot do.
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
    """A call on an overlayd failed. Never raised itself."""


class TransportError(OverlaydError, TryAgainLater):
    """The connection failed or could not be made: dial, I/O, end of stream, codec, or size."""


class DeadlinePassed(TransportError):
    """The daemon did not answer in time. It may still have done what it was asked."""


class ApplicationError(OverlaydError, AttachFailed):
    """The daemon answered, and the answer is not what was asked for."""


class Refused(ApplicationError):
    """The daemon said `err`; `message` is what it said, without the words put before it."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(f"overlayd: overlay engine error: {message}", details)
        self.message = message


class Unexpected(ApplicationError):
    """A well-formed answer of another kind than the request allows, or a request from the daemon."""


class NotTaken(ApplicationError):
    """A plain ZLayer overlayd cannot hold all of a peer; `left_out` are the CIDRs that were not programmed.

    What could be programmed has been. Raised only in front of a daemon that does not say it is ours, where one
    peer has room for one CIDR and a change to a peer it already has would stop it for ever (contract 5.3/22,
    23).
    """

    def __init__(self, msg: str, left_out: tuple[str, ...] = ()) -> None:
        super().__init__(msg)
        self.left_out = left_out
