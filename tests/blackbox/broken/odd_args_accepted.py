"""CNI_ARGS are not looked at."""

import wrap

wrap.answer(*wrap.real(wrap.asked(), CNI_ARGS=""))
