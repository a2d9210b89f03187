"""Prints a Markdown table row by row, because a row can take minutes."""

from collections.abc import Iterable, Sequence
from itertools import chain


def printed(headings: Sequence[str], rule: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Prints a table as its rows come, and returns it; `rule` is `---` or `--:` by column."""
    lines = []
    for cells in chain([headings, rule], rows):
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"
