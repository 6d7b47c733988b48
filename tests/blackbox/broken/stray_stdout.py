"""A line of debugging on stdout after a DEL, and before a result."""

import wrap

stdin = wrap.asked()
rc, out, err = wrap.real(stdin)
wrap.answer(rc, b"debug: here\n" + out if wrap.verb in ("ADD", "DEL") else out, err)
