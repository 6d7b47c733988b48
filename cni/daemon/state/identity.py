"""What the node is beyond this boot: its WireGuard key, key and port of each service with a device of its own, and the
key that it signs with in a cluster.

One file below the data directory, root's alone, replaced by rename and synced: a node that lost its key in a power cut
would be a stranger to every peer.
"""

from __future__ import annotations

import base64
import functools
import threading
import time
from pathlib import Path

import msgspec

from cni import defaults, files
from cni.daemon.cluster import signing
from cni.daemon.cluster.signing import Signer
from cni.daemon.model import keys
from cni.errors import InputOutput, PoolExhausted, StateUnusable

FILE = "identity.json"
SIGNING_FILE = "signing.json"  # the signing key again: an earlier version writes FILE without it
SEQUENCES = 1 << 16  # that are set aside by one write of the file


_public_of = functools.lru_cache(512)(keys.public_of)  # a millisecond each, and asked for with every change


class KeyPair(msgspec.Struct, frozen=True):
    """Key and port of one WireGuard device of ours."""

    private_key: str
    port: int = 0

    def __repr__(self) -> str:
        return f"Own(port={self.port})"  # the key is in nobody's log

    @property
    def public_key(self) -> str:
        return _public_of(self.private_key)


class Member(msgspec.Struct, frozen=True):
    """What the node is to the cluster: a name of its own for ever, and the id, slices and WireGuard key it has claimed
    (0, none, "": not yet)."""

    identity: str
    node_id: int = 0
    slices: tuple[str, ...] = ()
    public_key: str = ""


