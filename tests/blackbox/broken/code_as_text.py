"""The code of an error is a string."""

import json

import wrap

rc, out, err = wrap.real(wrap.asked())
if rc:
    error = json.loads(out)
    out = json.dumps({**error, "code": str(error["code"])}).encode()
wrap.answer(rc, out, err)
