"""CHECK leaves a file."""

import wrap

stdin = wrap.asked()
if wrap.verb == "CHECK":
    (wrap.leases(wrap.config(stdin)) / "checked").touch()
wrap.answer(*wrap.real(stdin))
