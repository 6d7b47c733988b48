"""CHECK says yes to everything."""

import wrap

stdin = wrap.asked()
if wrap.verb == "CHECK":
    wrap.answer(0, b"")
wrap.answer(*wrap.real(stdin))
