"""Edge tokens: an edge peer's configuration as one line of text that can be pasted (contract 2.6).

`zledge1.` and then the URL-safe base64, without padding, of the configuration's JSON. It is never on the wire.
It holds a private key: whoever has the token is the peer.
"""

import base64
import binascii
from typing import Any

import msgspec

from cni.overlay import strict
from cni.overlay.errors import CodecError
from cni.overlay.replies import EdgeConfig

PREFIX = "zledge1."
VERSION = 1
_TAG = b'{"result":"edge_config",'


def encode_token(config: EdgeConfig) -> str:
    """The token of `config`."""
    body = b"{" + msgspec.json.encode(config).removeprefix(_TAG)
    return PREFIX + base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii")


def decode_token(token: str) -> EdgeConfig:
    """The configuration in `token`, which is taken as it is: white space around it is not of it.

    Raises CodecError for a wrong prefix, base64 that is not, a version other than 1 (looked at before the rest,
    so that a newer token is named as such), and a configuration that is not whole.
    """
    if not token.startswith(PREFIX):
        raise CodecError(f"not an edge token: it does not begin with {PREFIX}")
    document = strict.parse(_from_base64(token.removeprefix(PREFIX)))
    version: Any = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise CodecError("edge token: no version in it")
    if version != VERSION:
        raise CodecError(f"edge token: version {version} is not supported, only {VERSION} is")
    try:
        return msgspec.convert({**document, "result": "edge_config"}, EdgeConfig)
    except msgspec.ValidationError as e:
        raise CodecError(f"edge token: {e}") from e


def _from_base64(text: str) -> bytes:
    try:
        body = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as e:
        raise CodecError(f"edge token: {e}") from e
    # Python forgives "+", "/", padding and loose bits at the end; one token must have one spelling.
    if base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii") != text:
        raise CodecError("edge token: not URL-safe base64 without padding")
    return body
