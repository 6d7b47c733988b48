"""Edge tokens: an edge peer's configuration as one line of text that can be pasted (contract 2.6).

`zledge1.` and then the URL-safe base64, without padding, of the configuration's JSON. The protocol never carries it.
It contains the private key, so that any holder of the token can act as the peer.
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
    """The configuration in `token`. White space around the token is an error.

    Raises CodecError for a wrong prefix, malformed base64, a version other than 1 (checked before the rest, so that
    the error for a newer token names its version), and an incomplete configuration.
    """
    if not token.startswith(PREFIX):
        raise CodecError(f"not an edge token: it does not begin with {PREFIX}")
    document = strict.parse(_from_base64(token.removeprefix(PREFIX)))
    version: Any = document.get("version") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise CodecError("edge token: it has no version")
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
    # Python accepts "+", "/", padding and unused bits at the end. One configuration must have one spelling.
    if base64.urlsafe_b64encode(body).rstrip(b"=").decode("ascii") != text:
        raise CodecError("edge token: not URL-safe base64 without padding")
    return body
