"""MAC addresses in capitals."""

import wrap


def change(result):
    for item in result.get("interfaces", []):
        item["mac"] = item.get("mac", "").upper()


wrap.edit(change)
