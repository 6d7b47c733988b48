"""Addresses point behind the end of the list."""

import wrap


def change(result):
    for item in result.get("ips", []):
        item["interface"] = len(result["interfaces"])


wrap.edit(change)
