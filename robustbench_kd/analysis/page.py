"""Writes HTML pages: one file each, without network requests and without scripts but its own."""

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from robustbench_kd.core.text import printable

_TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, **content: Any) -> str:
    """Returns a page from a template.

    Every text is escaped, and its control characters spelled out. The page's policy names its one
    script by hash: what a hostile name might smuggle in would not run.
    """
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_shown,
    )
    script = (_TEMPLATES / "page.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals["script"] = Markup(script)  # noqa: S704  # our own
    environment.globals["style"] = Markup(style)  # noqa: S704  # our own
    environment.globals["script_hash"] = digest
    return environment


def _shown(value: Any) -> Any:
    return printable(value) if type(value) is str else value
