"""The node's identity, which outlives a boot: its WireGuard key, key and port of each service with a device of its own,
and the key that it signs with in a cluster.

One file below the data directory, readable by root alone, replaced by rename and synced: a node that lost its key in a
power cut would be unknown to every peer.
"""

from __future__ import annotations

import base64
import functools
import threading
import time
from pathlib import Path

import msgspec

from cni import defaults, files
from cni.daemon import public_keys
from cni.daemon.model import keys, signing
from cni.daemon.model.signing import Signer
from cni.errors import InputOutput, PoolExhausted, StateUnusable

FILE = "identity.json"
SIGNING_FILE = "signing.json"  # a second copy of the signing key: an earlier version writes FILE without it
SEQUENCES = 1 << 16  # sequence numbers that one write of the file reserves


_public_of = functools.lru_cache(512)(public_keys.public_of)  # needed at every change


class KeyPair(msgspec.Struct, frozen=True):
    """Private key (base64) and port of one of this node's WireGuard devices."""

    private_key: str
    port: int = 0

    def __repr__(self) -> str:
        return f"Own(port={self.port})"  # without the key: a repr may reach a log

    @classmethod
    def fresh(cls) -> KeyPair:
        """A new key, without a port."""
        return cls(keys.generate())

    @property
    def public_key(self) -> str:
        return _public_of(self.private_key)


class Member(msgspec.Struct, frozen=True):
    """The node's membership in the cluster: its permanent identity, and the id, slices and WireGuard key that it has
    claimed (0, (), "": not yet)."""

    identity: str
    node_id: int = 0
    slices: tuple[str, ...] = ()
    public_key: str = ""


class Signing(msgspec.Struct, frozen=True):
    """The key that an identity signs with, base64. `announced`: its signature has been in the store, so the other nodes
    know it; `ceiling`: every sequence number used so far is below it."""

    identity: str
    private_key: str
    announced: bool = False
    ceiling: int = 0


class IdentityFile(msgspec.Struct, frozen=True):
    """The file's content."""

    node: KeyPair | None = None
    dedicated: dict[str, KeyPair] = {}
    member: Member | None = None
    signing: Signing | msgspec.UnsetType = msgspec.UNSET  # a node without a cluster has none


