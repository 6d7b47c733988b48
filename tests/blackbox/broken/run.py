"""Runs one of the faults: `python3 run.py FAULT REAL-PLUGIN [its words]`."""

import runpy
import sys
from pathlib import Path

here = Path(__file__).resolve().parent
sys.path.insert(0, str(here))
fault = sys.argv.pop(1)
runpy.run_path(str(here / f"{fault}.py"), run_name="__main__")
