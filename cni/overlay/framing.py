"""Frames on a stream: a little-endian 32-bit count, then that many bytes of JSON (contract 1.1).

Bytes in, whole frames out; sockets are handled elsewhere. A count over the limit is refused from the header alone, and
the stream cannot be used any further. The body is not interpreted here, so a frame with an empty body is well-formed.
"""

from cni.overlay.errors import FrameTooLarge, TruncatedFrame

LARGEST = 8 * 1024 * 1024
"""The most bytes a body may have, in either direction."""

_HEADER = 4


def frame(body: bytes, limit: int = LARGEST) -> bytes:
    """`body` with its header, ready to be sent. Raises FrameTooLarge."""
    if len(body) > limit:
        raise FrameTooLarge(len(body), limit)
    return len(body).to_bytes(_HEADER, "little") + body


class Framer:
    """The receiving half of one stream."""

    def __init__(self, limit: int = LARGEST) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> None:
        """Add bytes that arrived, cut at any place.

        Call `next_frame` until it returns None before feeding more: the buffer has no other bound.
        """
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """The body of the next whole frame, or None until more arrives.

        Raises FrameTooLarge, again at every call, once the next header announces a body over the limit.
        """
        if len(self._buffer) < _HEADER:
            return None
        size = int.from_bytes(self._buffer[:_HEADER], "little")
        if size > self._limit:
            raise FrameTooLarge(size, self._limit)
        end = _HEADER + size
        if len(self._buffer) < end:
            return None
        body = bytes(memoryview(self._buffer)[_HEADER:end])
        del self._buffer[:end]
        return body

    def eof(self) -> None:
        """Report the end of the stream. Between frames, or inside a header, it is the clean end.

        Raises TruncatedFrame inside a body. Call it after `next_frame` has returned None.
        """
        if len(self._buffer) >= _HEADER:
            size = int.from_bytes(self._buffer[:_HEADER], "little")
            raise TruncatedFrame(
                f"io error: unexpected end of file after {len(self._buffer) - _HEADER} of {size} bytes"
            )
