"""The second DEL of a container fails."""

import json

import wrap

stdin = wrap.asked()
if wrap.verb == "DEL" and wrap.cid and not wrap.own_leases(wrap.config(stdin)):
    wrap.answer(1, json.dumps({"code": 999, "msg": "no such container"}).encode())
wrap.answer(*wrap.real(stdin))
