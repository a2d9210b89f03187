"""Text that is safe to show, wherever it came from, and numbers as people read them."""

_GAP = " ... "


def printable(text: str) -> str:
    r"""Returns a text with line breaks, control characters and bytes that are no text spelled out.

    >>> printable("net\n2")
    'net\\n2'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, most: int = 300) -> str:
    """Returns a text of at most so many characters: the middle of a longer one is left out.

    >>> shortened("expected one word, got a whole book; write less", most=36)
    'expected one word,  ... ; write less'
    """
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[: most - end - len(_GAP)]}{_GAP}{text[-end:]}"


def duration(seconds: float) -> str:
    """Returns seconds as `42s`, `3m05s` or `2h10m`."""
    if round(seconds) < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


def percent(fraction: float) -> str:
    """Returns a fraction in percent.

    >>> percent(0.5)
    '50.0'
    """
    return f"{100 * fraction:.1f}"


def percent_interval(value: float, low: float, high: float) -> str:
    """Returns a fraction in percent with its interval.

    >>> percent_interval(0.5, 0.469, 0.531)
    '50.0 [46.9, 53.1]'
    """
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"
