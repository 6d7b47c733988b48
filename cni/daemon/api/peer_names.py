"""Finds the peer that an operator names."""

from __future__ import annotations

from cni.daemon.mesh.mesh import Mesh
from cni.daemon.model.wireguard import Target
from cni.errors import InvalidConfig


def find(mesh: Mesh, word: str) -> Target:
    """The peer that `word` names: by its name, guest or edge name, key, or the first 4 or more characters of its key.
    Raises InvalidConfig if that is no peer, or more than one."""
    targets = list(mesh.targets().values())
    exact = [t for t in targets if word in (t.name, t.owner, t.owner.partition(":")[2], t.public_key) and word]
    matches = exact or [t for t in targets if len(word) >= 4 and t.public_key.startswith(word)]
    if len(matches) != 1:
        raise InvalidConfig(f"{word!r} is {'no peer' if not matches else 'more than one peer'} (`zlayer-cni peers`)")
    return matches[0]
