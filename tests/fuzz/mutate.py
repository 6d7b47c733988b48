"""Changes to an input that keep JSON what it is: a bit flipped inside JSON is almost always only bad JSON."""

from __future__ import annotations

import json
import random
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 65536, 1 << 31, 1 << 63, 1 << 64, -(1 << 63), 1e400, 0.5, [], {}, [[]], {"": ""}),
    *("", " ", "/", ".", "..", "\0", "\n", "\x1b[2K", "a" * 300, "é" * 40, "\u202e", "\ud800", "${K8S_POD_NAME}"),
    *("0.0.0.0/0", "::/0", "10.200.0.0/16", "10.200.1.0/26", "10.200.1.5", "fd00::1%eth0", "::ffff:10.0.0.1"),
    *("010.1.1.1", "127.0.0.1", "10.0.0.1:99999", "[::1]:51420", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="),
)


def mutate(data: bytes, rng: random.Random) -> bytes | None:
    """The input with one change inside one of the JSON texts in it; None if there is none."""
    starts = [at for at, byte in enumerate(data) if byte in b"{["]
    rng.shuffle(starts)
    for start in sorted(starts[:4]):
        try:
            value, length = json.JSONDecoder().raw_decode(data[start:].decode())
        except (ValueError, RecursionError):
            continue
        if not isinstance(value, dict | list):
            continue
        end = start + len(data[start:].decode()[:length].encode())
        try:
            text = json.dumps(_changed(value, rng)).encode()
        except (ValueError, RecursionError):
            return None
        return data[:start] + text + data[end:]
    return None


def _changed(value: Any, rng: random.Random) -> Any:
    """The value with one change somewhere below it."""
    holder, key, at = [value], 0, value  # type: Any, Any, Any
    while isinstance(at, dict | list) and at and (holder[key] is value or rng.random() < 0.7):
        holder = at
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        at = holder[key]
    match rng.randrange(8):
        case 0 | 1 | 2:
            holder[key] = rng.choice(ODD)
        case 3:
            del holder[key]
        case 4 if isinstance(holder, dict):
            holder[rng.choice((key.upper(), key + " ", "", "x" * 40, rng.choice(list(holder))))] = at
        case 4:
            holder.append(at)
        case 5 if isinstance(at, str):
            other = str(rng.choice(ODD))
            cut = rng.randrange(len(at) + 1)
            holder[key] = at[:cut] + other + at[cut:]
        case 5 | 6 if isinstance(holder, list):
            holder[key:key] = [at] * rng.choice((1, 2, 50))
        case 7:
            for _ in range(rng.choice((1, 3, 200))):
                at = [at] if rng.random() < 0.5 else {"a": at}
            holder[key] = at
        case _:
            holder[key] = [at]
    return value
