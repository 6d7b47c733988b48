"""Frames, against texts printed and judged by upstream's own type definitions."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.overlay import wire
from cni.overlay.errors import CodecError

VECTORS = Path(__file__).parents[1] / "vectors"
GOLDEN = json.loads((VECTORS / "golden-frames.json").read_text("utf-8"))
CASES = json.loads((VECTORS / "decode-cases.json").read_text("utf-8"))
QUIRKS = {"array form of a unit op (serde quirk)", "array form of the frame (serde quirk)"}


def refused(body: str | bytes) -> bool:
    try:
        wire.decode_frame(body.encode() if isinstance(body, str) else body)
    except CodecError:
        return True
    return False


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_every_golden_frame_both_ways(case):
    frame = wire.decode_frame(case["json"].encode())
    assert wire.encode(frame).decode() == case["json"]
    kind = type(frame).__name__
    assert kind == {"req": "RequestFrame", "res": "ResponseFrame"}.get(case["name"][:3], kind)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_what_is_taken_and_what_is_refused(case):
    if not case["accept"] or case["why"] in QUIRKS:
        assert refused(case["json"])
        return
    assert wire.encode(wire.decode_frame(case["json"].encode())).decode() == case["canonical"]


def test_the_golden_frames_name_every_type():
    seen = {type(f.request if isinstance(f, wire.RequestFrame) else f.response if hasattr(f, "response") else f)
            for case in GOLDEN for f in [wire.decode_frame(case["json"].encode())]}  # fmt: skip
    assert len(wire.AnyRequest.__args__) == 26
    assert len(wire.AnyReply.__args__) == 12
    assert seen == {*wire.AnyRequest.__args__, *wire.AnyReply.__args__, *wire.AnyEvent.__args__}


def request(inner: str) -> str:
    return f'{{"frame":"request","id":1,"request":{inner}}}'


@pytest.mark.parametrize(
    "body",
    [
        request('{"op":25}'),
        request('{"op":["status"]}'),
        request('{"op":null}'),
        request('{"op":"setup_service_overlay","service":"w","mode":{"auto":null}}'),
        request('{"op":"detach_container","handle":["linux_pid",7]}'),
        request('{"op":"detach_container","handle":{"platform":0,"pid":7}}'),
        request('{"op":"remove_peer","pubkey":"k","scope":{}}'),
        request('{"op":"set_local_node_id","node_id":1.5}'),
        request('{"op":"unregister_dns","name":"\\udc00\\ud800"}'),
        request('{"op":"status","\\ud800":1}'),
        request('{"op":"status","x":1,"x":["\\ud800"]}'),
        request('{"op":"status","x":-Infinity}'),
        request('{"op":"status","x":1' + "0" * 400 + "}"),
        request('{"op":"status","x":-1e999}'),
        '{"frame":"request","frame":"request","id":1,"request":{"op":"status"}}',
        '{"frame":"request","id":1,"id":1,"request":{"op":"status"}}',
        '{"frame":1,"id":1,"request":{"op":"status"}}',
        '{"frame":["request"]}',
        '{"event":"peer_health_changed","pubkey":"k","healthy":true}',
        '{"frame":"event","event":"peer_health_changed","event":"peer_health_changed","pubkey":"k","healthy":true}',
        "null",
        "[]",
        '"request"',
        "",
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda body: body[:60],
)
def test_more_that_is_refused(body):
    assert refused(body)


@pytest.mark.parametrize(
    "body",
    [b"\xff", '{"frame"}'.encode("utf-16"), b'\xef\xbb\xbf{"frame":"request"}', b'{"a":"\xed\xa0\x80"}'],
)
def test_bytes_that_are_not_utf8_are_refused(body):
    assert refused(body)


@pytest.mark.parametrize("value", ["-0", "1.0", "1e0", '"1"', "true", "null", "18446744073709551616", "[]"])
@pytest.mark.parametrize("shape", ['{"op":"set_local_node_id","node_id":%s}',
                                   '{"op":"detach_container","handle":{"platform":"linux_pid","pid":%s}}',
                                   '{"op":"mint_edge_peer","name":"n","node_endpoint":"e","ttl_secs":%s}'])  # fmt: skip
def test_integers_are_integers(shape, value):
    assert not refused(request(shape % "1"))
    assert refused(request(shape % value))


def test_the_signed_field_is_sixty_four_bits_wide():
    text = (
        '{"frame":"response","id":1,"response":{"result":"status","peer_count":0,"service_count":0,"peers":'
        '[{"public_key":"","endpoint":"","allowed_ips":"","last_handshake_unix_secs":%d}]}}'
    )
    for good in (-(2**63), -1, 2**63 - 1):
        assert wire.encode(wire.decode_frame((text % good).encode())).decode() == text % good
    for bad in (-(2**63) - 1, 2**63):
        assert refused(text % bad)


def nested(depth: int) -> str:
    return request('{"op":"status","x":' + "[" * depth + "]" * depth + "}")


def test_nesting_stops_where_serdes_does():
    assert not refused(nested(125))
    assert refused(nested(126))
    # Brackets in text are not nesting.
    assert not refused(request('{"op":"unregister_dns","name":"' + "[{" * 300 + '"}'))
    assert refused(request('{"op":"status","x":1,"x":' + "[" * 126 + "]" * 126 + "}"))
    assert not refused(request('{"op":"status","x":1,"x":' + "[" * 125 + "]" * 125 + "}"))


def test_escapes_that_are_text_are_taken():
    frame = wire.decode_frame(request('{"op":"unregister_dns","name":"\\ud83d\\ude80 \\\\ud800"}').encode())
    assert frame.request.name == "🚀 \\ud800"


def test_a_server_tells_requests_from_the_rest():
    assert wire.decode_request_frame(request('{"op":"shutdown"}').encode()).request == wire.Shutdown()
    assert wire.decode_request_frame(b'{"frame":"response","id":1,"response":{"result":"ok"}}') is None
    with pytest.raises(CodecError):
        wire.decode_request_frame(b'{"frame":"request"}')


def test_our_own_field_of_status():
    ours = wire.Status(peer_count=0, service_count=0, server="zlayer-cni/1.0")
    body = wire.encode(wire.ResponseFrame(1, ours)).decode()
    assert body.endswith(',"peer_count":0,"service_count":0,"server":"zlayer-cni/1.0"}}')
    assert wire.decode_frame(body.encode()).response == ours


@pytest.mark.parametrize("strange", ["5", "null", '{"a":1}', '["zlayer-cni/1"]', '"zlayer-cni/1","server":"x"'])
def test_a_strange_value_in_our_own_field_is_as_in_any_unknown_one(strange):
    body = '{"frame":"response","id":1,"response":{"result":"status","peer_count":2,"service_count":3,"server":%s}}'
    assert wire.decode_frame((body % strange).encode()).response == wire.Status(peer_count=2, service_count=3)


@pytest.mark.parametrize(
    "bad",
    [
        wire.SetLocalNodeId(-1),
        wire.SetLocalNodeId(2**64),
        wire.SetLocalNodeId(True),
        wire.SetLocalWgPubkey("\ud800"),
        wire.DetachContainer(wire.LinuxPid(2**32)),
        wire.SetupServiceOverlay("web", "flat"),
        wire.SetLocalWgPubkey(None),
    ],
    ids=repr,
)
def test_a_request_nobody_could_read_is_not_sent(bad):
    with pytest.raises(CodecError):
        wire.encode(wire.RequestFrame(1, bad))


def test_an_unusable_address_is_refused_at_once():
    with pytest.raises(CodecError, match="invalid IP address syntax"):
        wire.ReleaseIp("10.0.0.1/24")
    assert wire.ReleaseIp("FD00:0::1").ip == "fd00::1"


def values(kind):
    """Any value of a wire type: msgspec's own description of it, turned into strategies."""
    info = msgspec.inspect.type_info(kind)
    return _strategy(info)


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ADDRESS = st.ip_addresses().map(str)


