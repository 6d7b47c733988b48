"""How the containers of a service are attached: by which of the request, the settings and the record. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from cni.errors import InvalidConfig


def wanted(asked: str, listed: Mapping[str, str], default: str, service: str) -> str:
    """The kind of attach, one of ATTACH_KINDS, that a service without containers gets. `asked`: that of the request, ""
    for none. `listed`, `default`: those of the settings, by service and for the others."""
    return asked or listed.get(service, default)


def kept(asked: str, service: str, running: str) -> str:
    """The kind of attach of a service whose addresses are in use: it stays `running`. Raises InvalidConfig (7) if the
    request is for another one."""
    if asked not in ("", running):
        raise InvalidConfig(
            f"attach: {asked!r}: service {service!r} has containers attached as {running!r}",
            "a service changes its kind of attach while it has no container on this node",
        )
    return running
