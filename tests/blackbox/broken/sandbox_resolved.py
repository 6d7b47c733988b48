"""The sandbox is the resolved path, not the string that was given."""

import os

import wrap


def change(result):
    for item in result.get("interfaces", []):
        if item.get("sandbox"):
            item["sandbox"] = os.path.realpath(item["sandbox"])


wrap.edit(change)
