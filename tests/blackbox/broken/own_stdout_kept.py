"""A child keeps the runtime's stdout open."""

import subprocess

import wrap

done = wrap.real(wrap.asked())
if wrap.verb == "VERSION":
    subprocess.Popen(["sleep", "20"], stdin=subprocess.DEVNULL, start_new_session=True)
wrap.answer(*done)
