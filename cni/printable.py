"""Makes text from outside the program (names of nodes and pods, keys of the store, values of a file) safe to print."""


def printable(text: str) -> str:
    r"""`text` on one line: characters that cannot be printed (line breaks, escapes, bidirectional marks) as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """`printable`, for the output of a program: its lines are joined by spaces."""
    return printable(" ".join(text.split()))
