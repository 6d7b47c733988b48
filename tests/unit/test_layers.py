"""Imports point one way (docs/development.md, "Layout"): read from the sources, with the reasons."""

import ast
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PURE_NAMES = (
    "cni",
    "cni.naming",
    "cni.errors",
    "cni.isolation",
    "cni.problems*",
    "cni.printable",
    "cni.last_words",
    "cni.log_files",
    "cni.inherited",
    "cni.secret",
    "cni.files",
    "cni.lock_files",
    "cni.defaults",
    "cni.addresses",
    "cni.openings",
    "cni.proc",
    "cni.peer_credentials",
    "cni.plugin_protocol",
)
PLUGIN = ("cni.plugin", "cni.plugin.*", "cni.frozen_start", "cni.unpack", "cni.tempdir_sweeper")
QUEUE = ("cni.plugin.delete_queue", "cni.tempdir_sweeper")  # what plugins leave for the daemon


@dataclass(frozen=True)
class Import:
    """One import: who, of what (a module of ours, or the outer name of another's), and whether it is done at once."""

    importer: str
    imported: str
    at_once: bool  # at import time; False inside a function
    typing_only: bool = False


@dataclass(frozen=True)
class Rule:
    """What modules matching `of` may import of ours, and why nothing else."""

    of: tuple[str, ...]
    may: tuple[str, ...]
    why: str
    later: tuple[str, ...] = ()  # what they may import inside a function besides


# The daemon's folders, the lowest first (docs/development.md, "Layout"), each with what it must not know.
DAEMON_FOLDERS = (
    ("model", "a value knows neither where it is kept nor who uses it"),
    ("state", "what is kept is the same whatever is done with it"),
    ("node", "the node's own addresses and ranges are there before any fence or container"),
    ("policy", "policies are read and decided from values; the fence makes rules of them"),
    ("fence", "the fence takes records and remote addresses as values"),
    ("mesh", "devices carry the peers that they are given, from a cluster or not"),
    ("nat", "paths are found for the peers of a device, whatever named them"),
    ("cluster", "the store is followed without containers, and what is found goes down to the mesh"),
    ("kubernetes", "Pods and Namespaces are followed by the store's client, and an attach is told what they say"),
    ("dns", "names are answered from what the parts below know; an attach is told where the server is"),
    ("attachments", "an attach serves both sockets, and knows neither"),
    ("reconcile", "the loops repair what the parts below them hold"),
    ("operations", "an operation does not know the socket that it came in by"),
    ("api", "what comes in is answered by the parts below; only main, app and server know the sockets"),
    ("metrics", "a scrape reads what the tool asks for, as numbers; only app and server know it"),
)
GROUND_NAMES = (
    *("settings", "settings_checks", "settings_file", "settings_reader"),
    *("events", "problem_board", "public_keys", "call_log", "call_times", "durations"),
)
GROUND = ("cni.daemon", *(f"cni.daemon.{name}" for name in GROUND_NAMES))
FOLDERS = tuple(f"cni.daemon.{folder}*" for folder, _ in DAEMON_FOLDERS)
TOP = tuple(
    f"cni.daemon.{name}"
    for name in (
        "app",
        "lifecycle",
        "log_lines",
        "log_repeats",
        "main",
        "parts",
        "parts_cluster",
        "parts_fence",
        "precheck",
        "run_dir",
        "server",
        "supervisor",
    )
)
OUTSIDE_THE_DAEMON = (
    *(
        "cni.answers*",
        "cni.attach_rules",
        "cni.verbs",
        "cni.netconf*",
        "cni.overlay*",
        "cni.host*",
        *QUEUE,
        *PURE_NAMES,
    ),
)

