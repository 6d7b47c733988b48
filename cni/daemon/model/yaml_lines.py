"""Where a key stands in a YAML document: paths such as `peers[0].allowed_ips`, and their lines. Pure."""

from __future__ import annotations

import re
from typing import Any

import yaml


def path_of(fault: str) -> str:
    """The path with which a fault's text begins; empty if it begins otherwise."""
    match = re.match(r"[A-Za-z0-9_-]+(\[\d+\]|\.[A-Za-z0-9_-]+)*(?=: | \()", fault)
    return match[0] if match else ""


def steps_of(path: str) -> list[str]:
    """The keys and indices of a path."""
    return re.findall(r"[^.\[\]]+", path)


def remove(document: dict[Any, Any], path: str, *, whole: bool) -> bool:
    """Remove what is at the path, with `whole` its outermost key; returns whether anything was removed. Elements of
    lists keep their places: instead of one, the key of its list is removed."""
    steps = steps_of(path)
    if not steps:
        return False
    holder, last = document, steps[0]
    value: Any = document
    for step in [] if whole else steps:
        if isinstance(value, dict):
            holder, last = value, step
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
    if last not in holder:
        holder, last = document, steps[0]
    return holder.pop(last, _NOTHING) is not _NOTHING


_NOTHING = object()


class Places:
    """The lines of a document that was read before."""

    def __init__(self, text: str, loader: type[yaml.SafeLoader]) -> None:
        self._root = yaml.compose(text, loader)

    def line_of(self, fault: str) -> str:
        """The line of the path with which a fault begins, as " (line 3)"; empty if it has none."""
        node: Any = self._root
        line = 0
        for step in steps_of(path_of(fault)):
            if isinstance(node, yaml.MappingNode):
                pairs = [(key, value) for key, value in node.value if getattr(key, "value", None) == step]
                if not pairs:
                    break
                key, node = pairs[-1]
                line = key.start_mark.line + 1
            elif isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
                node = node.value[int(step)]
                line = node.start_mark.line + 1
        return f" (line {line})" if line else ""
