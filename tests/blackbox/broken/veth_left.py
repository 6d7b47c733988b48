"""DEL frees the address and leaves the link."""

import wrap

env = {"CNI_NETNS": ""} if wrap.verb == "DEL" else {}
wrap.answer(*wrap.real(wrap.asked(), **env))
