"""Text that is safe to show, wherever it came from."""


def printable(text: str) -> str:
    r"""Returns a text with line breaks, control characters and bytes that are no text spelled out.

    >>> printable("net\n2")
    'net\\n2'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
