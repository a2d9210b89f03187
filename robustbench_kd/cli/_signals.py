"""Lets SIGTERM and SIGHUP end a command as Ctrl-C does: what was decided is kept, and said."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stopping() -> Iterator[None]:
    """Raises `Stopped` where such a signal arrives meanwhile; nohup's ignored SIGHUP stays so."""
    in_main = threading.current_thread() is threading.main_thread()
    chosen = [one for one in _SIGNALS if in_main and signal.getsignal(one) == signal.SIG_DFL]
    for one in chosen:
        signal.signal(one, _stop)
    try:
        yield
    finally:
        for one in chosen:
            signal.signal(one, signal.SIG_DFL)


def exit_code(error: BaseException) -> int:
    """Returns 128 plus the number of the signal that ended a command; Ctrl-C is SIGINT."""
    for one in (error, error.__cause__):
        if isinstance(one, Stopped):
            return 128 + one.number
    return 128 + signal.SIGINT


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    for one in _SIGNALS:
        signal.signal(one, signal.SIG_IGN)  # the end is not to be disturbed
    raise Stopped(number)
