"""The program under test, with fault points put into a copy of it: from source, unpacked, or as a single file.

A frozen program imports Python's own modules from a zip beside it. In the copy one of those, `encodings`, which every
Python imports first, also installs what `inside.py` defines. Everything of ours stays byte for byte what was built;
that the points are there at all is seen by their firing.

| form | the plugin | its fault points |
| --- | --- | --- |
| `source`, `unpacked` | Python, without the launcher | those of `inside.py` |
| `single` | the launcher, built with ZLAYER_FAULT_POINTS; Python where the launcher hands over | LAUNCHER_POINTS |
| `plain` | the single file without the launcher, which cannot be changed | none: it is killed at random moments |

The daemon of a single file is a copy with fault points too, extracted where the single file would have extracted it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

from cni import __version__

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DIST = Path(os.environ.get("ZLAYER_DIST", ROOT / "dist"))
FORMS = {
    "single": DIST / "zlayer-cni",
    "unpacked": DIST / "zlayer-cni.d" / "python" / "zlayer-cni",
    "plain": DIST.with_name(f"{DIST.name}-plain") / "zlayer-cni",
}
DEFAULT_FORMS = ("single", "unpacked")
LAUNCHER = ROOT / "cni" / "launcher"
LAUNCHER_POINTS = ("read", "connected", "sent-a-part", "sent", "received", "printed", "confirmed")
"""The fault points of a call that the launcher serves, in their order (cni/launcher)."""
TRAILER = struct.Struct("<16s32sQQ")
"""The end of the single file: magic, name, offset of the archive, its size (plugin.spec, `with_launcher`)."""
FIRST = "encodings/__init__"

DOOR = """
import builtins as _builtins
import sys as _sys

_exec, _finders = exec, []

def _finder():
    if not _finders:
        with open(_POINTS, "rb") as file:
            code = compile(file.read(), _POINTS, "exec")
        scope = {"__name__": "points"}
        _exec(code, scope)
        _finders.append(scope["Finder"]())
    return _finders[0]

class _Waiting:
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("cni."):
            return None
        _sys.meta_path.remove(self)
        _sys.meta_path.insert(0, _finder())
        return _finder().find_spec(name, path, target)

def _exec_and_tell(code, scope=None, *more):
    if scope is None:
        scope = _sys._getframe(1).f_globals
        more = (_sys._getframe(1).f_locals,)
    _exec(code, scope, *more)
    module = _sys.modules.get(scope.get("__name__"))
    if module is not None and module.__dict__ is scope and module.__name__.startswith("cni."):
        if getattr(module.__spec__, "loader", _sys) is None:
            _finder().change(module)

