"""Errors are printed, and the exit code is 0."""

import wrap

rc, out, err = wrap.real(wrap.asked())
wrap.answer(0, out, err)
