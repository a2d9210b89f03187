"""A gate as GitHub's workflow commands: annotations, and a fence around untrusted text.

The escapes are those of `actions/toolkit`, `packages/core/src/command.ts`.
"""

from robustbench_kd.analysis.gate import Gate

_TEXT = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def render(gate: Gate) -> list[str]:
    """Returns one line per regression and gap, which are errors, and per note, a warning."""
    lines = []
    for cell in gate.failures:
        lines.append(command("error", f"{cell.after.model}: robustness regression", cell.text))
    for gap in gate.gaps:
        lines.append(command("error", f"{gap.model}: not judged", gap.text))
    for note in gate.notes:
        lines.append(command("warning", "robustness gate", note))
    return lines


def command(kind: str, title: str, text: str) -> str:
    r"""Returns a workflow command on one line, whatever title and text hold.

    >>> print(command("error", "a:b", "50 %\nlost"))
    ::error title=a%3Ab::50 %25%0Alost
    """
    return f"::{kind} title={title.translate(_PROPERTY)}::{text.translate(_TEXT)}"


def fenced(token: str) -> tuple[str, str]:
    """Returns two lines; between them GitHub obeys no command.

    `token` must not be guessable.
    """
    return f"::stop-commands::{token}", f"::{token}::"
