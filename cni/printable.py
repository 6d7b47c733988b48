"""Text of others' making (names of nodes and pods, keys of the store, values of a file) on its way to a person."""


def printable(text: str) -> str:
    r"""`text` on one line: what cannot be printed (line breaks, escapes, marks that turn a line round) as `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """`printable`, of what a program said on several lines: these are joined by spaces."""
    return printable(" ".join(text.split()))
