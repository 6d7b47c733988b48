"""Tables show apart what is different: container ids, and cells that are cut."""

import hashlib

from cni import answers
from cni.cli import attachments, table

ONE = hashlib.sha256(b"1").hexdigest()
TWO = ONE[:20] + hashlib.sha256(b"2").hexdigest()[20:]
OTHER = hashlib.sha256(b"3").hexdigest()


def test_an_id_that_a_runtime_made_is_short():
    assert table.short_ids([ONE, OTHER]) == {ONE: ONE[:12], OTHER: OTHER[:12]}


def test_ids_that_begin_alike_are_as_long_as_it_takes():
    short = table.short_ids([ONE, TWO, OTHER])
    assert len(set(short.values())) == 3
    assert short[OTHER] == OTHER[:12]
    assert (short[ONE], short[TWO]) == (ONE[:21], TWO[:21])


def test_names_of_ctr_are_whole_and_ids_of_nerdctl_keep_their_digits():
    names = ["default-newc1", "default-newc2", f"default-{ONE}", f"default-{OTHER}", f"other-{ONE}"]
    short = table.short_ids(names)
    assert short["default-newc1"] == "default-newc1"
    assert short[f"default-{ONE}"] == f"default-{ONE[:12]}"
    assert short[f"other-{ONE}"] == f"other-{ONE[:12]}"
    assert len(set(short.values())) == len(names)


def test_long_cells_lose_their_middle_unless_that_would_make_two_alike():
    ends, middles = ["a" * 200 + end for end in "xy"], ["a" * 100 + middle + "a" * 100 for middle in "xy"]
    for cells in (ends, middles):
        lines = table.render(("NAME",), [(cell,) for cell in cells]).splitlines()
        assert len(set(lines)) == 3
    assert len(table.render(("NAME",), [(cell,) for cell in ends]).splitlines()[1]) <= table.WIDEST


def test_the_attachments_of_ctr_can_be_told_apart():
    rest = dict.fromkeys(("gateways", "mode", "bridge", "host_interface", "mac", "mtu", "netns", "pid", "created_unix"))
    row = {"network": "n", "interface": "eth0", "addresses": [], "service": "s", "isolation_network": None, **rest}
    row |= {"state": "live", "pod": ""}
    printed = attachments.as_text([answers.Attachment(**row, container_id=f"default-newc{n}") for n in "12"])
    assert "default-newc1" in printed
    assert "default-newc2" in printed
