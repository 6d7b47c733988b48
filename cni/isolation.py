"""Which isolation network a container joins.

An explicit name takes precedence. Without one, a service of mode `isolated` is in the network of its own name.
Otherwise the container joins no isolation network and is on the flat mesh (contract 5.1). The empty string is a valid
name, not "none". Networks and services share one namespace: the network `web` and the isolated service `web` are the
same isolation network.
"""

NETWORK_LABEL = "com.zlayer.isolation_network"
MODE_LABEL = "com.zlayer.overlay.mode"
SERVICE_LABEL = "com.zlayer.service"
ATTACH_LABEL = "com.zlayer.overlay.attach"
"""Not a matter of isolation, and here beside the other annotations: the kind of attach of the service."""

NETWORKS_LABEL = "com.zlayer.isolation_networks"
"""An annotation of a Namespace: the isolation networks that its Pods may name, separated by commas; `*` for any."""

EDGE_FENCE = "edge:"
"""Prefix of the isolation networks that restrict an edge peer to its allowed destinations (`naming.edge_fence`)."""

AUTO, SHARED, DEDICATED, ISOLATED = "auto", "shared", "dedicated", "isolated"
MODES = (AUTO, SHARED, DEDICATED, ISOLATED)

# Exactly Unicode's White_Space; Python's strip() also removes the separators U+001C to U+001F.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def mode_of_label(text: str) -> str:
    """The mode in a label: trimmed, case ignored; `auto` for any other text."""
    mode = text.strip(_WHITE_SPACE).lower()
    return mode if mode in MODES else AUTO


def isolation_network(explicit: str | None, mode: str, service: str) -> str | None:
    """The isolation network to join; None for none. `explicit` is None if no network was named."""
    if explicit is not None:
        return explicit
    return service if mode == ISOLATED else None
