"""Each DEL leaves a file."""

import wrap

stdin = wrap.asked()
done = wrap.real(stdin)
if wrap.verb == "DEL":
    (wrap.leases(wrap.config(stdin)) / f"deleted-{wrap.cid}").touch()
wrap.answer(*done)
