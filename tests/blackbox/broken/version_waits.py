"""VERSION reads stdin to its end."""

import sys

import wrap

if wrap.verb == "VERSION":
    sys.stdin.buffer.read()
wrap.answer(*wrap.real(wrap.asked()))
