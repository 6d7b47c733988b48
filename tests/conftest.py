"""For every part: generated tests are the same in every run, and a busy machine is no failure.

ZLAYER_EXPLORE=1 has hypothesis look for new examples instead.
"""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "zlayer",
    deadline=None,  # how long an example takes is the machine's business
    derandomize=not os.environ.get("ZLAYER_EXPLORE"),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("zlayer")
