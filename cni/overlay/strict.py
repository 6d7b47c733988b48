"""JSON as strictly as ZLayer's daemon reads it: UTF-8, one document, nothing Python is lenient about.

Python's parser sniffs other encodings, takes NaN, lone surrogates, infinite numbers and repeated keys, and
knows only one kind of integer. Each of those is refused here, or marked so that the typed decoding refuses it
where a field of the protocol is concerned. Contract 2.1.
"""

import json
import math
from collections.abc import Iterator
from typing import Any

from cni.overlay.errors import CodecError

DEEPEST = 127
"""How many arrays and objects may be open at once."""


class Repeated:
    """The value of a key given more than once. No field takes it; where nobody reads the key it does no harm."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values


def parse(data: bytes) -> Any:
    """The document in `data` as dicts, lists, strings, numbers. Raises CodecError.

    An integer literal that Rust would not read as u64 or i64 comes back as a float, so that no integer field
    takes it; a key given twice has a `Repeated` for its value.
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
        out.update((key, Repeated(values)) for key, values in seen.items() if len(values) > 1)
    return out


def _integer(literal: str) -> int | float:
    # "-0" is a floating point number to Rust, and so is what fits neither of its 64-bit integers.
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
    """How deep arrays and objects nest in `value`. It does not recurse."""
    depth, level = 0, [value]
    while inside := [v for v in level if isinstance(v, dict | list)]:
        depth += 1
        level = [child for v in inside for child in _children(v)]
    return depth


def _children(value: dict[str, Any] | list[Any]) -> Iterator[Any]:
    for child in value.values() if isinstance(value, dict) else value:
        if isinstance(child, Repeated):
            yield from child.values
        else:
            yield child


def _refuse_lone_surrogates(value: Any) -> None:
    """Raise UnicodeEncodeError, a ValueError, if a string or key in `value` is not Unicode text."""
    json.dumps(value, ensure_ascii=False, default=lambda repeated: repeated.values).encode("utf-8")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=_constant)
