"""The interface is always called eth0."""

import wrap

env = {"CNI_IFNAME": "eth0"} if wrap.ifname else {}
wrap.answer(*wrap.real(wrap.asked(), **env))
