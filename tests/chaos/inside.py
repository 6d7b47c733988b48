"""What runs inside the program under test: named fault points, and deliberate faults.

The program itself has no hook for this, and a release none that could be set off. `program.py` makes a copy of it in
which this file is executed before the first module of ours is imported (CONTROL, a directory, is defined before the
first line): it wraps functions as their modules come in. Standard library only, and quick: every plugin call pays.

    CONTROL/armed    "POINT ACTION [SECONDS]": the next thread that passes POINT takes the file and does ACTION: kill,
                     stop, sleep, fail (SECONDS is how many times more)
    CONTROL/fired    a line for each point that was taken
    CONTROL/faults   names of the deliberate faults that are in force from the start (`deliberate.py`)
    CONTROL/tuning   "module.NAME value" lines: constants of time made shorter
"""

import os
import sys

CONTROL = globals().get("CONTROL", "/nonexistent")

# Where the daemon may die: before and after each of these. Between two of them it changes nothing outside itself.
POINTS = {
    "cni.daemon.attachments.segments": ["Segments.ensure"],
    "cni.daemon.attachments.segment_release": ["SegmentRelease.release_unused"],
    "cni.daemon.state.state": [
        "State.take_service", "State.reserve", "State.save", "State.drop", "State.grow_service",
        "State.shrink_service",
    ],
    "cni.daemon.state.store": ["Store.apply"],
    "cni.daemon.fence.members": ["FenceMembers.add_bridge", "FenceMembers.add_port", "FenceMembers.remove_port"],
    "cni.daemon.fence.enforcement": ["FenceEnforcement.load"],
    "cni.host.kernel": [
        "Kernel.create_port", "Kernel.configure_inside", "Kernel.raise_port", "Kernel.remove_link",
        "Kernel.raise_routed", "Kernel.close_subnets", "Kernel.open_subnets",
        "Kernel.forget_neighbour", "Kernel.forget_flows", "Kernel.finish_flows",
    ],
    "cni.host.ports": ["configure"],
    "cni.daemon.reconcile.node": ["Reconciler.adopt", "Reconciler.look"],
    "cni.daemon.api.delete_queue": ["drain"],
    "cni.verbs": ["serve"],
    "cni.plugin.delete_queue": ["add", "remove"],
    "cni.files": ["write"],
    "cni.plugin.client": ["connect", "ask", "_send"],
    "cni.plugin.main": ["serve", "write_all"],
    "cni.plugin.autostart": ["_start", "spawn"],
    "cni.plugin.no_daemon": ["_remove_link"],
}  # fmt: skip
PLUGINS = ("cni.plugin.main", "cni.plugin.client", "cni.plugin.autostart", "cni.plugin.no_daemon")
RARE = ("State.grow_service", "State.shrink_service")
"""Points that an ordinary storm does not come by."""


def all_points():
    """The name of every point: "daemon State.save before", "plugin ask after", ..."""
    for module, names in POINTS.items():
        for name in names:
            faces = ["plugin"] if module in PLUGINS else ["daemon"]
            if module == "cni.plugin.delete_queue":
                faces = ["daemon"] if name == "remove" else ["plugin"]
            if module == "cni.files":
                faces = ["plugin"]  # the daemon writes files at its start alone
            for face in faces:
                yield from (f"{face} {name} before", f"{face} {name} after")


def _face():
    return "daemon" if "overlayd" in sys.argv[1:2] else "plugin"


def passing(point):
    """Take what is armed for this point, if anything is, and do it."""
    armed = CONTROL + "/armed"
    try:
        with open(armed, encoding="ascii") as file:
            name, action, seconds = file.read().split("|")
    except (OSError, ValueError):
        return
    if name != f"{_face()} {point}":
        return
    try:
        os.rename(armed, armed + ".taken")
    except OSError:
        return  # another thread was faster
    with open(CONTROL + "/fired", "a", encoding="ascii") as file:
        file.write(f"{name}|{action}\n")
    if action == "kill":
        os.kill(os.getpid(), 9)
    elif action == "stop":
        os.kill(os.getpid(), 19)
    elif action == "sleep":
        import time

        time.sleep(float(seconds))
    elif action == "fail":
        if float(seconds) >= 1:
            with open(armed + ".again", "w", encoding="ascii") as file:
                file.write(f"{name}|fail|{float(seconds) - 1}")
            os.rename(armed + ".again", armed)
        raise OSError(5, "Input/output error (put in by the test)")


def _wrapped(function, point):
    def around(*args, **more):
        passing(f"{point} before")
        result = function(*args, **more)
        passing(f"{point} after")
        return result

    around.__wrapped__ = function  # type: ignore[attr-defined]
    return around


def place_of(module, name):
    """(the object that has it, attribute) of "Class.method" or "function" in a module."""
    owner, _, attribute = name.rpartition(".")
    return (getattr(module, owner) if owner else module), attribute


def _wrap(module, names):
    for name in names:
        owner, attribute = place_of(module, name)
        setattr(owner, attribute, _wrapped(getattr(owner, attribute), name))


def _probe(module):
    """One more question for the tool: what is in the daemon's memory that no record shows."""

    def memory(context, _):
        state, attacher = context.state, context.attacher
        return {
            "held": {str(address): count for address, count in state._addresses.held.items()},
            "locks": len(attacher._locks._held) + len(attacher._segments._locks._held),
            "fds": len(os.listdir("/proc/self/fd")),
        }

    module.QUESTIONS["memory"] = memory


def _read(name):
    try:
        with open(f"{CONTROL}/{name}", encoding="ascii") as file:
            return file.read().split("\n")
    except OSError:
        return []


class Finder:
    """Finds as the others do, and has the module changed when it has been executed."""

    def __init__(self):
        self.faults = [name for name in _read("faults") if name]
        self.tuning = [line.split(" ", 1) for line in _read("tuning") if line]

    def find_spec(self, name, path=None, target=None):
        if not name.startswith("cni."):
            return None
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def change(self, module):
        name = module.__name__
        for constant, value in self.tuning:
            where, _, what = constant.rpartition(".")
            if where == name:
                kind = type(getattr(module, what))
                setattr(module, what, kind(value))
        for fault in self.faults:
            deliberate.put_in(fault, module)  # type: ignore[name-defined]  # noqa: F821 - defined in front of this file
        _wrap(module, POINTS.get(name, ()))
        if name == "cni.daemon.api.tool":
            _probe(module)


class _Loader:
    def __init__(self, loader, finder):
        self._loader = loader
        self._finder = finder

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        self._finder.change(module)

    def __getattr__(self, name):
        return getattr(self._loader, name)