class Identity:
    """The identity file, read at the first use. Thread-safe."""

    def __init__(self, data_dir: str) -> None:
        self._path = Path(data_dir) / FILE
        self._lock = threading.Lock()
        self._known: IdentityFile | None = None
        self._public: str | None = None
        self._signer: Signer | None = None
        self._sequence = 0

    def public_key(self) -> str:
        """The node's public key, base64; a key is generated if there is none. Raises InputOutput, StateUnusable."""
        with self._lock:
            if self._public is None:
                content = self._load()
                if content.node is None:
                    content = self._save(msgspec.structs.replace(content, node=KeyPair.fresh()))
                assert content.node is not None
                self._public = content.node.public_key
            return self._public

    def own(self) -> KeyPair:
        """The node's own key; generated if there is none. Raises InputOutput, StateUnusable."""
        self.public_key()
        with self._lock:
            node = self._load().node
            assert node is not None
            return node

    def replace_key(self, pair: KeyPair) -> None:
        """Replace the node's key by another one. Raises InputOutput."""
        with self._lock:
            self._save(msgspec.structs.replace(self._load(), node=pair))
            self._public = None

    def member(self) -> Member:
        """The node's membership; identity and signing key are generated if there are none. Raises InputOutput,
        StateUnusable."""
        with self._lock:
            content = self._load()
            if content.member is None:
                seed = signing.generate()
                name = signing.identity_of(Signer(seed).public)
                content = self._save(
                    msgspec.structs.replace(content, member=Member(name), signing=Signing(name, _text(seed)))
                )
            assert content.member is not None
            return content.member

    def signer(self) -> Signer:
        """The signer of the node's documents; an identity from a version without signatures gets a key. Raises
        InputOutput, StateUnusable."""
        member = self.member()
        with self._lock:
            if self._signer is None:
                content = self._load()
                if content.signing is msgspec.UNSET or content.signing.identity != member.identity:
                    fresh = Signing(member.identity, _text(signing.generate()))
                    content = self._save(msgspec.structs.replace(content, signing=fresh))
                assert content.signing is not msgspec.UNSET
                self._signer = Signer(base64.b64decode(content.signing.private_key))
            return self._signer

    def is_known(self) -> bool:
        """Whether other nodes can verify this node's signature: its identity derives from the key, or its signature has
        been in the store. If so, a record under this identity that another node has written is overwritten."""
        identity, signer = self.member().identity, self.signer()
        if signing.must_sign(identity):
            return signing.may_sign(identity, signer.name)
        return self._signing().announced

    def announced(self) -> None:
        """Record that this node's signature is in the store. Raises InputOutput."""
        content = self._signing()
        if not content.announced:
            self._keep_signing(msgspec.structs.replace(content, announced=True))

    def next_sequence(self, above: int = 0) -> int:
        """A number higher than `above` and any earlier one, across restarts; if the file was restored from an older
        copy, the wall clock orders the numbers. Raises InputOutput."""
        content = self._signing()
        if not self._sequence or max(self._sequence, above) + 1 >= content.ceiling:
            first = max(content.ceiling, int(time.time()) * SEQUENCES, above)
            self._keep_signing(msgspec.structs.replace(content, ceiling=first + SEQUENCES))
            self._sequence = first
        self._sequence = max(self._sequence, above) + 1
        return self._sequence

    def _signing(self) -> Signing:
        self.signer()
        with self._lock:
            content = self._load().signing
            assert content is not msgspec.UNSET
            return content

    def _keep_signing(self, fresh: Signing) -> None:
        with self._lock:
            self._save(msgspec.structs.replace(self._load(), signing=fresh))

    def keep_member(self, member: Member) -> None:
        """Save the membership. Raises InputOutput."""
        with self._lock:
            content = self._load()
            if content.member != member:
                self._save(msgspec.structs.replace(content, member=member))

    def dedicated(self, service: str) -> KeyPair:
        """Key and port of a service's own device, the same at every call until `forget`.

        Raises PoolExhausted if all 256 ports are taken, InputOutput, StateUnusable.
        """
        with self._lock:
            content = self._load()
            pair = content.dedicated.get(service)
            if pair is None:
                pair = KeyPair(keys.generate(), lowest_free({own.port for own in content.dedicated.values()}))
                self._save(msgspec.structs.replace(content, dedicated={**content.dedicated, service: pair}))
            return pair

    def forget(self, service: str) -> None:
        """Remove key and port of the service. Raises InputOutput, StateUnusable."""
        with self._lock:
            content = self._load()
            if service in content.dedicated:
                rest = {name: own for name, own in content.dedicated.items() if name != service}
                self._save(msgspec.structs.replace(content, dedicated=rest))

    def _load(self) -> IdentityFile:
        if self._known is None:
            try:
                content = msgspec.json.decode(self._path.read_bytes(), type=IdentityFile)
                self._known = content if content.signing is not msgspec.UNSET else self._with_signing(content)
            except FileNotFoundError:
                self._known = IdentityFile()
            except OSError as error:
                raise InputOutput(f"cannot read the node's keys: {error}") from error
            except msgspec.DecodeError as error:
                # New keys in place of the old ones would cut the node off from every peer: an operator must decide.
                raise StateUnusable(f"cannot use the node's keys in {self._path}: {error}") from error
        return self._known

    def _with_signing(self, content: IdentityFile) -> IdentityFile:
        """`content` with the signing key of `SIGNING_FILE`, if that key is of this identity: an earlier version has
        dropped it from the identity file. Raises OSError, msgspec.DecodeError."""
        try:
            kept = msgspec.json.decode(self._path.with_name(SIGNING_FILE).read_bytes(), type=Signing)
        except FileNotFoundError:
            return content
        same = content.member is not None and content.member.identity == kept.identity
        return msgspec.structs.replace(content, signing=kept) if same else content

    def _save(self, content: IdentityFile) -> IdentityFile:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if content.signing is not msgspec.UNSET and (self._known is None or content.signing != self._known.signing):
                files.write(str(self._path.with_name(SIGNING_FILE)), msgspec.json.encode(content.signing))
            files.write(str(self._path), msgspec.json.encode(content))
        except OSError as error:
            raise InputOutput(f"cannot write the node's keys: {error}") from error
        self._known = content
        return content


def _text(seed: bytes) -> str:
    return base64.b64encode(seed).decode()


def lowest_free(taken: set[int]) -> int:
    """The lowest free port of the range for dedicated devices. Raises PoolExhausted."""
    for port in range(defaults.FIRST_PORT, defaults.LAST_PORT + 1):
        if port not in taken:
            return port
    raise PoolExhausted(
        f"dedicated-overlay port band exhausted ({defaults.FIRST_PORT}..={defaults.LAST_PORT}, 256 ports)"
    )
