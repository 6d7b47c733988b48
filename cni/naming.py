"""Every name we give: the 15-byte rule of ZLayer's overlay, and the names made by it.

A Linux interface name has at most 15 bytes. A name that would be longer is hashed, never cut, so that two
long names do not meet; ZLayer's agents compute the same names on their own, which is why the hash is Rust's
`DefaultHasher` (SipHash-1-3, key 0) to the letter.

Strings count as their UTF-8 bytes, a lone surrogate as the three bytes it would have. No name is validated:
what the kernel refuses, the kernel refuses. This module is imported by the plugin, so it imports nothing.

The rule is contract 4.1, the names are contract 4.2.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PREFIX = "zl-"
NAME_LIMIT = 15
"""Bytes in a Linux interface name (IFNAMSIZ less the final NUL)."""

OWNER = f"{PREFIX}cni:"
"""How the alias of a link begins that carries its owner."""
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
    # The last block is what is left over, zero padded, under the total length modulo 256.
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
    """The 64-bit hash behind a name: each part, then the suffix even if empty, each followed by a byte ff."""
    return siphash13(b"".join(_bytes(text) + b"\xff" for text in (*parts, suffix)))


def make_interface_name(parts: "Sequence[str]", suffix: str) -> str:
    """`zl-<parts joined by ->-<suffix>` where that fits 15 bytes, else the same with a hash for the parts.

    An empty suffix leaves out its hyphen. The digits are not zero padded, as ZLayer's are not, so that a hash
    that begins with zeros gives other digits, and sometimes a shorter name. A suffix of 11 bytes or more
    leaves no room for a digit and is dropped. Two lists of parts that read the same ("a-b", "c" and "a",
    "b-c") share their name while it is short enough to read. Contract 4.1.
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
    """The WireGuard device of a service that has its own (mode dedicated)."""
    return make_interface_name((deployment, instance, service), "d")


def shared_bridge(deployment: str, instance: str) -> str:
    """The node's one bridge for every service in mode shared."""
    return make_interface_name((deployment, instance, "shared"), "sh")


def pid_host_veth(pid: int, leg: str = SERVICE_LEG) -> str:
    """The host end of the veth of a container attached by PID; `leg` is `s` or `g`."""
    return f"veth-{pid}-{leg}"


def attachment_veth(network: str, container_id: str, ifname: str) -> str:
    """The host end of the veth of one CNI attachment: 15 bytes, the same for the same attachment.

    Always hashed, with leading zeros kept: unlike a readable name it cannot coincide with one made of other
    parts, and its shape (`zl-`, ten digits, `-v`) is how GC knows a link is ours. Our own rule, not ZLayer's.
    """
    return f"{PREFIX}{name_hash((network, container_id, ifname), 'v'):016x}"[:13] + "-v"


def owner_mark(network: str, container_id: str, ifname: str) -> str:
    """Whose the host end of a veth is: the text the daemon sets as the link's alias (IFLA_IFALIAS).

    The link's name is 40 bits of a hash without a secret, and two attachments with one name are found in about a
    second; this text is the attachment's own. The parts of a CNI call hold no slash. A text longer than the kernel's
    255 bytes is replaced by its SHA-256.
    """
    mark = f"{OWNER}{network}/{container_id}/{ifname}"
    if len(_bytes(mark)) <= ALIAS_LIMIT:
        return mark
    import hashlib  # in a function: the plugin's start must not pay for it

    return OWNER + hashlib.sha256(_bytes(mark)).hexdigest()


def edge_fence(name: str) -> str:
    """The isolation network that holds one edge peer to what it was allowed."""
    return f"edge:{name}"


def fnv1a64(data: bytes) -> int:
    """The 64-bit FNV-1a hash of `data`: the hash behind subnets (contract 6.4) and socket paths (1.3)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value
