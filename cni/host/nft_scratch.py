"""What this kernel makes of an nft text, tried in a network namespace that ends with its thread and its sockets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from cni.host import netns, nft_rules
from cni.host.nft import Nft, NftError, NftUnavailable


def rules_of(text: str, table: str) -> nft_rules.Tables:
    """The kernel's encoding of a text, loaded into a scratch network namespace that is deleted afterwards.

    The result is comparable with that of `Nft.rules`. Costs some 10 ms. Raises NftError, OSError.
    """
    with ThreadPoolExecutor(1, "scratch") as pool:
        return pool.submit(_rules_of, text, table).result()


def accepts(text: str) -> bool:
    """Whether this kernel and libnftables accept a text; tried in a scratch network namespace. Raises OSError."""
    with ThreadPoolExecutor(1, "scratch") as pool:
        return pool.submit(_accepts, text).result()


def _accepts(text: str) -> bool:
    netns.leave()
    try:
        nft = Nft()
    except NftUnavailable:
        return False
    try:
        nft.run(text)
    except NftError:
        return False
    finally:
        nft.close()
    return True


def _rules_of(text: str, table: str) -> nft_rules.Tables:
    netns.leave()
    nft = Nft()
    try:
        nft.run(text)
        tables = nft.rules(table)
        assert tables is not None, "no other program changes this namespace"
        return tables
    finally:
        nft.close()