_sys.meta_path.insert(0, _Waiting())
_builtins.exec = _exec_and_tell
"""
"""Installed before anything else runs; waits for the first module of ours. What a plugin call needs comes without the
import system (cni/frozen_start.py): it is executed, and that is seen too."""


class Program:
    """How to call one form of the program, with its daemon's fault points steered by the files in `control`."""

    def __init__(self, form: str, place: Path, data_dir: Path, *, version: str = "", plain: bool = False) -> None:
        """`place` is a directory of its own. `version` makes the copy say that it is that version. `plain`: no
        changes at all."""
        self.form = form
        self.version = version or __version__
        self.control = place / "control"
        self.control.mkdir(parents=True, exist_ok=True)
        self.env: dict[str, str] = {}
        self._points = place / "points.py"
        self._write_points(version)
        if form == "source":
            self._from_source(place, plain)
        elif form == "unpacked":
            copy = place / "zlayer-cni.d"
            shutil.copytree(FORMS[form].parent, copy, copy_function=os.link)
            if not plain:
                self._open_door(copy / "_internal" / "base_library.zip")
            self.command = [str(copy / FORMS[form].name)]
            self.daemon = self.command
        else:
            self.command = [str(FORMS[form] if plain or form == "plain" else self._with_fault_points(place))]
            subprocess.run([*self.command, "overlayd", "--help", "--data-dir", str(data_dir)],
                           check=True, capture_output=True, timeout=60)  # fmt: skip
            (laid,) = (data_dir / "program").glob("*-*/zlayer-cni")
            home = laid.parent / "python" if form == "single" else laid.parent
            if not plain:
                self._open_door(home / "_internal" / "base_library.zip")
            self.daemon = [str(home / "zlayer-cni")]

    def _with_fault_points(self, place: Path) -> Path:
        """The single file with a launcher that has fault points, and the same archive."""
        raw = FORMS["single"].read_bytes()
        magic, name, offset, size = TRAILER.unpack(raw[-TRAILER.size :])
        launcher, file = place / "launcher", place / "zlayer-cni"
        sources = sorted(map(str, LAUNCHER.glob("*.c")))
        subprocess.run(
            ["gcc", "-std=c11", "-O2", "-DZLAYER_FAULT_POINTS", "-static", "-o", launcher, *sources], check=True
        )
        start = launcher.read_bytes()
        file.write_bytes(start + raw[offset : offset + size] + TRAILER.pack(magic, name, len(start), size))
        file.chmod(0o755)
        return file

    def _from_source(self, place: Path, plain: bool) -> None:
        self.command = [sys.executable, "-m", "cni"]
        self.daemon = self.command
        door = place / "door"
        door.mkdir(exist_ok=True)
        if not plain:
            (door / "sitecustomize.py").write_text(f"_POINTS = {str(self._points)!r}\n{DOOR}")
        self.env["PYTHONPATH"] = f"{door}{os.pathsep}{ROOT}"

    def _write_points(self, version: str) -> None:
        faults = (HERE / "deliberate.py").read_text()
        text = f"CONTROL = {str(self.control)!r}\n"
        text += f"deliberate = type('deliberate', (), {{}})()\nexec({faults!r}, deliberate.__dict__)\n"
        text += (HERE / "inside.py").read_text()
        if version:
            text += f"\nimport cni\ncni.__version__ = {version!r}\n"
        self._points.write_text(text)

    def _open_door(self, library: Path) -> None:
        """Replace the zip by one whose first module also opens the door. By rename: the original may be linked."""
        fresh = library.with_suffix(".new")
        with zipfile.ZipFile(library) as old, zipfile.ZipFile(fresh, "w", zipfile.ZIP_STORED) as new:
            for info in old.infolist():
                if info.filename == f"{FIRST}.pyc":
                    new.writestr(f"{FIRST}.original", old.read(info))
                    new.writestr(f"{FIRST}.py", self._first_module())
                else:
                    new.writestr(info, old.read(info))
        fresh.rename(library)

    def _first_module(self) -> str:
        load = f'exec(_marshal.loads(__loader__.get_data(__loader__.archive + "/{FIRST}.original")[16:]))'
        return f"import marshal as _marshal\n{load}\n_POINTS = {str(self._points)!r}\n{DOOR}"

    # --- steering --------------------------------------------------------------------------------------------------

    def arm(self, point: str, action: str, seconds: float = 0.0) -> None:
        """The next thread that passes `point` does `action`: kill, stop, sleep, fail."""
        fresh = self.control / "armed.new"
        fresh.write_text(f"{point}|{action}|{seconds}")
        fresh.rename(self.control / "armed")

    def disarm(self) -> bool:
        """Nothing is armed afterwards; whether something still was."""
        armed = (self.control / "armed").exists()
        (self.control / "armed").unlink(missing_ok=True)
        return armed

    @property
    def armed(self) -> bool:
        return (self.control / "armed").exists()

    def fired(self) -> list[str]:
        """The points that were taken so far."""
        path = self.control / "fired"
        return [line.split("|")[0] for line in path.read_text().splitlines()] if path.exists() else []

    def tune(self, **constants: float) -> None:
        """Constants of what starts next, with `__` for dots: cni__daemon__reconcile__node__INTERVAL=2.0."""
        lines = [f"{name.replace('__', '.')} {value}" for name, value in constants.items()]
        (self.control / "tuning").write_text("\n".join(lines))

    def break_with(self, *faults: str) -> None:
        """These deliberate faults are in whatever starts next."""
        (self.control / "faults").write_text("\n".join(faults))


def forms(given: str | None) -> list[str]:
    """The forms to run: that of --plugin, else the frozen ones that are built, else none."""
    if given == "source":
        return ["source"]
    if given:
        path = Path(given).resolve()
        form = "unpacked" if (path.parent / "_internal").is_dir() else "single"
        if form == "single" and path.read_bytes()[-TRAILER.size :][:15] != b"zlayer-program\x01":
            form = "plain"
        FORMS[form] = path
        return [form]
    return [form for form in DEFAULT_FORMS if FORMS[form].exists()]
