"""Keeps standard output for data: whatever foreign code prints goes to standard error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


class _Data:
    """Standard output, or what has taken its place: it looks like the stream that it leads to."""

    stream: TextIO | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream or sys.stdout, name)


data = _Data()


@contextmanager
def output_for_data() -> Iterator[None]:
    """Lets `data` alone write to standard output; all others write to standard error instead.

    These may be models and factories that print, libraries below Python, and other processes.
    """
    with _moved(sys.stdout) as stream, redirect_stdout(sys.stderr):
        data.stream = stream
        try:
            yield
        finally:
            data.stream = None


@contextmanager
def _moved(stream: TextIO) -> Iterator[TextIO]:
    """Gives a copy of a stream, while its own file descriptor leads to standard error."""
    try:
        number, error = stream.fileno(), sys.stderr.fileno()
    except OSError:  # no files, but memory
        yield stream
        return

    stream.flush()
    copy = os.dup(number)
    os.dup2(error, number)
    try:
        with os.fdopen(os.dup(copy), "w", encoding=stream.encoding, errors=stream.errors) as own:
            yield own
    finally:
        stream.flush()  # what went around the redirection
        os.dup2(copy, number)
        os.close(copy)
