"""The systemd unit's text: what `install` fills in, and what stands in it."""

from pathlib import Path

from cni.cli import checks_machine
from cni.cli.upkeep import protected, unit_text

DEFAULT = ("/run/zlayer-cni", "/var/lib/zlayer-cni")


def settings(text: str) -> dict[str, list[str]]:
    """The unit's settings, in order."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def test_paths_are_filled_in() -> None:
    text = unit_text(Path("/opt/zlayer-cni/1/zlayer-cni"), *DEFAULT)
    assert "@" not in settings(text)["ExecStart"][0]
    assert settings(text)["ReadWritePaths"] == ["/proc/sys/net -/sys/devices/virtual/net"]


def test_a_directory_that_would_be_read_only_is_opened() -> None:
    assert protected("/home/a/run", "/srv/data", "/usr/local/x", "/etcetera") == ["/home/a/run", "/usr/local/x"]
    found = settings(unit_text(Path("/p"), "/run/user/0/z", "/var/lib/z"))["ReadWritePaths"]
    assert found == ["/run/user/0/z", "/proc/sys/net -/sys/devices/virtual/net"]


def test_the_doctor_asks_for_what_the_unit_grants() -> None:
    granted = set(settings(unit_text(Path("/p"), *DEFAULT))["CapabilityBoundingSet"][0].split())
    assert {name for name, _, _ in checks_machine.CAPABILITIES} <= granted


def test_memory_has_a_bound_behind_the_score() -> None:
    found = settings(unit_text(Path("/p"), *DEFAULT))
    assert found["OOMScoreAdjust"] == ["-900"] and found["MemoryMax"] == ["1G"] and found["OOMPolicy"] == ["continue"]
