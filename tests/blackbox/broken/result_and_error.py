"""A failing ADD prints a result as well."""

import wrap

rc, out, err = wrap.real(wrap.asked())
if wrap.verb == "ADD" and rc:
    out = b'{"cniVersion": "1.0.0", "ips": []}' + out
wrap.answer(rc, out, err)
