"""The MAC in the result is not the link's."""

import wrap


def change(result):
    for item in result.get("interfaces", []):
        item["mac"] = "02:00:00:00:00:01"


wrap.edit(change)
