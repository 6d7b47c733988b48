"""ADD removes an interface of the name that was there before."""

import subprocess

import wrap

stdin = wrap.asked()
if wrap.verb == "ADD" and wrap.netns:
    command = ["nsenter", f"--net={wrap.netns}", "ip", "link", "del", wrap.ifname]
    subprocess.run(command, check=False, capture_output=True)
wrap.answer(*wrap.real(stdin))
