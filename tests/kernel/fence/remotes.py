"""Members on other nodes, as changes of their own: the daemon makes such a change from two sets of them."""

from collections.abc import Iterable

from cni.daemon.fence import elements
from cni.host.nft_elements import Change


def add_remote(network: str | None, addresses: Iterable[str]) -> Change:
    """Members of `network` on other nodes. Idempotent; the network exists."""
    ours = elements.of_remote(network, addresses)
    return elements.change(take=(element for element in ours if element.verdict), add=ours)


def remove_remote(network: str | None, addresses: Iterable[str]) -> Change:
    """They are members no more. Idempotent."""
    return elements.change(take=elements.of_remote(network, addresses))
