"""The netlink message format, read and written by pyroute2 as well."""

import errno
import random
import sys
from pathlib import Path

import pytest
from pyroute2.netlink import nla, nlmsgerr
from pyroute2.netlink.nfnetlink import nfgen_msg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from cni.host import netlink, nlmsg


class Their(nfgen_msg):  # type: ignore[misc]
    """Attributes of the kinds that ours are, some in others."""

    nla_map = (
        (1, "NAME", "asciiz"),
        (2, "SMALL", "uint8"),
        (3, "NUMBER", "uint32"),
        (4, "RAW", "cdata"),
        (5, "IN", "inner"),
    )

    class inner(nla):  # type: ignore[misc]
        nla_map = ((1, "NAME", "asciiz"), (3, "NUMBER", "uint32"))


def decoded(kind, data):
    found = kind(data)
    found.decode()
    return found


def test_what_we_pack_is_what_they_read():
    inside = nlmsg.nested(5, nlmsg.text(1, "in it"), nlmsg.u32(3, 7))
    body = nlmsg.nfgen(10, 513) + nlmsg.text(1, "a name") + nlmsg.u8(2, 200) + nlmsg.u32(3, 0x01020304) + inside
    theirs = decoded(Their, nlmsg.message(0x0A0C, nlmsg.ACK, 99, body))
    header = theirs["header"]
    assert (header["type"], header["flags"], header["sequence_number"]) == (0x0A0C, nlmsg.ACK | nlmsg.REQUEST, 99)
    assert header["length"] == 16 + len(body)
    assert (theirs["nfgen_family"], theirs["res_id"]) == (10, 513)
    assert (theirs.get("NAME"), theirs.get("SMALL"), theirs.get("NUMBER")) == ("a name", 200, 0x01020304)
    assert (theirs.get("IN").get("NAME"), theirs.get("IN").get("NUMBER")) == ("in it", 7)


def test_what_they_pack_is_what_we_read():
    theirs = ifinfmsg()
    theirs["index"], theirs["flags"] = 5, 1
    theirs["attrs"] = [
        ("IFLA_IFNAME", "eth7"),
        ("IFLA_MTU", 1420),
        ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
    ]
    theirs["header"].update({"type": 16, "flags": 5, "sequence_number": 31, "pid": 77})
    theirs.encode()
    (ours,) = nlmsg.messages(bytes(theirs.data))
    assert (ours.type, ours.flags, ours.seq, ours.port) == (16, 5, 31, 77)
    body = bytes(theirs.data)[ours.start : ours.end]
    assert netlink.IFINFO.unpack_from(body)[2:4] == (5, 1)
    found = nlmsg.attributes(body, netlink.IFINFO.size)
    assert nlmsg.string(found[3]) == "eth7"
    assert int.from_bytes(found[4], sys.byteorder) == 1420
    assert nlmsg.string(nlmsg.attributes(found[18])[1]) == "veth"


@pytest.mark.parametrize("code", [0, errno.ENOENT, errno.EEXIST, 4095])
def test_an_error_is_in_the_machines_byte_order(code):
    theirs = nlmsgerr()
    theirs["error"] = -code
    theirs["header"]["type"] = nlmsg.ERROR
    theirs.encode()
    data = bytes(theirs.data)
    (ours,) = nlmsg.messages(data)
    assert nlmsg.error(data, ours.start) == nlmsg.error(data[ours.start : ours.end]) == code


def test_no_other_module_of_the_host_packs_netlink_headers():
    """Every user takes the codec: a length or an errno with a byte order of its own is right on one machine only."""
    folder = Path(nlmsg.__file__).parent
    for module in folder.glob("*.py"):
        source = module.read_text()
        if module.name != "nlmsg.py":
            for word in ("AF_NETLINK", '"=IHHII"', '"=HH"', '"little"'):
                assert word not in source, f"{module.name} has {word}"


def test_several_messages_lie_in_one_datagram_and_each_is_padded():
    bodies = [b"", b"1", b"12345", b"1234567890"]
    data = b"".join(nlmsg.message(n, 0, n, body) + bytes(-len(body) & 3) for n, body in enumerate(bodies))
    assert [(m.type, data[m.start : m.end]) for m in nlmsg.messages(data)] == list(enumerate(bodies))


def test_any_bytes_are_read_without_an_exception_and_to_an_end():
    chance = random.Random(11)
    for _ in range(2000):
        data = chance.randbytes(chance.randrange(80))
        assert len(list(nlmsg.items(data))) <= len(data) // 4
        for found in nlmsg.messages(data):
            nlmsg.attributes(data[found.start : found.end])
            nlmsg.explanation(data[found.start : found.end])
