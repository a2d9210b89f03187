"""List every component: architectures, data sets, attacks, suites, methods, recipes, ..."""

import tomllib

import click

from robustbench_kd.cli import _options
from robustbench_kd.core.plugins import components, files

_KINDS = {
    "architectures": "models",
    "data sets": "datasets",
    "families": "defences",
    "attacks": "attacks",
    "training methods": "training/methods",
    "distillation methods": "distill",
    "trust checks": "trust",
    "report formats": "analysis/formats",
    "trackers": "analysis/trackers",
}
_TABLES = {
    "suites": "suites",
    "training recipes": "training/recipes",
    "distillation recipes": "distill/recipes",
}


@click.command("list")
@_options.as_json
def command(*, as_json: bool) -> None:
    """Lists every component by name with one line about it.

    \b
    Example:
      rkd list
    """
    from robustbench_kd.cli import _console

    found: dict[str, dict[str, str]] = {}
    for title, kind in _KINDS.items():
        found[title] = _summaries(kind)
    for title, kind in _TABLES.items():
        found[title] = _toml_summaries(kind)
    checks = found["trust checks"]
    found["trust checks"] = {name.replace("_", "-"): checks[name] for name in checks}  # as findings

    if as_json:
        _console.write_json(found)
        return
    for title, summaries in found.items():
        table = _console.table(title, {"name": "left", "what it is": "left"})
        for name, summary in summaries.items():
            table.add_row(_console.plain(name), _console.plain(summary))
        _console.show_table(table)


def _summaries(kind: str) -> dict[str, str]:
    return {name: component.summary for name, component in components(kind).items()}


def _toml_summaries(kind: str) -> dict[str, str]:
    summaries = {}
    for name, path in files(kind, ".toml").items():
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        summaries[name] = content.get("summary", "")
    return summaries
