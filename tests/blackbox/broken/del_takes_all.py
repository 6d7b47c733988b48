"""DEL of one interface removes all of the container."""

import wrap

stdin = wrap.asked()
if wrap.verb == "DEL":
    wrap.real(stdin, CNI_IFNAME="net1")
wrap.answer(*wrap.real(stdin))
