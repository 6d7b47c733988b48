"""The files of network policies in a directory: which they are, and their text."""

from __future__ import annotations

from pathlib import Path

from cni.errors import InvalidConfig

SUFFIXES = (".yaml", ".yml", ".json")
_LARGEST = 4 << 20  # bytes of a file


def files_of(directory: str) -> list[Path]:
    """The files of policies in a directory, by name; none if it does not exist. Raises OSError."""
    try:
        entries = sorted(Path(directory).iterdir())
    except FileNotFoundError:
        return []
    return [path for path in entries if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()]


def read_file(path: Path) -> str:
    """The text of a file of policies. Raises OSError, InvalidConfig."""
    with path.open("rb") as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise InvalidConfig(f"the file is larger than {_LARGEST} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidConfig(f"the file is no UTF-8: {error}") from error
