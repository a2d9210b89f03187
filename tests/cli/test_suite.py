"""`rkd suite`.

What a sheet says wrong is named with its line, and every cell is an ordinary run.
"""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.cli._sheet import Sheet, line_of, read_sheet
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.rundir import LEDGER, RECORD


@pytest.fixture
def sheet(factories, tmp_path):
    """Writes a sheet of two classifiers with known answers.

    Gives the arguments that name it and its results.
    """

    def write(**changed):
        fields = {
            "checkpoints": [f"{factories}:nearest_mean", f"{factories}:constant"],
            "datasets": ["digits"],
            "threats": ["linf:0.1"],
            "suites": ["apgd-ce"],
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in (fields | changed).items()]
        path = tmp_path / "sheet.toml"
        path.write_text("\n".join([*lines, "[options]", "examples = 10", "no-probes = true"]))
        return ["suite", path, "--results", tmp_path / "results", "--trust-code"]

    return write


def plan(rkd, asked):
    return json.loads(rkd(*asked, "--plan", "--json").stdout)


def test_every_cell_is_the_run_that_eval_makes(rkd, sheet, factories, tmp_path):
    told = rkd(*sheet(seeds=[0, 1]), "--json")
    assert told.code == 0
    assert len(json.loads(told.stdout)) == 4
    options = {
        "dataset": "digits",
        "examples": 10,
        "threat": "linf:0.1",
        "suite": "apgd-ce",
        "seed": 1,
    }
    typed = [part for name, value in options.items() for part in (f"--{name}", value)]
    again = rkd(
        "eval", f"{factories}:constant", *typed, "--no-probes", "--results", tmp_path / "results"
    )
    assert "stored result" in again.stderr


def test_a_plan_names_the_runs_to_come_and_evaluates_none(rkd, sheet, tmp_path):
    asked = sheet(threats=["linf:0.05,0.1"])
    rows = plan(rkd, asked)
    assert [row["state"] for row in rows] == ["to do"] * 4
    assert not (tmp_path / "results").exists()
    assert all(row["passes"] == 10 * 201 for row in rows)
    rkd(*asked)
    after = plan(rkd, asked)
    assert [row["run"] for row in after] == [row["run"] for row in rows]
    assert [row["state"] for row in after] == ["done"] * 4
    assert all(row["seconds"] > 0 for row in after if row["name"].startswith("nearest_mean"))


def test_an_unfinished_run_is_planned_as_such_and_resumed(rkd, sheet, tmp_path):
    asked = sheet()
    rkd(*asked)
    folder = next((tmp_path / "results" / "nearest_mean").iterdir())
    (folder / RECORD).unlink()
    (folder / LEDGER).write_text('{"stage":"clean"}\n')
    assert [row["state"] for row in plan(rkd, asked)] == ["unfinished", "done"]
    told = rkd(*asked)
    assert told.stderr.count("stored result") == 1
    assert [row["state"] for row in plan(rkd, asked)] == ["done", "done"]


def test_only_what_is_named_runs(rkd, sheet):
    for pattern in ("constant", "constant/*", "*/linf:0.1/apgd-ce/0"):
        names = {row["name"].partition("/")[0] for row in plan(rkd, [*sheet(), "--only", pattern])}
        assert "constant" in names
        assert ("nearest_mean" in names) == pattern.startswith("*")
    assert "did you mean 'constant/digits" in rkd(*sheet(), "--only", "constant/digit").error(2)


def test_a_bad_checkpoint_does_not_stop_the_others(rkd, sheet, factories, tmp_path):
    (tmp_path / "bad.toml").write_text("name = 1")
    checkpoints = [str(tmp_path / "*.toml"), f"{factories}:missing", f"{factories}:constant"]
    (tmp_path / "net.pt").write_text("no weights")
    told = rkd(*sheet(checkpoints=checkpoints, threats=["linf:0.1"]), "--only", "*", "--json")
    message = told.error(2)
    assert [record["identity"]["model"] for record in json.loads(told.stdout)] == ["constant"]
    assert message.startswith("3 failed: ")
    assert "bad.toml" in message
    assert "missing/digits/linf:0.1/apgd-ce/0" in message


def test_what_could_be_resumed_ends_with_its_own_code(rkd, sheet, monkeypatch):
    from robustbench_kd.core.errors import IncompleteError
    from robustbench_kd.engine import evaluate

    def full(*_, **__):
        raise IncompleteError("out of memory")

    monkeypatch.setattr(evaluate, "evaluate", full)
    assert "2 failed" in rkd(*sheet()).error(4)


