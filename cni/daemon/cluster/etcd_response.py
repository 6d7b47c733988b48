"""What came back on a connection to etcd: an answer of its gateway, a line of a stream, or a failure."""

from __future__ import annotations

import http.client

from cni.daemon.cluster.store import Compacted, Unreachable, WrongServer

LONGEST = 8 << 20  # bytes of one answer, or of one line of a stream
EXCERPT = 300  # bytes of an answer that is not etcd's that are read, to describe it


def check_form(response: http.client.HTTPResponse) -> None:
    """Raises WrongServer for an answer that is not plain JSON, as a proxy or another server gives; its status, its type
    and its beginning are in the text. Raises Unreachable if a proxy says that etcd does not answer."""
    kind = response.headers.get_content_type() if "content-type" in response.headers else "no content type"
    coding = response.headers.get("content-encoding", "identity")
    if kind == "application/json" and coding == "identity":
        return
    coded = "" if coding == "identity" else f", encoded as {coding[:40]}"
    where = f", which leads to {response.headers['location'][:200]}" if "location" in response.headers else ""
    text = f"it answers HTTP {response.status} with {kind[:80]}{coded}{where}"
    if response.status in (502, 503, 504):
        raise Unreachable(f"{text}: a proxy before etcd")
    begins = " ".join(response.read(EXCERPT).decode("ascii", "replace").split())[:100] if not coded else ""
    raise WrongServer(f"{text}, not with the JSON of etcd's gateway" + (f": {begins!a}" if begins else ""))


def read_line(response: http.client.HTTPResponse) -> bytes:
    """The next line. Raises Compacted if it is longer than `LONGEST`, ConnectionError at the end, OSError."""
    line = response.readline(LONGEST)
    if not line:
        raise ConnectionError("etcd has ended it")
    if not line.endswith(b"\n"):
        raise (
            Compacted(11, f"a change of more than {LONGEST} bytes")
            if len(line) >= LONGEST
            else ConnectionError("it was cut off")
        )
    return line
