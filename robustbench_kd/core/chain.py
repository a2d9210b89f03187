"""Lines that show whether they are whole, in their place, and of their run.

A line is a JSON list of a checksum and a value. The checksum is the beginning of the SHA-256 of the
checksum of the line before and of the value; the first line goes on from the names of its run and
its file. So a flipped byte shows, and so does a line that was moved, repeated, left out, or written
for another run. It is no signature: whoever means to forge a line can compute its checksum, too.
"""

import hashlib
from pathlib import Path

_DIGITS = 16
_BEFORE, _BETWEEN, _AFTER = b'["', b'",', b"]\n"
_START = len(_BEFORE) + _DIGITS + len(_BETWEEN)


def first_link(path: Path) -> str:
    """Returns what the first line of a file goes on from; its folder has the name of its run."""
    return f"{path.absolute().parent.name}/{path.name}"


def linked(link: str, value: bytes) -> tuple[str, bytes]:
    r"""Returns the checksum of a JSON value after another one, and the line that holds both.

    >>> linked("run/ledger.jsonl", b"{}")
    ('6e01855246a380c9', b'["6e01855246a380c9",{}]\n')
    """
    checksum = _checksum(link, value)
    return checksum, _BEFORE + checksum.encode() + _BETWEEN + value + _AFTER


def value_of(link: str, line: bytes) -> tuple[str, bytes] | None:
    """Returns the checksum and the value of a line, None where it does not go on from a link."""
    value = line[_START : -len(_AFTER)]
    checksum, expected = linked(link, value)
    return (checksum, value) if line == expected else None


def _checksum(link: str, value: bytes) -> str:
    digest = hashlib.sha256(link.encode())
    digest.update(b" ")
    digest.update(value)
    return digest.hexdigest()[:_DIGITS]