class Signing(msgspec.Struct, frozen=True):
    """The key that an identity signs with, base64. `announced`: its signature has stood in the store, so the others
    know it; `ceiling`: no sequence as high as this was given out."""

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
    """The file, read when first needed. Safe from any thread."""

    def __init__(self, data_dir: str) -> None:
        self._path = Path(data_dir) / FILE
        self._lock = threading.Lock()
        self._known: IdentityFile | None = None
        self._public: str | None = None
        self._signer: Signer | None = None
        self._sequence = 0

    def public_key(self) -> str:
        """The node's public key, base64; a private one is made if there is none. Raises InputOutput, StateUnusable."""
        with self._lock:
            if self._public is None:
                known = self._load()
                if known.node is None:
                    known = self._save(msgspec.structs.replace(known, node=KeyPair(keys.generate())))
                assert known.node is not None
                self._public = known.node.public_key
            return self._public

    def own(self) -> KeyPair:
        """The node's own key; made if there is none. Raises InputOutput, StateUnusable."""
        self.public_key()
        with self._lock:
            node = self._load().node
            assert node is not None
            return node

    def rotate(self) -> str:
        """A new key for the node in place of the old one; returns the new public key. Raises InputOutput."""
        with self._lock:
            self._save(msgspec.structs.replace(self._load(), node=KeyPair(keys.generate())))
            self._public = None
        return self.public_key()

    def member(self) -> Member:
        """What the node is to the cluster. Raises InputOutput, StateUnusable."""
        with self._lock:
            known = self._load()
            if known.member is None:
                seed = signing.generate()
                name = signing.identity_of(Signer(seed).public)
                known = self._save(
                    msgspec.structs.replace(known, member=Member(name), signing=Signing(name, _text(seed)))
                )
            assert known.member is not None
            return known.member

    def signer(self) -> Signer:
        """The key that the node signs with; an identity from before there were signatures gets one. Raises InputOutput,
        StateUnusable."""
        member = self.member()
        with self._lock:
            if self._signer is None:
                known = self._load()
                if known.signing is msgspec.UNSET or known.signing.identity != member.identity:
                    fresh = Signing(member.identity, _text(signing.generate()))
                    known = self._save(msgspec.structs.replace(known, signing=fresh))
                assert known.signing is not msgspec.UNSET
                self._signer = Signer(base64.b64decode(known.signing.private_key))
            return self._signer

    def is_known(self) -> bool:
        """Whether the others can know this node by its signature: its identity was made with the key, or its signature
        has stood in the store. A record of another's making under this identity is then overwritten."""
        identity, signer = self.member().identity, self.signer()
        if signing.must_sign(identity):
            return signing.may_sign(identity, signer.name)
        return self._signing().announced

    def announced(self) -> None:
        """This node's signature stands in the store. Raises InputOutput."""
        known = self._signing()
        if not known.announced:
            self._keep_signing(msgspec.structs.replace(known, announced=True))

    def next_sequence(self) -> int:
        """A number higher than any before, also before a restart, and in wall-clock order where the file was put back
        to an earlier one. Raises InputOutput."""
        known = self._signing()
        if not self._sequence or self._sequence + 1 >= known.ceiling:
            first = max(known.ceiling, int(time.time()) * SEQUENCES)
            self._keep_signing(msgspec.structs.replace(known, ceiling=first + SEQUENCES))
            self._sequence = first
        self._sequence += 1
        return self._sequence

    def _signing(self) -> Signing:
        self.signer()
        with self._lock:
            known = self._load().signing
            assert known is not msgspec.UNSET
            return known

    def _keep_signing(self, fresh: Signing) -> None:
        with self._lock:
            self._save(msgspec.structs.replace(self._load(), signing=fresh))

    def keep_member(self, member: Member) -> None:
        """Remember what was claimed. Raises InputOutput."""
        with self._lock:
            known = self._load()
            if known.member != member:
                self._save(msgspec.structs.replace(known, member=member))

    def dedicated(self, service: str) -> KeyPair:
        """Key and port of a service's own device, the same at every call until `forget`.

        Raises PoolExhausted when all 256 ports are taken, InputOutput, StateUnusable.
        """
        with self._lock:
            known = self._load()
            found = known.dedicated.get(service)
            if found is None:
                found = KeyPair(keys.generate(), lowest_free({own.port for own in known.dedicated.values()}))
                self._save(msgspec.structs.replace(known, dedicated={**known.dedicated, service: found}))
            return found

    def forget(self, service: str) -> None:
        """No key and no port of the service any more."""
        with self._lock:
            known = self._load()
            if service in known.dedicated:
                rest = {name: own for name, own in known.dedicated.items() if name != service}
                self._save(msgspec.structs.replace(known, dedicated=rest))

    def _load(self) -> IdentityFile:
        if self._known is None:
            try:
                known = msgspec.json.decode(self._path.read_bytes(), type=IdentityFile)
                self._known = known if known.signing is not msgspec.UNSET else self._with_signing(known)
            except FileNotFoundError:
                self._known = IdentityFile()
            except OSError as error:
                raise InputOutput(f"cannot read the node's keys: {error}") from error
            except msgspec.DecodeError as error:
                # Making new keys over the old ones would cut the node off from every peer: a person must look.
                raise StateUnusable(f"cannot use the node's keys in {self._path}: {error}") from error
        return self._known

    def _with_signing(self, known: IdentityFile) -> IdentityFile:
        """With the signing key that an earlier version has dropped, if there is one of this identity. Raises OSError,
        msgspec.DecodeError."""
        try:
            kept = msgspec.json.decode(self._path.with_name(SIGNING_FILE).read_bytes(), type=Signing)
        except FileNotFoundError:
            return known
        same = known.member is not None and known.member.identity == kept.identity
        return msgspec.structs.replace(known, signing=kept) if same else known

    def _save(self, known: IdentityFile) -> IdentityFile:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if known.signing is not msgspec.UNSET and (self._known is None or known.signing != self._known.signing):
                files.write(str(self._path.with_name(SIGNING_FILE)), msgspec.json.encode(known.signing))
            files.write(str(self._path), msgspec.json.encode(known))
        except OSError as error:
            raise InputOutput(f"cannot write the node's keys: {error}") from error
        self._known = known
        return known


def _text(seed: bytes) -> str:
    return base64.b64encode(seed).decode()


def lowest_free(taken: set[int]) -> int:
    """The lowest port of the band that nobody has. Raises PoolExhausted."""
    for port in range(defaults.FIRST_PORT, defaults.LAST_PORT + 1):
        if port not in taken:
            return port
    raise PoolExhausted(
        f"dedicated-overlay port band exhausted ({defaults.FIRST_PORT}..={defaults.LAST_PORT}, 256 ports)"
    )
