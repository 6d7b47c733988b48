"""The names of links: the 15-byte rule of ZLayer's overlay, and the names made by it.

A Linux interface name has at most 15 bytes. A longer name is hashed, never truncated, so that two long names do not
collide. ZLayer's agents compute the same names independently, so the hash is exactly Rust's `DefaultHasher`
(SipHash-1-3, key 0).

Strings are hashed as UTF-8 bytes, a lone surrogate as the three bytes it would have. Names are not validated: the
kernel refuses invalid ones. The plugin imports this module, so it imports nothing.

The rule is contract 4.1, the names are contract 4.2.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "zl-"
NAME_LIMIT = 15
"""Bytes in a Linux interface name (IFNAMSIZ less the final NUL)."""

OWNER = f"{PREFIX}cni:"
"""Prefix of a link alias that names the owner of the link."""
ALIAS_LIMIT = 255
"""Bytes in a link's alias (IFALIASZ less the final NUL)."""

SHARED_BRIDGE_KEY = "__zlayer_shared_bridge__"
"""The service name under which the registry of subnets keeps the shared bridge's subnet."""

SERVICE_LEG = "s"
"""The leg of a container into its service; ZLayer's daemon has a second one, `g`, into the global overlay."""

_MASK = 0xFFFF_FFFF_FFFF_FFFF


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    """One SipRound over the four 64-bit words of the state."""
    a = (a + b) & _MASK
    b = ((b << 13 | b >> 51) & _MASK) ^ a
    a = (a << 32 | a >> 32) & _MASK
    c = (c + d) & _MASK
    d = ((d << 16 | d >> 48) & _MASK) ^ c
    a = (a + d) & _MASK
    d = ((d << 21 | d >> 43) & _MASK) ^ a
    c = (c + b) & _MASK
    b = ((b << 17 | b >> 47) & _MASK) ^ c
    c = (c << 32 | c >> 32) & _MASK
    return a, b, c, d


def siphash13(data: bytes) -> int:
    """The 64-bit SipHash-1-3 of `data` with both key words 0: one round per block, three to finish."""
    a, b, c, d = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573
    whole = len(data) & ~7
    # The last block: the remaining bytes, zero padded, with the total length modulo 256 as the highest byte.
    last = int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56
    blocks = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    for block in [*blocks, last]:
        a, b, c, d = _round(a, b, c, d ^ block)
        a ^= block
    c ^= 0xFF
    for _ in range(3):
        a, b, c, d = _round(a, b, c, d)
    return a ^ b ^ c ^ d


def name_hash(parts: "Sequence[str]", suffix: str) -> int:
    """The 64-bit hash of a name: of each part and then the suffix, even an empty one, each followed by a byte 0xff."""
    return siphash13(b"".join(_bytes(text) + b"\xff" for text in (*parts, suffix)))


def make_interface_name(parts: "Sequence[str]", suffix: str) -> str:
    """`zl-<parts joined by ->-<suffix>` if that fits 15 bytes, else the same with a hash in place of the parts.

    With an empty suffix there is no hyphen before it. The digits are not zero padded, as in ZLayer: a hash that begins
    with zeros gives other digits, and sometimes a shorter name. A suffix of 11 bytes or more leaves no room for a digit
    and is dropped. Two lists of parts with the same joined text ("a-b", "c" and "a", "b-c") have the same name as long
    as it is not hashed. Contract 4.1.
    """
    plain = PREFIX + "-".join(parts) + (f"-{suffix}" if suffix else "")
    if len(_bytes(plain)) <= NAME_LIMIT:
        return plain
    digits = f"{name_hash(parts, suffix):x}"
    room = NAME_LIMIT - len(PREFIX) - 1 - len(_bytes(suffix))
    if suffix and room >= 1:
        return f"{PREFIX}{digits[:room]}-{suffix}"
    return PREFIX + digits[: NAME_LIMIT - len(PREFIX)]


def global_device(deployment: str, instance: str) -> str:
    """The WireGuard device of the node's global overlay."""
    return make_interface_name((deployment, instance), "g")


def service_bridge(deployment: str, instance: str, service: str) -> str:
    """The bridge of one service on this node (modes auto, isolated and dedicated)."""
    return make_interface_name((deployment, instance, service), "b")


def dedicated_device(deployment: str, instance: str, service: str) -> str:
    """The WireGuard device of a service of mode dedicated."""
    return make_interface_name((deployment, instance, service), "d")


def shared_bridge(deployment: str, instance: str) -> str:
    """The bridge of this node for all services of mode shared."""
    return make_interface_name((deployment, instance, "shared"), "sh")


def resolver_link(deployment: str, instance: str, peer: bool = False) -> str:
    """The link by which systemd-resolved on this node asks the node's DNS server; `peer`: its other end."""
    return make_interface_name((deployment, instance), "rp" if peer else "r")


def pid_host_veth(pid: int, leg: str = SERVICE_LEG) -> str:
    """The host end of the veth of a container attached by PID; `leg` is `s` or `g`."""
    return f"veth-{pid}-{leg}"


def attachment_veth(network: str, container_id: str, ifname: str) -> str:
    """The host end of the veth of one CNI attachment: 15 bytes, the same for the same attachment.

    Always hashed, with leading zeros: unlike a name that is not hashed it cannot be equal to one made of other parts.
    GC recognises our links by the pattern (`zl-`, ten digits, `-v`). The rule is ours, not ZLayer's.
    """
    return f"{PREFIX}{name_hash((network, container_id, ifname), 'v'):016x}"[:13] + "-v"


def owner_mark(network: str, container_id: str, ifname: str) -> str:
    """The owner of the host end of a veth: the text that the daemon sets as the link's alias (IFLA_IFALIAS).

    The link's name is 40 bits of a hash without a secret, and two attachments with the same name can be found in about
    a second; the alias is unique to the attachment. The parts of a CNI call hold no slash. A text longer than the
    kernel's 255 bytes is replaced by its SHA-256.
    """
    mark = f"{OWNER}{network}/{container_id}/{ifname}"
    if len(_bytes(mark)) <= ALIAS_LIMIT:
        return mark
    import hashlib  # here, because the import would slow down the plugin's start

    return OWNER + hashlib.sha256(_bytes(mark)).hexdigest()


def edge_fence(name: str) -> str:
    """The isolation network that restricts one edge peer to its allowed destinations."""
    return f"edge:{name}"


def fnv1a64(data: bytes) -> int:
    """The 64-bit FNV-1a hash of `data`, used for subnets (contract 6.4) and socket paths (1.3)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value
