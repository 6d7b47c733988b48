"""The host's end is not in the result."""

import wrap


def change(result):
    if "interfaces" in result:
        del result["interfaces"][1]
        for item in result["ips"]:
            item["interface"] = 1


wrap.edit(change)
