"""Edge tokens, both ways."""

import base64
import json

import pytest

from cni.overlay.edge import decode_token, encode_token
from cni.overlay.errors import CodecError
from cni.overlay.replies import EdgeConfig

CONFIG = EdgeConfig(
    version=1,
    name="ci-runner-7 é",
    overlay_ip="10.200.0.18",
    prefix_len=28,
    private_key="yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
    public_key="xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
    peers=(),
    expires_at_unix=1700000600,
)


def token(text: str) -> str:
    return "zledge1." + base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def test_a_token_holds_the_plain_struct():
    prefix, _, body = encode_token(CONFIG).partition(".")
    assert prefix == "zledge1"
    document = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    assert list(document) == [
        "version", "name", "overlay_ip", "prefix_len", "private_key", "public_key", "peers", "expires_at_unix",
    ]  # fmt: skip
    assert decode_token(encode_token(CONFIG)) == CONFIG


def test_tokens_of_every_length_come_back():
    for n in range(9):
        config = EdgeConfig(**{**{f: getattr(CONFIG, f) for f in CONFIG.__struct_fields__}, "name": "x" * n})
        text = encode_token(config)
        assert "=" not in text
        assert decode_token(text) == config


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "begin with zledge1"),
        ("zledge2.e30", "begin with zledge1"),
        ("zledge1.e30=", "base64"),
        ("zledge1.e31", "base64"),  # loose bits
        ("zledge1.a+/_", "base64"),
        ("zledge1.!", "edge token"),
        ("zledge1.é", "edge token"),
        (" " + token('{"version":1}'), "begin with zledge1"),
        (token('{"version":1}') + "\n", "base64"),
        (token("{"), "codec"),
        (token("[1]"), "no version"),
        (token('{"version":true}'), "no version"),
        (token('{"version":2}'), "version 2 is not supported"),
        (token('{"version":1,"version":1}'), "no version"),
        (token('{"version":1}'), "missing required field"),
    ],
)
def test_what_is_no_token(text, why):
    with pytest.raises(CodecError, match=why):
        decode_token(text)
