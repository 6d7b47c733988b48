"""Ed25519 by libcrypto and in Python, and what a signed record is."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni.daemon.model import ed25519, signing
from cni.daemon.model.signing import Python, Signer
from cni.host.libcrypto import Libcrypto

# RFC 8032, section 7.1: private key, public key, message, signature.
VECTORS = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
]
ENGINES: list[signing.Engine] = [Libcrypto(), Python()]
KEY = "/zlayer-cni/prod/node/abc"


@pytest.mark.parametrize("engine", ENGINES, ids=["libcrypto", "python"])
@pytest.mark.parametrize(("seed", "public", "message", "signature"), VECTORS)
def test_the_vectors_of_the_rfc(engine: signing.Engine, seed: str, public: str, message: str, signature: str) -> None:
    raw = [bytes.fromhex(each) for each in (seed, public, message, signature)]
    assert engine.public_of(raw[0]) == raw[1]
    assert engine.sign(raw[0], raw[2]) == raw[3]
    assert engine.verify(raw[1], raw[2], raw[3])
    assert not engine.verify(raw[1], raw[2] + b"x", raw[3])
    for at in (0, 31, 32, 63):
        spoiled = bytearray(raw[3])
        spoiled[at] ^= 1
        assert not engine.verify(raw[1], raw[2], bytes(spoiled))


@settings(max_examples=10, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_both_engines_say_the_same(seed: bytes, message: bytes) -> None:
    one, two = ENGINES
    assert one.public_of(seed) == two.public_of(seed)
    assert one.sign(seed, message) == two.sign(seed, message)
    assert two.verify(two.public_of(seed), message, one.sign(seed, message))


@pytest.mark.parametrize("engine", ENGINES, ids=["libcrypto", "python"])
@pytest.mark.parametrize("public", [b"", bytes(31), bytes(33), b"\xff" * 32, b"\x02" + bytes(31)])
def test_what_is_no_key_verifies_nothing(engine: signing.Engine, public: bytes) -> None:
    assert not engine.verify(public, b"", bytes(64))
    assert not engine.verify(public, b"", b"short")


def test_a_signature_with_a_scalar_that_is_too_large_is_refused() -> None:
    """S is unique (RFC 8032, section 5.1.7): else a signature could be changed into another valid one."""
    seed = os.urandom(32)
    public, good = ed25519.public_of(seed), ed25519.sign(seed, b"x")
    order = 2**252 + 27742317777372353535851937790883648493
    other = good[:32] + (int.from_bytes(good[32:], "little") + order).to_bytes(32, "little")
    for engine in ENGINES:
        assert engine.verify(public, b"x", good)
        assert not engine.verify(public, b"x", other)


def test_the_program_here_uses_libcrypto() -> None:
    assert isinstance(signing.engine(), Libcrypto)


def test_without_libcrypto_it_is_done_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise OSError("no such library")

    monkeypatch.setattr(signing, "Libcrypto", missing)
    signing.engine.cache_clear()
    try:
        assert isinstance(signing.engine(), Python)
    finally:
        signing.engine.cache_clear()


def test_a_record_is_signed_for_its_place_and_whole() -> None:
    signer = Signer(signing.generate())
    value = json.dumps({"identity": "abc", "signer": signer.name, "later": {"a": [1]}}).encode()
    sealed = signer.sealed(KEY, value)
    assert json.loads(sealed) == {"signature": json.loads(sealed)["signature"], **json.loads(value)}
    assert signing.is_signed(sealed)
    assert signing.verify(KEY, sealed, signer.name)
    assert not signing.verify("/zlayer-cni/test/node/abc", sealed, signer.name), "another deployment's"
    assert not signing.verify(KEY, sealed.replace(b"abc", b"abd"), signer.name)
    assert not signing.verify(KEY, sealed.replace(b'"later"', b'"sooner"'), signer.name), "unknown fields are covered"
    assert not signing.verify(KEY, sealed, Signer(signing.generate()).name)
    assert not signing.verify(KEY, value, signer.name)
    for odd in ("", "zz" * 32, "00"):
        assert not signing.verify(KEY, sealed, odd)


def test_an_identity_belongs_to_its_key() -> None:
    one, two = Signer(signing.generate()), Signer(signing.generate())
    identity = signing.identity_of(one.public)
    assert signing.must_sign(identity)
    assert signing.may_sign(identity, one.name)
    assert not signing.may_sign(identity, two.name)
    assert not signing.may_sign(identity, "")
    earlier = "0f" * 16
    assert not signing.must_sign(earlier)
    assert signing.may_sign(earlier, two.name)
