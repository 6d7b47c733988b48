"""STATUS always says 50."""

import wrap

stdin = wrap.asked()
if wrap.verb == "STATUS":
    wrap.answer(1, b'{"cniVersion": "1.1.0", "code": 50, "msg": "not ready"}')
wrap.answer(*wrap.real(stdin))
