"""Addresses point at the bridge instead of the container."""

import wrap


def change(result):
    for item in result.get("ips", []):
        item["interface"] = 0


wrap.edit(change)
