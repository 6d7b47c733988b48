"""Whether a connection has still an address of this host."""

from __future__ import annotations

import socket

import pytest

from cni.host.own_networks import has_own_address, is_own

from .conftest import Space

pytestmark = pytest.mark.root


@pytest.mark.parametrize("address", ["192.0.2.7", "2001:db8::7"])
def test_a_connection_of_a_former_address_is_known(container: Space, address: str) -> None:
    prefix = "128" if ":" in address else "32"
    container.ip("link set lo up")
    container.ip(
        f"address add {address}/{prefix} dev lo nodad" if ":" in address else f"address add {address}/32 dev lo"
    )

    def look() -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.create_server((address, 0), family=family) as server:
            place = server.getsockname()
            with socket.create_connection((address, place[1])) as connection:
                assert has_own_address(connection) and is_own(address)
                container.ip(f"address delete {address}/{prefix} dev lo")
                assert not has_own_address(connection) and not is_own(address)

    container.inside(look)