RULES = [
    Rule(
        PURE_NAMES[1:],
        ("cni.files", "cni.problems*"),
        "names, errors and isolation are at the bottom: all modules import them",
    ),
    Rule(
        PLUGIN,
        (*PLUGIN, *PURE_NAMES),
        "start-up is most of what an ADD costs: what is heavy is imported where the door is closed, or not at all",
        later=("cni.upstream.entry", "cni.netconf.request", "cni.host.links", "cni.host.netlink"),
    ),
    Rule(("cni.answers*",), ("cni.answers*",), "values that cross from the daemon to the tool"),
    Rule(("cni.netconf*",), ("cni.netconf*", *PURE_NAMES), "a configuration and a result are values"),
    Rule(("cni.overlay*",), ("cni.overlay*", *PURE_NAMES), "the client serves any overlayd, so it knows none of ours"),
    Rule(("cni.host*",), ("cni.host*", *PURE_NAMES), "host/ has verbs and no opinions"),
    Rule(("cni.verbs",), ("cni.netconf*", "cni.overlay*", *PURE_NAMES), "the same verbs stand in front of any overlay"),
    Rule(
        ("cni.attach_rules",),
        ("cni.host*", "cni.netconf*", *PURE_NAMES),
        "an attachment is promised the same by any overlay, and judged alike",
    ),
    Rule(
        ("cni.upstream*",),
        ("cni.upstream*", "cni.attach_rules", "cni.verbs", "cni.netconf*", "cni.overlay*", "cni.host*", *PURE_NAMES),
        "in front of a foreign overlayd there is no daemon of ours; a policy for it is read to refuse what it selects",
        later=(
            "cni.daemon.policy",
            "cni.daemon.policy.attached",
            "cni.daemon.policy.files",
            "cni.daemon.policy.reader",
        ),
    ),
    Rule(
        TOP,
        ("cni.daemon*", *OUTSIDE_THE_DAEMON),
        "the daemon knows neither the plugin that knocks nor the operator's tool",
    ),
    Rule(
        GROUND,
        (*GROUND, "cni.daemon.model*", *OUTSIDE_THE_DAEMON),
        "settings, events and problems are under every part of the daemon",
    ),
    *(
        Rule((own,), (*FOLDERS[: number + 1], *(GROUND if number else ()), *OUTSIDE_THE_DAEMON), why)
        for number, (own, (_, why)) in enumerate(zip(FOLDERS, DAEMON_FOLDERS, strict=True))
    ),
    Rule(
        ("cni.cli*",),
        (
            "cni.cli*",
            "cni.answers*",
            "cni.netconf*",
            "cni.overlay*",
            "cni.host*",
            "cni.plugin.client",
            "cni.unpack",
            *PURE_NAMES,
        ),
        "the tool asks the running daemon: of its code it reads settings, files of policies and how ranges are judged",
        later=(
            "cni.daemon.settings",
            "cni.daemon.settings_reader",
            "cni.daemon.model.overlap",
            "cni.daemon.policy.reader",
            "cni.daemon.policy.files",
        ),
    ),
    Rule(
        ("cni.cli.main", "cni.cli.options", "cni.cli.install", "cni.cli.uninstall", "cni.cli.upkeep", "cni.cli.start"),
        ("cni.*",),
        "they show the settings' defaults, and start a daemon as the plugin does",
    ),
    Rule(
        ("cni.cli.plugin_call",),
        ("cni.plugin.autostart",),
        "it calls the plugin as a runtime does",
    ),
]

