"""Each ADD turns a knob of the host further."""

from pathlib import Path

import wrap

done = wrap.real(wrap.asked())
if wrap.verb == "ADD":
    knob = Path("/proc/sys/net/ipv4/conf/eth0/tag")
    knob.write_text(str(int(knob.read_text()) + 1))
wrap.answer(*done)
