"""Every container gets the same address."""

import wrap

stdin = wrap.asked()
done = wrap.real(stdin)
if wrap.verb == "ADD":
    for path in wrap.leases(wrap.config(stdin)).glob("*.*"):
        path.unlink()
wrap.answer(*done)
