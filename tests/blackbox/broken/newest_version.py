"""Results always say 1.1.0."""

import wrap

wrap.edit(lambda result: result.update(cniVersion="1.1.0"))
