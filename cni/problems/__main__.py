"""Prints docs/problems.md: `python -m cni.problems > docs/problems.md`."""

import sys

from cni.problems.page import page

sys.stdout.write(page())
