"""The default route is in the result and not in the container."""

import subprocess

import wrap

done = wrap.real(wrap.asked())
if wrap.verb == "ADD" and done[0] == 0:
    subprocess.run(["nsenter", f"--net={wrap.netns}", "ip", "route", "del", "default"], check=False)
wrap.answer(*done)
