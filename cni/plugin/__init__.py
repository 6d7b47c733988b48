"""The plugin process: what a runtime execs. Standard library only, and nothing imported that can be avoided.

`main` serves the call while a daemon answers at the door; `closed` is for when none does.
"""
