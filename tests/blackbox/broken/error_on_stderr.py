"""Errors go to stderr."""

import wrap

rc, out, err = wrap.real(wrap.asked())
wrap.answer(rc, b"" if rc else out, out if rc else err)
