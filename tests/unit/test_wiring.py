"""How the daemon's objects are put together (docs/architecture.md, "Put together in one place"): read from the sources.

A value is an instance of a dataclass, a struct, an enumeration, a tuple or an exception. A collaborator is a callable,
or an instance of any other class of this program: it has behaviour, and often a thread or a lock.
"""

from __future__ import annotations

import ast
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.daemon.events import Events
from cni.daemon.settings import Settings
from cni.daemon.state.address_pool import AddressPool
from cni.daemon.state.state import State
from cni.daemon.state.store import Store

ROOT = Path(__file__).parents[2]
APP, ROOTS = "app.py", ("app.py", "parts.py", "parts_cluster.py", "parts_fence.py")
VALUE_BASES = {"Struct", "NamedTuple", "Enum", "IntEnum", "StrEnum", "Exception", "BaseException", "TypedDict", "str"}
ADDING = {"append", "appendleft", "add", "insert", "extend", "setdefault", "update"}

MADE_ANEW = {
    "CniSocket": "opened again when its file is deleted",
    "OverlaySocket": "opened again when its file is deleted",
    "ClusterView": "a copy for decisions in another thread, and a second reading of the store",
    "State": "a check reads the records and starts nothing (precheck.py)",
    "Streams": "the connections of one DNS server, a part of it",
    "SlowClients": "a part of `CniSocket`",
    "Loader": "made at the first load, because libnftables may be missing",
    "Pace": "a limit with a clock, one for each run of a thread",
    "Transport": "a part of `EtcdClient`",
    "Certificates": "a part of `Transport`",
    "StoreClock": "a part of `Transport`",
    "Sessions": "those of one server, a part of `_Serving`",
    "_Serving": "a server at one port, a part of `ZlayerServer`, made when the port is configured",
    "Repairs": "a count with a clock, a part of `FenceTables`",
    "Table": "one table of `Tables`",
    "NameLookup": "for one thread: the DNS server's, and one for each request of the tool",
    "Visibility": "a part of `NameLookup`",
    "ServiceBook": "the base of `State`",
}
"""What is built elsewhere, because it lives shorter than the daemon or is a part of one object, with the reason."""

LIBRARY = {
    "text_factory": "how sqlite3 is told to read text",
    "auto_open": "how http.client is kept from opening a connection by itself",
    "sock": "how http.client is given a connection",
    "message": "how a formatter of logging passes its text on",
}
"""Attributes by which a library is used."""


class Source:
    """One module of the daemon, parsed."""

    def __init__(self, path: Path) -> None:
        self.name = str(path.relative_to(ROOT / "cni/daemon"))
        self.tree = ast.parse(path.read_text())

    def methods(self) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                for each in node.body:
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
                        yield f"{node.name}.{each.name}", each


SOURCES = [Source(path) for path in sorted((ROOT / "cni/daemon").rglob("*.py"))]
CLASSES = {
    node.name: node
    for path in sorted((ROOT / "cni").rglob("*.py"))
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.ClassDef)
}


def names_in(node: ast.AST | None) -> set[str]:
    """Every name in an annotation, those in a quoted one included."""
    if node is None:
        return set()
    found = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    found |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            found |= names_in(ast.parse(each.value, mode="eval"))
    return found


def is_value(name: str) -> bool:
    node = CLASSES[name]
    bases = {base for each in node.bases for base in names_in(each)}
    decorated = any("dataclass" in names_in(each) for each in node.decorator_list)
    return decorated or bool(bases & VALUE_BASES) or any(base in CLASSES and is_value(base) for base in bases)


def is_collaborator(annotation: ast.AST | None) -> bool:
    names = names_in(annotation)
    return "Callable" in names or any(name in CLASSES and not is_value(name) for name in names)


def collaborators(method: ast.FunctionDef | ast.AsyncFunctionDef) -> dict[str, set[str]]:
    """The parameters that are collaborators, each with the names in its annotation."""
    arguments = [*method.args.posonlyargs, *method.args.args, *method.args.kwonlyargs]
    return {each.arg: names_in(each.annotation) for each in arguments if is_collaborator(each.annotation)}


