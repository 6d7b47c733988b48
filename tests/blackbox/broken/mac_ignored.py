"""A MAC that was asked for is not used."""

import json
import os

import wrap

stdin = wrap.asked()
conf = wrap.config(stdin)
for key in ("runtimeConfig", "args"):
    conf.pop(key, None)
if conf:
    stdin = json.dumps(conf).encode()
wrap.answer(*wrap.real(stdin, CNI_ARGS="", PATH=os.environ.get("PATH", "")))
