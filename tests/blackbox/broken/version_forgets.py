"""VERSION leaves out a version that works."""

import json

import wrap

rc, out, err = wrap.real(wrap.asked())
if wrap.verb == "VERSION":
    known = json.loads(out)
    known["supportedVersions"].remove("0.2.0")
    out = json.dumps(known).encode()
wrap.answer(rc, out, err)
