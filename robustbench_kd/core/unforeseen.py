"""What to say of an error that nobody foresaw: one line to report, the rest in a file."""

import tempfile
import traceback
from pathlib import Path

from robustbench_kd.core.errors import InternalError, reason


def unforeseen(error: BaseException) -> InternalError:
    """Returns one line that says what to report, and which new file holds the traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    kept = _kept("".join(traceback.format_exception(error)))
    return InternalError(
        f"rkd itself failed: {type(error).__name__}{place}: {reason(error)}; please report this "
        f"line, the command{kept}; finished work is kept"
    )


def _kept(text: str) -> str:
    """Writes a text to a new temporary file and returns what to say of it; none on a full disk."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="rkd-error-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:
        return ""
    return f" and '{file.name}'"
