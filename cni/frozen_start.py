"""What the frozen program runs first: for a plugin call it brings only what a plugin call needs.

PyInstaller's own start reads its archive's table of contents, installs its importers and walks its directory: a fifth
of what a plugin call costs. While a daemon answers, a call imports two modules of ours and nothing else, and a third
where the configuration says which daemon. So those travel beside the archive, as code, and PyInstaller's start happens
when the first other module is asked for, or at once for the daemon and the tool. plugin.spec puts this file, with what
it carries, in place of PyInstaller's first script.

Not imported by anything; nothing here but what the interpreter has loaded.
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
    """A finder, and the loader, of modules that travel beside the archive."""

    def __init__(self, codes: "Mapping[str, bytes]") -> None:
        self._codes = codes

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """The spec of a module that is at hand; None for any other."""
        return type(sys.__spec__)(name, self) if name in self._codes else None  # type: ignore[arg-type]

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        """None: the import system makes the module."""
        return None

    def exec_module(self, module: "ModuleType") -> None:
        """Execute its code."""
        module.__file__ = _place(module.__name__) + ".pyc"
        exec(marshal.loads(self._codes[module.__name__]), module.__dict__)


class LazyPyInstallerFinder:
    """A finder that finds nothing itself: asked for a module that nobody has, it starts PyInstaller's importers."""

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
    """Start: `importers` are PyInstaller's own modules in the order they need each other, `carried` those of every
    plugin call likewise, a package's code before its modules', and `at_hand` those of some calls; all as marshalled
    code, by name."""
    sys.frozen = True  # type: ignore[attr-defined]
    if len(sys.argv) > 1 or not posix.environ.get(b"CNI_COMMAND"):
        install(importers)
        return
    sys.meta_path.insert(0, PreloadedFinder(at_hand))
    sys.meta_path.append(LazyPyInstallerFinder(importers))
    for name, code in carried.items():
        _load(name, code, any(other.startswith(name + ".") for other in carried))


def install(importers: "Mapping[str, bytes]") -> None:
    """PyInstaller's importers, as its own start installs them."""
    for name, code in importers.items():
        _load(name, code, False)
    sys.modules["pyimod02_importers"].install()
    sys.path_importer_cache.clear()  # directories that were looked into before


def _load(name: str, code: bytes, is_package: bool) -> None:
    """Execute `code` as the module of that name, known to the import system and to its package."""
    spec = type(sys.__spec__)(name, None, is_package=is_package)
    module = type(sys)(name)
    module.__spec__ = spec
    parent, _, last = name.rpartition(".")
    module.__package__ = name if is_package else parent
    place = _place(name)
    module.__file__ = f"{place}/__init__.pyc" if is_package else f"{place}.pyc"
    if is_package:
        module.__path__ = spec.submodule_search_locations = [place]
    sys.modules[name] = module
    exec(marshal.loads(code), module.__dict__)
    if parent:
        setattr(sys.modules[parent], last, module)


def _place(name: str) -> str:
    """Where a module of that name would lie, without its suffix: for tracebacks alone."""
    return "/".join((sys._MEIPASS, *name.split(".")))  # type: ignore[attr-defined]
