"""Text of a received file reaches no terminal and no document with a control character in it."""

from pathlib import Path

import pytest
from fake_runs import identity, planted, record, rows

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.core.rundir import run_folder, write_record

EVIL = "\x1b[31mred\x9b2J\x07 \u202eleft [bold]<b>a|b&_$%\x85"
BAD = ("\x1b", "\x9b", "\x07", "\u202e", "\x85")
FORMATS = "csv,markdown,html,latex,json,huggingface,robustbench"
# Texts of a record that may be anything: the others are names that a reader compares.
FREE = ("model", "family", "architecture", "normalisation", "dataset", "code_sha256", "eps_text")


def clean(text):
    return not any(character in text for character in BAD)


@pytest.fixture
def hostile(tmp_path):
    """Two results folders, every text of whose runs is hostile, and findings."""
    for folder, robust in (("first", 500), ("second", 300)):
        for field in FREE:
            plan = planted(robust=robust)
            asked = identity(plan.n, **{field: EVIL}, versions={f"package {EVIL}": EVIL})
            stored = record(
                asked,
                rows(plan),
                findings=[
                    Finding(check=f"a {EVIL}", severity=Severity.RED, message=EVIL, advice=EVIL)
                ],
                verdict="unreliable",
                environment={f"key {EVIL}": EVIL},
            )
            write_record(run_folder(tmp_path / folder, "net", asked.run_id()), stored, rows(plan))
    return tmp_path


def commands(folder):
    first, second = folder / "first", folder / "second"
    yield "leaderboard", first, "--format", FORMATS
    yield "leaderboard", first, "--json"
    yield "report", first, "--baseline", second, "--output", folder / "page.html"
    files = [f"--{kind}" for kind in ("junit", "markdown", "badge")]
    named = [part for file in files for part in (file, folder / file.strip("-"))]
    yield "gate", second, "--baseline", first, *named
    yield "gate", second, "--baseline", first, "--json"
    for run in sorted(first.rglob("run.json"))[:3]:
        other = next(second.rglob(run.parent.name), run.parent)
        yield "compare", run.parent, other
        yield "compare", run.parent, other, "--format", "markdown"
        yield "compare", run.parent, other, "--json"
        yield "verify", run.parent


def test_hostile_text_of_records_reaches_no_output(rkd, hostile):
    before = set(hostile.rglob("*"))
    for command in commands(hostile):
        told = rkd(*command)
        assert told.code in {0, 1, 2, 4}, (command, told.stderr)
        assert clean(told.stdout), command
        assert clean(told.stderr), command
    shown = rkd("leaderboard", hostile / "first").stdout
    assert shown.count("x1b[31mred") >= 2
    written = [path for path in set(hostile.rglob("*")) - before if path.is_file()]
    written += [path for path in hostile.rglob("leaderboard.*") if path.is_file()]
    assert len(written) > 7
    for path in written:
        assert clean(path.read_text(encoding="utf-8")), path.name


def test_hostile_names_of_options_and_files_reach_no_output(rkd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = Path(__file__).parents[2] / "checkpoints" / "digits-small.toml"
    evil = EVIL.replace("/", "")
    Path(f"{evil}.toml").write_text("name = 1")
    asked = ["--threat", "linf:0.1", "--suite", "apgd-ce", "--examples", 5, "--results", "out"]
    for command in (
        ("eval", card, *asked, "--name", EVIL),
        ("eval", card, *asked, "--suite", EVIL),
        ("eval", card, *asked, "--dataset", EVIL),
        ("eval", f"{evil}.toml", *asked),
        ("eval", f"{evil}.pt", *asked),
        ("suite", f"{evil}.toml"),
        ("check", card, "--name", EVIL),
        ("leaderboard", evil),
        ("report", evil),
    ):
        told = rkd(*command)
        assert clean(told.stdout), command
        assert clean(told.stderr), command
    for path in Path("out").rglob("*.*"):
        assert path.is_dir() or clean(path.read_text(encoding="utf-8")), path
