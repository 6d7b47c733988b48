"""WireGuard keys, and the file that keeps the node's."""

from __future__ import annotations

import base64
import json
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import defaults
from cni.daemon import public_keys
from cni.daemon.model import keys
from cni.daemon.state import identity
from cni.errors import PoolExhausted, StateUnusable
from cni.host.libcrypto import Libcrypto

ENGINES = (Libcrypto().x25519_public, keys.x25519_public)


def b64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


@pytest.mark.parametrize(
    ("private", "public"),
    [  # RFC 7748, section 6.1: Alice's and Bob's
        (
            "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
        ),
        (
            "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
            "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
        ),
    ],
)
def test_public_keys_of_rfc_7748(private: str, public: str) -> None:
    for engine in ENGINES:
        assert engine(bytes.fromhex(private)).hex() == public
    assert public_keys.public_of(b64(private)) == b64(public)


def test_the_base_point_as_a_private_key() -> None:
    """RFC 7748, section 5.2, after one iteration: 9 times the base point. The key is not clamped, so both clamp it."""
    for engine in ENGINES:
        public = engine((9).to_bytes(32, "little"))
        assert public.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_libcrypto_and_python_agree(private: bytes) -> None:
    one, two = ENGINES
    assert one(private) == two(private)


def test_public_keys_come_from_libcrypto(caplog: pytest.LogCaptureFixture) -> None:
    public_keys.engine.cache_clear()
    with caplog.at_level("INFO"):
        assert isinstance(getattr(public_keys.engine(), "__self__", None), Libcrypto)
    assert "computed by libcrypto: library=libcrypto.so" in caplog.text


def test_without_libcrypto_they_come_from_python_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(public_keys, "Libcrypto", missing)
    public_keys.engine.cache_clear()
    try:
        assert public_keys.engine() is keys.x25519_public
    finally:
        public_keys.engine.cache_clear()
    assert "not in constant time" in caplog.text
    assert "no such library" in caplog.text


@pytest.mark.parametrize("private", ["", "AAAA", b64("00" * 31), b64("00" * 33), "!"])
def test_what_is_no_private_key_has_no_public_key(private: str) -> None:
    with pytest.raises(ValueError, match="not"):
        public_keys.public_of(private)


def test_the_ladder_of_rfc_7748() -> None:
    """Section 5.2: one step, and a thousand."""
    scalar = u = (9).to_bytes(32, "little")
    scalar, u = keys.x25519(scalar, int.from_bytes(u, "little")), scalar
    assert scalar.hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"
    for _ in range(999):
        scalar, u = keys.x25519(scalar, int.from_bytes(u, "little") & (1 << 255) - 1), scalar
    assert scalar.hex() == "684cf59ba83309552800ef566f2f4d3c1c3887c49360e3875f2eb94d99532c51"


def test_a_generated_key_is_clamped_and_new() -> None:
    raw = keys.decode(keys.generate())
    assert raw == keys.clamp(raw)
    assert keys.generate() != keys.generate()


def test_the_node_keeps_its_key(tmp_path: Path) -> None:
    first = identity.Identity(str(tmp_path / "data"))
    public = first.public_key()
    assert first.public_key() == public
    assert identity.Identity(str(tmp_path / "data")).public_key() == public


def test_the_file_is_roots_alone(tmp_path: Path) -> None:
    identity.Identity(str(tmp_path)).public_key()
    path = tmp_path / identity.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [identity.FILE]
    assert set(json.loads(path.read_bytes())) == {"node", "dedicated", "member"}


def test_a_dedicated_service_keeps_key_and_port_until_forgotten(tmp_path: Path) -> None:
    ours = identity.Identity(str(tmp_path))
    db, mail = ours.dedicated("db"), ours.dedicated("mail")
    assert (db.port, mail.port) == (51421, 51422)
    assert identity.Identity(str(tmp_path)).dedicated("db") == db
    ours.forget("db")
    ours.forget("db")
    again = ours.dedicated("cache")
    assert again.port == 51421
    assert again.private_key != db.private_key


def test_the_band_of_ports_ends() -> None:
    taken = set(range(defaults.FIRST_PORT, defaults.LAST_PORT + 1))
    assert identity.lowest_free(taken - {51500}) == 51500
    with pytest.raises(PoolExhausted) as caught:
        identity.lowest_free(taken)
    assert caught.value.msg == "dedicated-overlay port band exhausted (51421..=51676, 256 ports)"


def test_a_damaged_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / identity.FILE
    path.write_text("{")
    with pytest.raises(StateUnusable):
        identity.Identity(str(tmp_path)).public_key()
    assert path.read_text() == "{"


def test_many_threads_make_one_key(tmp_path: Path) -> None:
    ours = identity.Identity(str(tmp_path))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(ours.public_key())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
