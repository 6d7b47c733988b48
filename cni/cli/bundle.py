"""`zlayer-cni bundle`: one archive for a bug report. Exit code 0, or 1 if the archive cannot be written.

There is no filter that looks for secrets: a filter misses some. There is a list of collectors, and each writes the
fields of a type in which no secret, and no free text, has a place. Nothing here reads a key, a token, the daemon's log,
an environment or a command line. The settings are named by key, with the values of `PLAIN` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import platform
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from cni import __version__, answers
from cni.cli import ask, doctor

PLAIN = frozenset(
    {
        "deployment",
        "instance_id",
        "node_id",
        "cluster_cidr",
        "cluster_cidr6",
        "slice_cidr",
        "service_cidr",
        "wg_port",
        "wireguard_engine",
        "underlay",
        "masquerade",
        "mtu",
        "new_services_per_minute",
        "idle_services",
        "address_cooldown",
        "log_level",
    }
)
"""The settings whose values go in. All of them are numbers, ranges and words of fixed lists."""
SYSCTLS = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    "ipv4/conf/all/rp_filter",
    "ipv4/conf/default/rp_filter",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_max",
    "netfilter/nf_conntrack_count",
)


class ProblemCode(msgspec.Struct, frozen=True):
    """A problem that exists, without its text."""

    code: str
    area: str
    severity: str


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`status`, without free text."""

    version: str
    uptime_seconds: float
    node: answers.NodeSummary
    mtu: int
    wireguard: answers.WireGuard
    fence_in_force: bool
    services: list[answers.ServiceSummary]
    attachments: int
    unfinished: int
    calls: answers.Calls | None
    problems: list[ProblemCode]


class Check(msgspec.Struct, frozen=True):
    """A finding of `doctor`, without its text."""

    check: str
    level: str


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The machine and the program."""

    tool: str
    kernel: str
    architecture: str
    python: str
    system: str
    processors: int
    sysctls: dict[str, str | None]


class SettingsUsed(msgspec.Struct, frozen=True, kw_only=True):
    """Which settings the YAML has, by key; the values of those that are plain."""

    keys: list[str]
    values: dict[str, str | int | float | bool | None]


class Collector(NamedTuple):
    """One file of the archive: its name, what is in it, and how it is collected."""

    name: str
    about: str
    collect: Callable[[argparse.Namespace], object]


def _summary(options: argparse.Namespace) -> Summary:
    status = ask.ask(options.run_dir, "status", answers.Status)
    return Summary(
        version=status.version,
        uptime_seconds=status.uptime_seconds,
        node=status.node,
        mtu=status.mtu,
        wireguard=status.wireguard,
        fence_in_force=status.fence.in_force,
        services=status.services,
        attachments=status.attachments,
        unfinished=status.unfinished,
        calls=status.calls,
        problems=[ProblemCode(p.code, p.area, p.severity) for p in status.problem_details or ()],
    )


def _texts(options: argparse.Namespace) -> list[str]:
    status = ask.ask(options.run_dir, "status", answers.Status)
    return [f"{problem.code}: {problem.text}" for problem in status.problem_details or ()] + status.notes


def _checks(options: argparse.Namespace) -> list[Check]:
    return [Check(finding.check, finding.level) for finding in doctor.examine(doctor.complete(options))]


def _machine(_: argparse.Namespace) -> Machine:
    from cni.host import sysctl

    with contextlib.suppress(OSError):
        release = platform.freedesktop_os_release()
        return _described(f"{release.get('ID', '')} {release.get('VERSION_ID', '')}".strip(), sysctl.read)
    return _described("", sysctl.read)


def _described(system: str, read: Callable[[str], str | None]) -> Machine:
    return Machine(
        tool=__version__,
        kernel=platform.release(),
        architecture=platform.machine(),
        python=platform.python_version(),
        system=system,
        processors=os.cpu_count() or 0,
        sysctls={name: read(name) for name in SYSCTLS},
    )


def _settings(options: argparse.Namespace) -> SettingsUsed:
    from cni.daemon import settings, settings_reader

    used, plain = settings_reader.find(None, options.data_dir), settings.Settings()
    keys = [key for key in used.__struct_fields__ if getattr(used, key) != getattr(plain, key)]
    return SettingsUsed(keys=keys, values={key: getattr(used, key) for key in keys if key in PLAIN})


def _asked(question: str, kind: object) -> Callable[[argparse.Namespace], object]:
    return lambda options: ask.ask(options.run_dir, question, kind)  # type: ignore[arg-type]


COLLECTORS = (
    Collector("status.json", "the node, its services, the codes of its problems", _summary),
    Collector("attachments.json", "the attached containers", _asked("attachments", list[answers.Attachment])),
    Collector("networks.json", "isolation networks, members, drop counters", _asked("networks", answers.Networks)),
    Collector(
        "peers.json", "the WireGuard peers: public keys, endpoints, traffic", _asked("peers", list[answers.Peer])
    ),
    Collector("doctor.json", "what `doctor` checks, and how each check ends", _checks),
    Collector("machine.json", "versions, and the kernel's settings that matter", _machine),
    Collector("settings.json", "which settings the YAML has; the values of numbers, ranges and fixed words", _settings),
)
TEXTS = Collector("problems.json", "the texts of problems and notes, which may name addresses and files", _texts)


def run(options: argparse.Namespace) -> int:
    """Write the archive, or with `show` print what would be in it. Raises OSError."""
    files = dict(collected(options))
    if options.show:
        for name, data in files.items():
            sys.stdout.write(f"--- {name}\n{data.decode()}\n")
        return 0
    path = Path(options.output or f"zlayer-cni-bundle-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    data = _archive(files)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    sys.stdout.write(f"{path}\n")
    sys.stderr.write(f"{len(files)} files, {len(data)} bytes; `--show` prints them; manifest.json says what each is\n")
    return 0


def collected(options: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """The files of the archive, the manifest last. What cannot be collected is named in the manifest."""
    manifest = []
    for collector in (*COLLECTORS, *((TEXTS,) if options.texts else ())):
        entry: dict[str, object] = {"name": collector.name, "about": collector.about}
        try:
            data = msgspec.json.format(msgspec.json.encode(collector.collect(options)), indent=2)
            yield collector.name, data
            entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        except Exception as error:  # noqa: BLE001 - a broken node is what a bundle is made for
            entry["missing"] = type(error).__name__  # its text is free text
        manifest.append(entry)
    head = {"version": __version__, "made_unix": round(time.time()), "texts": options.texts, "files": manifest}
    yield "manifest.json", msgspec.json.format(msgspec.json.encode(head), indent=2)


def _archive(files: dict[str, bytes]) -> bytes:
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"zlayer-cni-bundle/{name}")
            info.size, info.mtime, info.mode = len(data), int(time.time()), 0o600
            archive.addfile(info, io.BytesIO(data))
    return whole.getvalue()
