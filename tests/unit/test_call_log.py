"""The line that each ADD, DEL and CHECK writes to the log."""

from __future__ import annotations

import logging

import pytest

from cni.daemon import call_log
from cni.daemon.operations import carry_out
from cni.errors import PoolExhausted
from cni.overlay import wire
from tests.fakes.node import Node


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("default/web-0", "default/web-0"),
        ("10.9.1.130,fd00::2", "10.9.1.130,fd00::2"),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "no"', r'"say \"no\""'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nverb=DEL code=0", r'"line\nverb=DEL code=0"'),
        ("\x1b[31m", r'"\x1b[31m"'),
        ("\udcff", r'"\udcff"'),
        ("dienst ä", '"dienst ä"'),
        ("x" * 600, "x" * call_log.LONGEST + "..."),
    ],
)
def test_a_value_is_read_back_as_one_value(text: str, written: str) -> None:
    assert call_log.line({"service": text, "code": "0"}) == f"service={written} code=0"


def test_a_key_without_a_value_is_left_out() -> None:
    assert call_log.line({"verb": "ADD", "pod": "", "code": "0"}) == "verb=ADD code=0"


def test_a_failure_is_a_warning_with_its_details(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    error = PoolExhausted("no IP addresses available", "service web has 10.9.1.128/26")
    call_log.write("cni", "ADD", {"attachment": "c1/eth0", "service": "web"}, 0.0123, error)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        f"verb=ADD socket=cni attachment=c1/eth0 service=web code={error.code} ms=12.3 "
        'msg="no IP addresses available" details="service web has 10.9.1.128/26"'
    )


def test_an_error_that_no_code_foresees_is_written_as_well(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="odd"), call_log.entry("overlay", "DEL", {"attachment": "7/eth0"}):
        raise ValueError("odd")
    (record,) = caplog.records
    assert record.getMessage().startswith("verb=DEL socket=overlay attachment=7/eth0 code=999 ms=")
    assert record.getMessage().endswith('msg="ValueError: odd"')


def test_a_refused_attach_by_the_overlay_socket_is_written(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path_factory.mktemp("node") / "state.db")
    caplog.set_level(logging.INFO, "cni.daemon.call_log")
    caplog.clear()
    attach = wire.AttachContainer(wire.GuestManaged("vm 1"), "web", False, isolation_network="red")
    assert isinstance(carry_out(attach, node.operations()), wire.Err)
    assert carry_out(wire.DetachContainer(wire.GuestManaged("vm 1")), node.operations()) == wire.Ok()
    node.close()
    refused, removed = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert refused[0] == "WARNING"
    assert refused[1].startswith(
        'verb=ADD socket=overlay attachment="guest/vm 1" network=@overlayd service=web isolation=red code=7 ms='
    )
    assert "requires the global overlay to be set up first" in refused[1]
    assert removed[0] == "INFO"
    assert removed[1].startswith('verb=DEL socket=overlay attachment="guest/vm 1" network=@overlayd code=0 ms=')
