"""Which isolation network a container joins.

An explicit name wins; without one, mode `isolated` fences the service to a network named after itself;
otherwise the container joins none and lives on the flat mesh (contract 5.1). The empty string is a real
name, not "none". Names and services share one namespace: the network `web` and the isolated service `web`
are one fence.
"""

NETWORK_LABEL = "com.zlayer.isolation_network"
MODE_LABEL = "com.zlayer.overlay.mode"
SERVICE_LABEL = "com.zlayer.service"

EDGE_FENCE = "edge:"
"""How the networks begin that hold an edge peer to what it was allowed (`naming.edge_fence`)."""

AUTO, SHARED, DEDICATED, ISOLATED = "auto", "shared", "dedicated", "isolated"
MODES = (AUTO, SHARED, DEDICATED, ISOLATED)

# Unicode's White_Space and nothing else; Python's own strip() also takes the separators 1c to 1f.
_WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


def mode_of_label(text: str) -> str:
    """The mode a label asks for: trimmed, letter case aside; anything that is no mode is `auto`."""
    mode = text.strip(_WHITE_SPACE).lower()
    return mode if mode in MODES else AUTO


def isolation_network(explicit: str | None, mode: str, service: str) -> str | None:
    """The network to join, or None for none. `explicit` is None where nobody named one."""
    if explicit is not None:
        return explicit
    return service if mode == ISOLATED else None