# Deciders: values in, values out. No clock, log, file or socket, and of host/ only the shapes of what it has read.
DECIDERS = (
    "cni.naming",
    "cni.attach_rules",
    "cni.isolation",
    "cni.daemon.model.overlap",
    "cni.daemon.model.ipam",
    "cni.daemon.model.subnets",
    "cni.daemon.model.slots",
    "cni.daemon.attachments.check",
    "cni.daemon.model.macs",
    "cni.daemon.model.nat_behaviour",
    "cni.daemon.model.nat_candidates",
    "cni.daemon.model.nat_words",
    "cni.daemon.model.peer_paths",
    "cni.daemon.model.probe_message",
    "cni.daemon.model.stun",
    "cni.daemon.model.records",
    "cni.openings",
    "cni.daemon.model.dns_names",
    "cni.daemon.fence.model",
    "cni.daemon.fence.openings",
    "cni.daemon.fence.elements",
    "cni.daemon.fence.rules",
    "cni.daemon.fence.inet",
    "cni.daemon.fence.to_host",
    "cni.daemon.fence.handed_on",
    "cni.daemon.fence.leaving",
    "cni.daemon.fence.bridge",
    "cni.daemon.fence.ruleset",
    "cni.daemon.fence.compare",
    "cni.daemon.fence.policy_book",
    "cni.daemon.fence.policy_chains",
    "cni.daemon.fence.policy_changes",
    "cni.daemon.policy.attached",
    "cni.daemon.policy.decide",
    "cni.daemon.policy.model",
    "cni.daemon.policy.table",
    "cni.daemon.fence.drop_log",
    "cni.daemon.fence.packet_text",
    "cni.daemon.fence.desired",
    "cni.daemon.fence.fault",
    "cni.daemon.fence.replacement",
    "cni.daemon.cluster.etcd_protocol",
    "cni.daemon.cluster.store",
    "cni.upstream.check",
)
DECIDERS_MAY = (*DECIDERS, "cni.defaults", "cni.addresses", "cni.errors", "cni.netconf.types", "cni.upstream.records")
SHAPES = {
    "HeldAddress",
    "RouteSeen",
    "Surroundings",
    "Link",
    "Route",
    "RoutePattern",
    "ContainerView",
    "Sought",
    "Interface",
    "Network",
    "Address",
    "Change",
    "Element",
    "RTN_UNICAST",
    "RTN_LOCAL",
    "OUR_PROTO",
}
DOING = {
    "asyncio",
    "concurrent",
    "ctypes",
    "fcntl",
    "logging",
    "os",
    "pathlib",
    "random",
    "secrets",
    "select",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "subprocess",
    "tempfile",
    "threading",
    "time",
    "urllib",
}

# What a plugin call loads only when it is needed (docs/architecture.md, "One program, three roles").
HEAVY = {
    "argparse",
    "asyncio",
    "concurrent",
    "contextlib",
    "ctypes",
    "dataclasses",
    "ipaddress",
    "json",
    "logging",
    "msgspec",
    "pathlib",
    "re",
    "socket",
    "subprocess",
    "threading",
    "typing",
    "yaml",
}
OTHERS = {"msgspec", "yaml", "prometheus_client", "pyroute2"}  # all that is not the standard library's


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted((ROOT / "cni").rglob("*.py"))}


