"""The container id is not judged."""

import re

import wrap

safe = re.sub("[^a-zA-Z0-9]", "x", wrap.cid)
env = {"CNI_CONTAINERID": safe} if safe else {}
wrap.answer(*wrap.real(wrap.asked(), **env))
