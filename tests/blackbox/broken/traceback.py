"""Errors come with a traceback on stderr."""

import wrap

rc, out, err = wrap.real(wrap.asked())
wrap.answer(rc, out, err + (b"Traceback (most recent call last):\n" if rc else b""))