def names_in(node, importer, known):
    """The modules that one import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = importer if MODULES.get(importer, Path()).name == "__init__.py" else importer.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}".rstrip(".")
    return [f"{base}.{a.name}" if f"{base}.{a.name}" in known else base for a in node.names]


def imports_of(importer, source, known=frozenset(MODULES)):
    """Every import in the source, wherever it stands."""
    found = []

    def walk(node, at_once, typing_only):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                found.extend(Import(importer, name, at_once, typing_only) for name in names_in(child, importer, known))
            elif isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
                for each in child.body:
                    walk(ast.Module([each], []), at_once, True)
                for each in child.orelse:
                    walk(ast.Module([each], []), at_once, typing_only)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                walk(child, at_once and not inside, typing_only)

    walk(ast.parse(source), True, False)
    return found


IMPORTS = [each for name, path in MODULES.items() for each in imports_of(name, path.read_text())]


def is_ours(name):
    return name == "cni" or name.startswith("cni.")


def is_one_of(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def rules_for(module):
    return [rule for rule in RULES if is_one_of(module, rule.of)]


def test_every_module_of_the_daemon_has_its_place():
    assert {name for name in MODULES if name.startswith("cni.daemon") and not rules_for(name)} == set()
    folders = {path.name for path in (ROOT / "cni/daemon").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == {folder for folder, _ in DAEMON_FOLDERS}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_is_below_it(module):
    rules = rules_for(module)
    if module in ("cni", "cni.__main__"):  # the version alone, and the one that chooses a face
        return
    assert rules, f"{module} belongs to no layer: give it one in RULES"
    wrong = [
        f"{each.imported}{'' if each.at_once else ' (inside a function)'}"
        for each in IMPORTS
        if each.importer == module
        and is_ours(each.imported)
        and not any(
            is_one_of(each.imported, rule.may) or (not each.at_once and is_one_of(each.imported, rule.later))
            for rule in rules
        )
    ]
    assert wrong == [], "; ".join(rule.why for rule in rules)


def test_of_the_daemon_the_tool_reads_settings_policies_and_overlaps_alone():
    found = {each.imported for each in IMPORTS if is_one_of(each.importer, ("cni.cli*",))}
    assert {name for name in found if is_one_of(name, ("cni.daemon*",))} <= {
        "cni.daemon.settings",
        "cni.daemon.settings_reader",
        "cni.daemon.model.overlap",
        "cni.daemon.policy.reader",
        "cni.daemon.policy.files",
    }


@pytest.mark.parametrize("module", [name for name in MODULES if is_one_of(name, DECIDERS)])
def test_a_decider_does_nothing_but_decide(module):
    for each in (each for each in IMPORTS if each.importer == module and not each.typing_only):
        if is_ours(each.imported) and not is_one_of(each.imported, DECIDERS_MAY):
            assert each.imported in ("cni", "cni.host.links", "cni.host.ports", "cni.host.nft_elements"), each
        assert each.imported.partition(".")[0] not in DOING, each
    taken = {
        alias.name
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cni.host")
        for alias in node.names
    }
    assert taken <= SHAPES, "of host/ a decider takes the shapes of what was read, never a verb"


@pytest.mark.parametrize("module", [name for name in MODULES if is_one_of(name, PLUGIN)])
def test_the_plugin_imports_nothing_heavy_at_once(module):
    at_once = {each.imported for each in IMPORTS if each.importer == module and each.at_once and not each.typing_only}
    heavy = {"cni.unpack": set(), "cni.plugin.config": {"json"}, "cni.tempdir_sweeper": {"pathlib"}}.get(module, set())
    assert {name for name in at_once if name.partition(".")[0] in HEAVY} - heavy == set()


def test_only_what_is_declared_is_imported_from_outside():
    foreign = {
        (each.importer, each.imported)
        for each in IMPORTS
        if not is_ours(each.imported)
        and each.imported.partition(".")[0] not in sys.stdlib_module_names | OTHERS | {"__future__"}
    }
    assert foreign == set()


def test_processes_and_netlink_live_in_host():
    """Ruff says so too (TID251); this holds when someone writes noqa."""
    found = {each.importer for each in IMPORTS if each.imported.partition(".")[0] in ("subprocess", "pyroute2")}
    assert {name for name in found if not is_one_of(name, ("cni.host*",))} == set()


def test_nobody_imports_in_a_circle():
    below = {name: set() for name in MODULES}
    for each in IMPORTS:
        if each.at_once and not each.typing_only and each.imported in below and each.imported != each.importer:
            below[each.importer].add(each.imported)
    while free := {name for name, others in below.items() if not others & below.keys()}:
        for name in free:
            del below[name]
    assert {name: others & below.keys() for name, others in below.items()} == {}


# --- the reading itself ---


def test_every_import_is_seen_wherever_it_stands():
    source = """
import os, cni.naming
from cni import errors, __version__
from cni.netconf.types import Result as R
from .values import x
from .. import errors
if TYPE_CHECKING:
    from cni.daemon.state import state
else:
    import json
def later():
    import cni.verbs
    class Inner:
        from cni.host import links
try:
    import yaml
except ImportError:
    pass
"""
    seen = {(each.imported, each.at_once, each.typing_only) for each in imports_of("cni.netconf.request", source)}
    assert seen == {
        ("os", True, False),
        ("cni.naming", True, False),
        ("cni.errors", True, False),
        ("cni", True, False),
        ("cni.netconf.types", True, False),
        ("cni.netconf.values", True, False),
        ("cni.daemon.state.state", True, True),
        ("json", True, False),
        ("cni.verbs", False, False),
        ("cni.host.links", False, False),
        ("yaml", True, False),
    }


def test_every_module_was_read():
    assert len(MODULES) > 40
    assert {"cni.daemon.state.state", "cni.host.links", "cni.overlay", "cni.__main__"} <= MODULES.keys()
    assert len(IMPORTS) > 200
