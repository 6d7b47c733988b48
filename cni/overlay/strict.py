"""JSON as strictly as ZLayer's daemon reads it: UTF-8, one document, without the leniences of Python's parser.

Python's parser detects other encodings, accepts NaN, lone surrogates, infinite numbers and repeated keys, and has
integers of any size. Each of those is refused here, or marked so that the typed decoding refuses it in a field of the
protocol. Contract 2.1.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from cni.overlay.errors import CodecError

DEEPEST = 127
"""How many arrays and objects may be open at once."""


class DuplicateKey:
    """The values of a key that occurs more than once. No field accepts it; under an unknown key it is ignored."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values


def parse(data: bytes) -> Any:
    """The document in `data` as dicts, lists, strings, numbers. Raises CodecError.

    An integer literal that Rust would not read as u64 or i64 becomes a float, so that no integer field accepts it.
    A repeated key has a `DuplicateKey` for its value.
    """
    try:
        text = data.decode("utf-8")
        value = _DECODER.decode(text)
        if "\\u" in text:
            _refuse_lone_surrogates(value)
    except RecursionError:
        raise CodecError("frame codec error: recursion limit exceeded") from None
    except ValueError as e:
        raise CodecError(f"frame codec error: {e}") from e
    if text.count("[") + text.count("{") > DEEPEST and _depth(value) > DEEPEST:
        raise CodecError("frame codec error: recursion limit exceeded")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        seen: dict[str, list[Any]] = {}
        for key, value in pairs:
            seen.setdefault(key, []).append(value)
        out.update((key, DuplicateKey(values)) for key, values in seen.items() if len(values) > 1)
    return out


def _integer(literal: str) -> int | float:
    # To Rust "-0" is a floating point number, and so is a literal that fits neither of its 64-bit integers.
    if literal == "-0" or len(literal) > 20:
        return _float(literal)
    value = int(literal)
    return value if -(1 << 63) <= value < 1 << 64 else float(value)


def _float(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise ValueError("number out of range")
    return value


def _constant(literal: str) -> Any:
    raise ValueError(f"expected value, not {literal}")


def _depth(value: Any) -> int:
    """How deep arrays and objects nest in `value`, without recursion."""
    depth, level = 0, [value]
    while inside := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [child for v in inside for child in _children(v)]
    return depth


def _children(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, DuplicateKey):
            yield from child.values
        else:
            yield child


def _refuse_lone_surrogates(value: Any) -> None:
    """Raise UnicodeEncodeError, a ValueError, if a string or key in `value` is not Unicode text."""
    json.dumps(value, ensure_ascii=False, default=lambda repeated: repeated.values).encode("utf-8")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