def root_of(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def passed_on(value: ast.AST) -> set[str]:
    """The names that stand in an expression themselves, not as the owner of an attribute or as what is called."""
    used = {each.value for each in ast.walk(value) if isinstance(each, ast.Attribute)}
    used |= {each.func for each in ast.walk(value) if isinstance(each, ast.Call)}
    return {each.id for each in ast.walk(value) if isinstance(each, ast.Name) and each not in used}


def targets_of(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        found = node.targets
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        found = [node.target]
    else:
        return []
    return [part for each in found for part in (each.elts if isinstance(each, ast.Tuple | ast.List) else [each])]


def stored(method: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    """The collaborators among the parameters that the method stores in `self`."""
    kept: set[str] = set()
    for node in ast.walk(method):
        if any(isinstance(t, ast.Attribute | ast.Subscript) and root_of(t) == "self" for t in targets_of(node)):
            value = getattr(node, "value", None)
            kept |= passed_on(value) if value is not None else set()
        adds = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ADDING
        if adds and isinstance(node, ast.Call) and root_of_call(node.func) == "self":
            kept |= {name for each in node.args for name in passed_on(each)}
    return kept & collaborators(method).keys()


def root_of_call(node: ast.AST) -> str:
    """As `root_of`, through calls: `self` for `self.a.setdefault(x, []).append`."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


# --- the rules ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES, ids=lambda each: each.name)
def test_a_collaborator_is_stored_by_a_constructor_alone(source: Source) -> None:
    """The one other place is the list of subscribers, which `app.py` fills before any thread starts."""
    late = {name: stored(method) for name, method in source.methods() if not name.endswith(".__init__")}
    assert {name: kept for name, kept in late.items() if kept and name != "Events.subscribe"} == {}


@pytest.mark.parametrize("source", SOURCES, ids=lambda each: each.name)
def test_an_object_sets_its_own_attributes_alone(source: Source) -> None:
    """An attribute that is set from outside is a collaborator or a state that the owner does not know to change."""
    foreign = [
        ast.unparse(target)
        for node in ast.walk(source.tree)
        for target in targets_of(node)
        if isinstance(target, ast.Attribute) and not (isinstance(target.value, ast.Name) and target.value.id == "self")
    ]
    assert [each for each in foreign if each.rpartition(".")[2] not in LIBRARY] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda each: each.name)
def test_what_has_collaborators_is_built_in_the_composition_root(source: Source) -> None:
    if source.name in ROOTS:
        return
    built = {
        node.func.id
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NEEDY
    }
    assert built - MADE_ANEW.keys() == set()


def constructor_of(name: str) -> ast.FunctionDef | None:
    body = CLASSES[name].body
    return next((each for each in body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)


DAEMON = {node.name for source in SOURCES for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef)}
NEEDY = {
    name for name in DAEMON if not is_value(name) and (made := constructor_of(name)) is not None and collaborators(made)
}
"""The classes of the daemon whose constructor takes a collaborator."""


def test_each_object_is_built_once() -> None:
    nodes = [node for source in SOURCES if source.name in ROOTS for node in ast.walk(source.tree)]
    calls = [ast.unparse(node.func).rpartition(".")[2] for node in nodes if isinstance(node, ast.Call)]
    built = {name: calls.count(name) for name in NEEDY}
    assert {name: times for name, times in built.items() if times > 1} == {}
    assert {name for name, times in built.items() if not times} - MADE_ANEW.keys() == set()


def test_the_graph_of_constructions_has_no_cycle() -> None:
    needs: dict[str, set[str]] = {}
    for name in DAEMON:
        method = constructor_of(name)
        taken = set().union(*collaborators(method).values()) if method is not None else set()
        needs[name] = taken & DAEMON
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        for name in free:
            del needs[name]
    assert needs == {}


def test_the_composition_root_uses_a_name_only_after_it_was_built() -> None:
    """Also in a function that is called later: it could not tell a name that is assigned below it."""
    bodies = [each for source in SOURCES if source.name in ROOTS for each in source.tree.body]
    for function in (each for each in bodies if isinstance(each, ast.FunctionDef)):
        assigned: dict[str, int] = {}
        for node in ast.walk(function):
            for target in targets_of(node):
                assert isinstance(target, ast.Name), ast.unparse(node)
                assert target.id not in assigned, f"{function.name} assigns {target.id} twice"
                assigned[target.id] = target.lineno
            if isinstance(node, ast.FunctionDef) and node is not function:
                assigned[node.name] = node.lineno
        for node in ast.walk(function):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in assigned:
                assert assigned[node.id] <= node.lineno, f"{function.name} uses {node.id} before it is built"


def test_every_event_is_published_and_heard_and_subscribed_to_in_one_place() -> None:
    events = {name for name in DAEMON if {"Event"} & {b for each in CLASSES[name].bases for b in names_in(each)}}
    assert len(events) > 3
    calls = [
        (source.name, node.func.attr, node.args[0])
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args
    ]
    subscribed = {(name, ast.unparse(kind)) for name, method, kind in calls if method == "subscribe"}
    published = {
        ast.unparse(event.func) for _, method, event in calls if method == "publish" and isinstance(event, ast.Call)
    }
    assert subscribed == {(APP, name) for name in events}
    assert published & events == events


def test_the_record_of_an_attachment_is_written_where_its_lock_is_held() -> None:
    """An attachment that another thread has just removed would come back without its link."""
    writers = {
        source.name
        for source in SOURCES
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("save", "drop", "reserve")
        and ast.unparse(node.func.value).rpartition(".")[2] in ("state", "_state")
    }
    assert writers == {"attachments/attach.py"}


def test_the_state_hands_out_copies(tmp_path: Path) -> None:
    """Another thread may change the records while a reader iterates: that would raise RuntimeError in the reader."""
    store = Store(tmp_path / "state.db", "boot")
    state = State(store, Settings(), Events())
    containers = (dict, list, set, bytearray, deque, AddressPool)
    assert {name for name, value in vars(state).items() if name[0] != "_" and isinstance(value, containers)} == set()
    state.take_service("web", "auto", "zl-web-b")
    state.lease("web")
    for name in ("services", "attachments", "leases"):
        before = dict(getattr(state, name))
        getattr(state, name).clear()
        assert getattr(state, name) == before
    store.close()


@pytest.mark.parametrize("source", SOURCES, ids=lambda each: each.name)
def test_the_states_containers_are_used_by_the_state_alone(source: Source) -> None:
    private = {name for cls in ("State", "ServiceBook") for name in names_set_by(cls) if name.startswith("_")}
    assert {"_attachments", "_services", "_leases", "_addresses"} <= private
    reached = {
        ast.unparse(node)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Attribute)
        and node.attr in private
        and ast.unparse(node.value).rpartition(".")[2] in ("state", "_state")
    }
    assert reached == set()


def names_set_by(cls: str) -> set[str]:
    """The attributes that the constructor of a class sets."""
    made = constructor_of(cls)
    assert made is not None
    targets = (target for node in ast.walk(made) for target in targets_of(node))
    return {target.attr for target in targets if isinstance(target, ast.Attribute)}


# --- the reading itself ------------------------------------------------------------------------------------------

SAMPLE = """
class Late:
    def set_one(self, one: Callable[[], None]) -> None:
        self._one = one
    def set_two(self, number: int, two: Events | None) -> None:
        self._number, self._two = number, two
    def add(self, three: "Events") -> None:
        self._threes.setdefault("x", []).append(three)
    def put(self, four: Events) -> None:
        self._fours[1] = (4, four)
    def use(self, five: Events, request: AttachRequest, number: int) -> None:
        self._seen = five.seen()
        self._last = request
        self._number = number
"""


def test_what_is_stored_is_seen_wherever_it_is_stored() -> None:
    tree = ast.parse(SAMPLE)
    seen = {each.name: stored(each) for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}
    assert seen == {"set_one": {"one"}, "set_two": {"two"}, "add": {"three"}, "put": {"four"}, "use": set()}


def test_values_and_collaborators_are_told_apart() -> None:
    assert all(is_value(name) for name in ("Attachment", "AttachRequest", "AttachmentLive", "Settings"))
    assert not any(is_value(name) for name in ("State", "Mesh", "Events", "Attacher", "Kernel"))
    assert {"Segments", "Mesh", "Server", "ClusterSync"} <= NEEDY
