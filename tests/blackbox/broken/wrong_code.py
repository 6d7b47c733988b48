"""Every error has code 999."""

import json

import wrap

rc, out, err = wrap.real(wrap.asked())
if rc:
    out = json.dumps({**json.loads(out), "code": 999}).encode()
wrap.answer(rc, out, err)
