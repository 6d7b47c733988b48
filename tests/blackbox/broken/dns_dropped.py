"""The dns of the configuration does not reach the result."""

import wrap

wrap.edit(lambda result: result.pop("dns", None))
