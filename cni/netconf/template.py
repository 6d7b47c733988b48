"""`${NAME}` in a configured text stands for the value of NAME in CNI_ARGS; any other `$` is literal."""

from collections.abc import Mapping

from cni.errors import InvalidConfig


def placeholders(template: str, where: str) -> tuple[str, ...]:
    """The names used in `template`; raises `InvalidConfig` if a `${` is empty or not closed."""
    return tuple(name for _, name in _pieces(template, where) if name)


def substitute(template: str, values: Mapping[str, str], where: str) -> str:
    """`template` with its names replaced; raises `InvalidConfig` naming the one that is absent or empty."""
    filled = []
    for text, name in _pieces(template, where):
        if name and not values.get(name):
            raise InvalidConfig(f'{where}: "{template}" needs {name}, which CNI_ARGS does not give')
        filled.append(text + (values[name] if name else ""))
    return "".join(filled)


def _pieces(template: str, where: str) -> list[tuple[str, str]]:
    """The template as (text, name after it); the name of the last piece is empty."""
    text, *rest = template.split("${")
    pieces = []
    for part in rest:
        name, brace, after = part.partition("}")
        if not (name and brace):
            raise InvalidConfig(f'{where}: "{template}" has a "${{" that names nothing or is never closed')
        pieces.append((text, name))
        text = after
    return [*pieces, (text, "")]
