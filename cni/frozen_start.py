"""The first script of the frozen program: for a plugin call it loads only the modules that a plugin call needs.

PyInstaller's own start reads the table of contents of its archive, installs its importers and walks its directory: a
fifth of the time of a plugin call. While a daemon answers, a call imports three modules of ours, and a fourth if the
configuration names the daemon. These modules are stored beside the archive, as code. PyInstaller's start runs when the
first other module is imported, and at once for the daemon and the tool. plugin.spec puts this file, with the code it
carries, in place of PyInstaller's first script.

No module imports this one. It uses only modules that the interpreter has already loaded.
"""

import marshal
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class PreloadedFinder:
    """Finder and loader of the modules that are stored beside the archive."""

    def __init__(self, codes: "Mapping[str, bytes]") -> None:
        self._codes = codes

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of a module that is stored beside the archive; None for any other."""
        return type(sys.__spec__)(name, self) if name in self._codes else None  # type: ignore[arg-type]

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """None: the import system creates the module."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """Execute the module's code."""
        module.__file__ = _module_path(module.__name__) + ".pyc"
        exec(marshal.loads(self._codes[module.__name__]), module.__dict__)


class LazyPyInstallerFinder:
    """The last finder: asked for a module that no other finder has, it installs PyInstaller's importers."""

    def __init__(self, importers: "Mapping[str, bytes]") -> None:
        self._importers = importers

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of the module as PyInstaller's importers find it; None if they do not."""
        sys.meta_path.remove(self)
        install(self._importers)
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                return spec
        return None


def begin(importers: "Mapping[str, bytes]", carried: "Mapping[str, bytes]", at_hand: "Mapping[str, bytes]") -> None:
    """Start the program. All three arguments map module names to marshalled code: `importers` holds PyInstaller's own
    modules in import order, `carried` the modules of every plugin call in import order (a package before its modules),
    `at_hand` the modules of some plugin calls."""
    sys.frozen = True  # type: ignore[attr-defined]
    if len(sys.argv) > 1 or not posix.environ.get(b"CNI_COMMAND"):
        install(importers)
        return
    sys.meta_path.insert(0, PreloadedFinder(at_hand))
    sys.meta_path.append(LazyPyInstallerFinder(importers))
    for name, code in carried.items():
        _load(name, code, any(other.startswith(name + ".") for other in carried))


def install(importers: "Mapping[str, bytes]") -> None:
    """Install PyInstaller's importers, as PyInstaller's own start does."""
    for name, code in importers.items():
        _load(name, code, False)
    sys.modules["pyimod02_importers"].install()
    sys.path_importer_cache.clear()  # it holds finders that were created before the importers were installed


def _load(name: str, code: bytes, is_package: bool) -> None:
    """Execute `code` as the module `name`, and register it in sys.modules and in its package."""
    spec = type(sys.__spec__)(name, None, is_package=is_package)
    module = type(sys)(name)
    module.__spec__ = spec
    parent, _, last = name.rpartition(".")
    module.__package__ = name if is_package else parent
    path = _module_path(name)
    module.__file__ = f"{path}/__init__.pyc" if is_package else f"{path}.pyc"
    if is_package:
        module.__path__ = spec.submodule_search_locations = [path]
    sys.modules[name] = module
    exec(marshal.loads(code), module.__dict__)
    if parent:
        setattr(sys.modules[parent], last, module)


def _module_path(name: str) -> str:
    """The path that the module would have, without suffix; used in tracebacks only."""
    return "/".join((sys._MEIPASS, *name.split(".")))  # type: ignore[attr-defined]
