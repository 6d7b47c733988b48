"""For every part: generated tests are the same in every run, a busy machine is no failure, and a program that a test
starts can be interrupted, although the tests themselves run in the background of a shell, which ignores SIGINT.

ZLAYER_EXPLORE=1 has hypothesis look for new examples instead.
"""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile(
    "zlayer",
    deadline=None,  # how long an example takes is the machine's business
    derandomize=not os.environ.get("ZLAYER_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("zlayer")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a program inherits that; a handler it does not inherit
    signal.signal(signal.SIGINT, signal.default_int_handler)
