"""Decodes bytes to JSON objects, strictly, and objects to typed values, key by key.

Case is ignored in keys, as in the runtimes' own decoder (containerd sends `Servers`, the conventions say `servers`).
JSON `null` is equal to an absent key. A wrong type is code 6.
"""

import json

from cni.errors import UndecodableContent

MAX_BYTES = 16 << 20
"""The longest configuration we decode, in bytes; real ones are a few thousand."""


class Repeated(dict[str, object]):
    """A JSON object with a repeated key, case ignored; it holds the last value."""

    keys_given_twice: frozenset[str]


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    folded = [key.casefold() for key, _ in pairs]
    if len(set(folded)) == len(folded):
        return dict(pairs)
    decoded = Repeated(pairs)
    decoded.keys_given_twice = frozenset(key for key in folded if folded.count(key) > 1)
    return decoded


def _refuse_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")


def decode_json(data: bytes) -> object:
    """Any JSON document, decoded strictly.

    Raises `UndecodableContent` for bytes that are not UTF-8, a byte order mark, NaN and Infinity, lone surrogates,
    trailing data, nesting beyond Python's limit, and more than MAX_BYTES.
    """
    if len(data) > MAX_BYTES:
        raise UndecodableContent(f"{len(data)} bytes, at most {MAX_BYTES} are read")
    try:
        text = data.decode()
        value: object = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be written again
    except RecursionError:
        raise UndecodableContent("nested too deeply") from None
    except ValueError as error:
        # UnicodeDecodeError, JSONDecodeError and Python's own limit on a number's digits are all of this kind.
        raise UndecodableContent(str(error)) from None
    return value


def show(value: object) -> str:
    """`value` as JSON, shortened, for a message."""
    try:
        text = json.dumps(value)
    except RecursionError:
        return "a very deep value"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Fields:
    """One JSON object, read key by key; `path` is its name in messages, empty for the outermost object."""

    def __init__(self, raw: dict[str, object], path: str = "") -> None:
        self.raw = raw
        self.path = path
        self._by_key = {key.casefold(): value for key, value in raw.items()}
        self._twice = raw.keys_given_twice if isinstance(raw, Repeated) else frozenset()

    def where(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """Whether the key is present, also with `null`."""
        return key.casefold() in self._by_key

    def get(self, key: str) -> object:
        """The value, `None` if it is absent or null. Raises UndecodableContent (6) if the key is given twice."""
        if key.casefold() in self._twice:
            raise UndecodableContent(f"{self.where(key)} is given more than once")
        return self._by_key.get(key.casefold())

    def raw_value(self, key: str) -> object:
        """The value without any check; the last one of a repeated key."""
        return self._by_key.get(key.casefold())

    def text(self, key: str) -> str | None:
        return as_text(self.get(key), self.where(key))

    def boolean(self, key: str) -> bool | None:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise wrong_type(self.where(key), "true or false", value)

    def integer(self, key: str) -> int | None:
        value = self.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise wrong_type(self.where(key), "an integer", value)

    def inner(self, key: str) -> "Fields | None":
        return as_object(self.get(key), self.where(key))

    def items(self, key: str) -> list[object] | None:
        value = self.get(key)
        if value is None or isinstance(value, list):
            return value
        raise wrong_type(self.where(key), "a list", value)

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings."""
        items = self.items(key)
        return None if items is None else texts_of(items, self.where(key))

    def objects(self, key: str) -> list["Fields"]:
        """A list of objects; empty if it is absent."""
        objects = []
        for index, item in enumerate(self.items(key) or []):
            path = f"{self.where(key)}[{index}]"
            fields = as_object(item, path)
            if fields is None:
                raise wrong_type(path, "an object", item)
            objects.append(fields)
        return objects

    def mapping(self, key: str) -> dict[str, str]:
        """An object from strings to strings, its keys unchanged; empty if it is absent."""
        fields = self.inner(key)
        return {} if fields is None else fields.as_mapping()

    def as_mapping(self) -> dict[str, str]:
        return {key: as_text(value, self.where(key)) or "" for key, value in self.raw.items()}

    def unknown(self, valid: frozenset[str]) -> tuple[str, ...]:
        """The paths of the keys that are not in `valid`, a set of case-folded keys."""
        return tuple(self.where(key) for key in self.raw if key.casefold() not in valid)


def as_text(value: object, path: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(path, "a string", value)


def as_object(value: object, path: str) -> Fields | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return Fields(value, path)
    raise wrong_type(path, "an object", value)


def texts_of(items: list[object], path: str) -> tuple[str, ...]:
    texts = []
    for index, item in enumerate(items):
        if not isinstance(item, str):
            raise wrong_type(f"{path}[{index}]", "a string", item)
        texts.append(item)
    return tuple(texts)


def wrong_type(path: str, expected: str, value: object) -> UndecodableContent:
    return UndecodableContent(f"{path}: expected {expected}, found {show(value)}")


def fold(*keys: str) -> frozenset[str]:
    """The keys, case-folded, as `Fields.unknown` needs them."""
    return frozenset(key.casefold() for key in keys)