GOOD = """\
checkpoints = ["net.toml"]
threats = [
  "linf:0.1",
  "l2:0.5",
]

[options]
examples = 5
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "checkpoints",
            "checkpoint",
            "line 1: checkpoint: unknown field 'checkpoint': did you mean 'checkpoints'?",
        ),
        ('["net.toml"]', "[]", "line 1: checkpoints: List should have at least 1 item"),
        ("l2:0.5", "l3:0.5", "line 4: threats: unknown norm 'l3'"),
        ('"l2:0.5"', "7", "line 4: threats: Input should be a valid string"),
        (
            "[options]",
            'suites = ["standart"]\n[options]',
            "line 7: suites: unknown suite or attack 'standart'",
        ),
        (
            "[options]",
            "seeds = [-1]\n[options]",
            "line 7: seeds: Input should be greater than or equal to 0",
        ),
        (
            "examples = 5",
            "example = 5",
            "line 8: options.example: unknown option 'example': did you mean 'examples'?",
        ),
        (
            "examples = 5",
            "examples = -1",
            "line 8: options.examples: expected --examples as a positive number or all",
        ),
        ("examples = 5", "examples = true", "line 8: options.examples: expected a value"),
        ("examples = 5", "fold = 1", "line 8: options.fold: expected true or false"),
        (
            "examples = 5",
            "precision = 'fp8'",
            "line 8: options.precision: Invalid value for '--precision'",
        ),
        (
            "examples = 5",
            "batch-size = 0",
            "line 8: options.batch-size: expected --batch-size as a positive number",
        ),
        (
            "examples = 5",
            "seed = 5",
            "line 8: options.seed: unknown option 'seed'.*a list of its own, 'seeds'",
        ),
        ("examples = 5", "trust-code = true", "line 8: options.trust-code: unknown option"),
        (
            "examples = 5",
            "adaptive = ['a.py:x']",
            "line 8: options.adaptive: 'a.py:x' names code: read it, then give",
        ),
        ("net.toml", "net.py:make", "line 1: checkpoints: 'net.py:make' names code"),
        ("examples = 5", "examples = ", "is not TOML: Invalid value .at line 8"),
        ("examples = 5", f"examples = {'[' * 5000}", "is nested too deep"),
        ("examples = 5", f"examples = {'9' * 5000}", "is not TOML: "),
    ],
)
def test_what_is_wrong_is_named_with_its_line_and_field(tmp_path, old, new, said):
    path = tmp_path / "sheet.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=rf"sheet\.toml'.* ?{said}"):
        read_sheet(path, trust_code=False)


def test_a_pattern_without_files_and_a_missing_sheet_are_errors(rkd, sheet, tmp_path):
    assert "line 1: checkpoints: no file matches" in rkd(
        *sheet(checkpoints=[str(tmp_path / "*.card")])
    ).error(2)
    assert "cannot read" in rkd("suite", tmp_path / "nowhere.toml").error(2)


def test_the_options_of_a_sheet_are_those_of_eval(tmp_path):
    path = tmp_path / "sheet.toml"
    path.write_text(GOOD + "fold = false\ncompile = true\narch-arg = ['width=4', 'depth=2']\n")
    _, options = read_sheet(path, trust_code=False)
    assert (options.examples, options.fold, options.compile) == ("5", False, True)
    assert options.arch_arg == ("width=4", "depth=2")


NAMES = st.sampled_from([*Sheet.model_fields, "options.examples", "x"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=20)
    | st.sampled_from(["linf:0.1", "quick"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=5,
)


def complaint(path):
    """What is wrong with a sheet; empty where nothing is."""
    try:
        sheet, options = read_sheet(path, trust_code=False)
    except UsageError as error:
        return str(error)
    return "" if sheet.checkpoints and options.targets else "nothing was read"


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("sheets") / "sheet.toml"


@given(
    st.text()
    | st.binary()
    | st.dictionaries(NAMES, VALUES, max_size=6).map(
        lambda fields: "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    )
    | st.text().map(lambda text: GOOD + text)
)
def test_any_text_is_a_sheet_or_a_clear_error(place, content):
    place.write_bytes(
        content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    )
    found = complaint(place)
    assert not found or f"'{place}'" in found


@given(st.text(), st.lists(st.text(), min_size=1, max_size=2), st.text())
def test_there_is_a_line_for_anything(text, names, value):
    assert 1 <= line_of(text, names, value) <= 1 + text.count("\n")
