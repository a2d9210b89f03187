"""Hostile text in records, to every table, page and terminal output."""

import html.parser
import json

from click.testing import CliRunner
from fake_runs import identity, planted, record, rows
from mutations import EDGES, TEXTS

from robustbench_kd.cli import main
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.rundir import run_folder, write_record

SHARE = 1
_FORMATS = "csv,markdown,html,latex,json,huggingface,robustbench"
_MARKS = "\x1b\x9b\x07\x00\x85\u202e\u2066\u200b\u2028[]<>&'\"`|\\${}#%_~^*/:;=ab \t\n"
_PLAIN = {"model", "family", "architecture", "normalisation", "dataset", "suite", "engine", "norm"}
_PLAIN |= {"eps_text", "device", "precision", "code_sha256", "mode"}


class _Tags(html.parser.HTMLParser):
    """The tags and links of a page."""

    def __init__(self):
        super().__init__()
        self.scripts, self.handlers = 0, []

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        self.handlers += [value for _, value in attributes if "javascript:" in (value or "")]


def _evil(random):
    if random.random() < 0.3:
        return random.choice(TEXTS).replace("\ud800", "?")[:300]
    return "".join(random.choice(_MARKS) for _ in range(random.randint(1, 40)))


def _store(random, results):
    plan = planted(n=20, robust=random.randint(0, 15), wrong=3)
    fields = {name: _evil(random) for name in random.sample(sorted(_PLAIN), 3)}
    asked = identity(plan.n, **fields, versions={_evil(random): _evil(random)})
    found = Finding(
        check=_evil(random),
        severity=random.choice(list(Severity)),
        message=_evil(random),
        advice=_evil(random),
        value=random.choice([None, 0.5, *map(float, EDGES)]),
    )
    examples = rows(plan)
    made = record(
        asked, examples, findings=[found], verdict="unreliable", environment={"k": _evil(random)}
    )
    folder = run_folder(results, "net", asked.run_id())
    write_record(folder, made, examples)
    return folder


def _check(text, where):
    hidden = [letter for letter in text if letter not in "\n\t" and not letter.isprintable()]
    assert not hidden, f"{where}: {hidden[:3]!r}"


def _check_file(path):
    text = path.read_bytes().decode("utf-8")
    _check(text, path.name)
    if path.name.endswith(".json"):
        json.loads(text)
    if path.suffix == ".html":
        page = _Tags()
        page.feed(text)
        assert page.scripts <= 1, path.name
        assert not page.handlers, (path.name, page.handlers)


def attempt(random, folder):
    results = folder / "results"
    one, other = _store(random, results), _store(random, results)
    command = random.choice([
        ["leaderboard", str(results), "--format", _FORMATS],
        ["leaderboard", str(results), "--json"],
        ["report", str(results), "--output", str(folder / "page.html")],
        ["compare", str(one), str(other)],
        ["compare", str(one), str(other), "--format", "markdown"],
        ["gate", str(results), "--baseline", str(results), "--markdown", str(folder / "gate.md")],
        ["gate", str(results), "--baseline", str(results), "--junit", str(folder / "gate.xml")],
        ["verify", str(one)],
        ["check", _evil(random) + "x"],
        ["eval", _evil(random) + "x.toml", "--suite", _evil(random)],
    ])  # fmt: skip
    made = CliRunner().invoke(main, command)
    assert made.exit_code in {0, 1, 2, 3, 4}, (command, made.exit_code, made.output[-600:])
    _check(made.stdout, f"stdout of {command[0]}")
    _check(made.stderr, f"stderr of {command[0]}")
    for path in folder.rglob("*"):
        if path.is_file() and not {one, other} & set(path.parents):
            _check_file(path)
