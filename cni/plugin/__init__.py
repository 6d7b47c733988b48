"""The plugin's process, which a runtime starts. Standard library only, with as few imports as possible.

`main` serves the call while a daemon answers on the CNI socket; `no_daemon` is used if none does.
"""