def _strategy(info):  # noqa: PLR0911
    match info:
        case msgspec.inspect.IntType(ge=low, le=high):
            return st.integers(low, 2**64 - 1 if high is None else high)
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType():
            return TEXT
        case msgspec.inspect.AnyType():  # `Status.server`: whatever it is not, it is text or nothing afterwards
            return st.none() | TEXT
        case msgspec.inspect.LiteralType(values=texts):
            return st.sampled_from(texts)
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_strategy(item), max_size=3).map(tuple)
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([_strategy(t) for t in types])
        case msgspec.inspect.StructType(cls=cls, fields=fields):
            return st.builds(cls, **{f.name: _field(cls, f) for f in fields})
    raise AssertionError(info)


def _field(cls, f):
    if f.name in cls.ADDRESSES:
        return ADDRESS if f.required else st.none() | ADDRESS
    return _strategy(f.type)


FRAMES = st.one_of(
    st.builds(wire.RequestFrame, st.integers(0, 2**64 - 1), values(wire.AnyRequest)),
    st.builds(wire.ResponseFrame, st.integers(0, 2**64 - 1), values(wire.AnyReply)),
    values(wire.AnyEvent),
)


@settings(deadline=None)
@given(FRAMES)
def test_every_frame_comes_back(frame):
    body = wire.encode(frame)
    assert wire.decode_frame(body) == frame
    # What we print is what json prints: compact, raw non-ASCII, the same escapes.
    assert json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode() == body


@settings(deadline=None)
@given(FRAMES, st.randoms(use_true_random=False))
def test_key_order_and_unknown_keys_do_not_matter(frame, random):
    def shuffled(value):
        if isinstance(value, dict):
            items = [(k, shuffled(v)) for k, v in value.items()] + [("zz", {"zz": [None]})]
            random.shuffle(items)
            return dict(items)
        return [shuffled(v) for v in value] if isinstance(value, list) else value

    body = json.dumps(shuffled(json.loads(wire.encode(frame))))
    assert wire.decode_frame(body.encode()) == frame


@settings(deadline=None)
@given(FRAMES, st.data())
def test_a_mutilated_frame_is_refused_or_read_never_worse(frame, data):
    body = bytearray(wire.encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
        if not body:
            body = bytearray(b"{")
    try:
        again = wire.decode_frame(bytes(body))
    except CodecError:
        return
    assert wire.decode_frame(wire.encode(again)) == again


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_noise_is_refused(noise):
    assert refused(noise)
