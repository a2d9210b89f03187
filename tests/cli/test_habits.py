"""Models with habits of published code: whatever they do, no traceback and no exit code 1."""

import json
from pathlib import Path

import pytest
from habits import HABITS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

TARGET = f"{Path(__file__).parents[1] / 'habits.py'}:make"
DOCUMENTED = {0, 2, 3, 4}

# Foreign code warns as it likes.
pytestmark = pytest.mark.filterwarnings("ignore")

SAME = [
    *("tuple", "named", "dict", "squeezed", "spatial", "in place", "clamps", "view", "masked"),
    *("trains itself", "draws", "double", "parallel", "traced", "compiled", "closes over"),
]
REFUSED = {
    "list": "register_forward_hook",
    "nothing": "got NoneType",
    "number": "got int",
    "classes": "expected logits",
    "transposed": "expected logits",
    "one logit": "register_forward_hook",
    "not a number": "NaN",
    "transposed view": ".reshape",
    "fixed batch": "len(images)",
    "numpy": "--suite square",
    "meta": "--device",
    "integers": ".float()",
    "half": ".float()",
    "lazy": "call the model once",
    "reentrant": "use_reentrant=False",
    "no backward": "no backward pass here",
    "fails late": "lost",
    "exits": "ends the process",
    "two arguments": "wrap the model",
    "function": "return the network itself",
    "pair": "return the model alone",
    "class": "not the class",
}


@pytest.fixture
def evaluated(rkd, tmp_path):
    """Evaluates a chain of habits; returns what was told, and the record or None."""

    def evaluate(habits, *options):
        folder = tmp_path / "-".join([*habits, "plain"])
        told = rkd(
            *("eval", TARGET, "--arch-arg", f"habits={'+'.join(habits)}", "--dataset", "digits"),
            *("--examples", 16, "--threat", "linf:0.1", "--suite", "apgd-ce", "--no-probes"),
            *("--batch-size", 8, "--results", folder, *options),
        )
        records = [json.loads(path.read_text()) for path in folder.glob("*/*/run.json")]
        return told, next(iter(records), None)

    return evaluate


def _one_line(told):
    assert told.code in DOCUMENTED, told.stderr
    assert "Traceback" not in told.stderr
    assert "see 'rkd eval" not in told.stderr
    assert "unknown suite" not in told.stderr
    errors = [line for line in told.stderr.splitlines() if line.startswith("Error:")]
    assert len(errors) == (told.code != 0), told.stderr


@pytest.mark.parametrize("habit", SAME)
def test_a_habit_that_changes_no_answer_changes_no_verdict(habit, evaluated):
    _, plain = evaluated([])
    told, record = evaluated([habit])
    assert told.code == 0, told.stderr
    assert (record["clean"], record["robust"]) == (plain["clean"], plain["robust"])


@pytest.mark.parametrize("habit", REFUSED)
def test_a_habit_that_cannot_be_evaluated_is_refused_with_advice(habit, evaluated):
    told, record = evaluated([habit])
    assert REFUSED[habit] in told.error(2)
    assert record is None or record["status"] == "interrupted"


def test_an_answer_that_is_no_number_off_the_data_does_not_count(evaluated):
    told, record = evaluated(["nan off data"])
    assert told.code == 0
    assert record["robust"] == record["clean"]
    assert "undefined-answers" in {finding["check"] for finding in record["findings"]}


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from(sorted(HABITS)), min_size=2, max_size=3))
def test_no_chain_of_habits_gives_a_traceback(evaluated, habits):
    told, _ = evaluated(habits)
    _one_line(told)


@pytest.mark.slow
@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.sampled_from(sorted(HABITS)), min_size=1, max_size=4),
    st.sampled_from(["apgd-ce", "square", "fab-t", "standard+adaptive", "pgd"]),
    st.booleans(),
)
def test_no_chain_of_habits_gives_a_traceback_under_any_suite(evaluated, habits, suite, probed):
    told, _ = evaluated(habits, "--suite", suite, *["--probes"] * probed, "--examples", 4)
    _one_line(told)
