"""The HTTP of the page: requests are read and judged, answers are written. Pure.

Every page of the Internet that a browser shows may send requests to a loopback address, by its number or by a name that
its owner lets point there (DNS rebinding). So only requests are answered that name a loopback address as host, come
from no other page, carry the key of this run in their path, and read.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from ipaddress import ip_address

LONGEST = 8192  # bytes of a request's head
HOME, LIVE = "", "live"  # the paths below the key
_OWN = ("none", "same-origin")  # Sec-Fetch-Site: typed by a person, or sent by the page itself


@dataclass(frozen=True, slots=True)
class Request:
    """The head of a request. `site`: the header Sec-Fetch-Site, "" without it."""

    method: str
    path: str
    host: str
    site: str


def parse(head: bytes) -> Request | None:
    """The request of a head that ends with an empty line; None if it is none of HTTP/1. A header that stands there
    twice counts as wrong."""
    lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0") or not words[1].startswith("/"):
        return None
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or name != name.strip() or name.lower() in headers:
            return None
        headers[name.lower()] = value.strip()
    return Request(words[0], words[1], headers.get("host", ""), headers.get("sec-fetch-site", ""))


def refusal(request: Request | None, key: str, port: int | None) -> str:
    """The status with which a request is refused; "" if it is answered. `port`: None at a Unix socket, where the port
    is that of whatever forwards to it."""
    if request is None:
        return "400 Bad Request"
    if not is_loopback(request.host, port):
        return "421 Misdirected Request"
    if request.site and request.site not in _OWN:
        return "403 Forbidden"
    if request.method not in ("GET", "HEAD"):
        return "405 Method Not Allowed"
    return "" if below(request.path, key) in (HOME, LIVE) else "404 Not Found"


def below(path: str, key: str) -> str | None:
    """What follows the key in a path; None without the key."""
    start = f"/{key}/" if key else "/"
    is_key = hmac.compare_digest(path[: len(start)].encode("latin-1"), start.encode())
    return path[len(start) :] if is_key else None


def is_loopback(host: str, port: int | None) -> bool:
    """Whether a header Host names a loopback address, and `port` if that is known."""
    name, colon, number = host.rpartition(":")
    if not colon or host.endswith("]"):
        name, number = host, "80"
    if not number.isascii() or not number.isdigit() or (port is not None and int(number) != port):
        return False
    if name == "localhost":
        return True
    try:
        return ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def head(status: str, kind: str, length: int | None, policy: str) -> bytes:
    """The head of an answer. `length`: None for a stream, which ends with its connection; `policy`: the content
    security policy, which allows a page nothing that it does not name."""
    lines = [
        f"HTTP/1.1 {status}",
        f"Content-Type: {kind}; charset=utf-8",
        *([f"Content-Length: {length}"] if length is not None else []),
        "Connection: close",
        "Cache-Control: no-store",
        f"Content-Security-Policy: {policy}",
        "Cross-Origin-Opener-Policy: same-origin",
        "Cross-Origin-Resource-Policy: same-origin",
        "Referrer-Policy: no-referrer",
        "X-Content-Type-Options: nosniff",
        "X-Frame-Options: DENY",
    ]
    return "\r\n".join([*lines, "", ""]).encode()
