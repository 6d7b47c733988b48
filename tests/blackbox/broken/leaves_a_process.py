"""Each ADD leaves a process."""

import subprocess

import wrap

done = wrap.real(wrap.asked())
if wrap.verb == "ADD":
    quiet = subprocess.DEVNULL
    subprocess.Popen(["sleep", "60"], stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True)
wrap.answer(*done)
