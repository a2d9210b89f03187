"""The gate catches what was planted and lets noise pass.

A baseline is always one whole run per model and protocol.
"""

import random
import shutil
from pathlib import Path

import pytest
from fake_runs import Planted, made, planted, store
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis import baseline
from robustbench_kd.analysis.baseline import one_each, read_baseline, update
from robustbench_kd.analysis.gate import Limits, gate_runs
from robustbench_kd.analysis.runs import Run, read_runs
from robustbench_kd.core.errors import NotComparableError, RecordError
from robustbench_kd.core.rundir import EXAMPLES, RECORD, read_record

GOLDEN = Path(__file__).parents[1] / "golden"
USUAL = Limits()


def only_clean(n=1000, wrong=0):
    """As many images misclassified as said; no attack succeeds anywhere else."""
    return Planted(n, frozenset(range(wrong)))


def gate(tmp_path, old, new, limits=USUAL, **fields):
    before = made(tmp_path / "old", old, checkpoint_sha256="old", **fields)
    after = made(tmp_path / "new", new, checkpoint_sha256="new", **fields)
    return gate_runs([after], [], {before.key: before}, limits)


def marks(found):
    return {cell.change.name: cell.mark for cell in found.cells}


def test_a_planted_drop_of_three_points_is_caught(tmp_path):
    found = gate(tmp_path, planted(), planted(lost=range(30)))
    assert found.headline == "failed: 1 regression"
    assert marks(found) == {"robust": "!", "clean": "="}
    assert found.failures[0].p == pytest.approx(2 * 0.5**30)
    assert "robust accuracy went from 50.0 % to 47.0 %" in found.failures[0].text


def test_a_drop_of_clean_accuracy_is_caught(tmp_path):
    found = gate(tmp_path, only_clean(), only_clean(wrong=30))
    assert marks(found) == {"robust": "!", "clean": "!"}


@pytest.mark.parametrize(
    ("lost", "gained", "mark"),
    [
        (11, 0, "!"),
        (10, 0, "-"),  # significant, but a drop of exactly the tolerance
        (40, 20, "!"),
        (60, 45, "~"),  # a drop of 1.5 points among so many flips is chance
        (20, 60, "+"),
        (3, 0, "~"),
        (0, 0, "="),
    ],
)
def test_only_a_drop_beyond_tolerance_and_chance_fails(tmp_path, lost, gained, mark):
    found = gate(tmp_path, planted(), planted(lost=range(lost), gained=range(500, 500 + gained)))
    assert marks(found)["robust"] == mark
    assert found.headline == ("failed: 1 regression" if mark == "!" else "passed")


@pytest.mark.parametrize(("lost", "fails"), [(5, False), (6, True)])
def test_a_hard_limit_asks_no_statistics(tmp_path, lost, fails):
    limits = Limits(tolerance=0.5, hard_limit=0.05)
    assert (
        bool(
            gate(tmp_path, planted(100, 50, 10), planted(100, 50, 10, range(lost)), limits).failures
        )
        is fails
    )


def test_a_tolerance_and_a_level_are_the_callers(tmp_path):
    new = planted(lost=range(30))
    assert not gate(tmp_path, planted(), new, Limits(tolerance=0.03)).failures
    assert gate(tmp_path, planted(), new, Limits(tolerance=0.0299)).failures
    assert not gate(tmp_path, planted(), new, Limits(alpha=1e-10)).failures


def with_flips(run, lost, gained):
    """The run with other examples: as read back, without the disk in between."""
    flipped = {i: run.examples[i]._replace(robust=i in gained) for i in lost | gained}
    return Run(run.folder, run.record, run.examples | flipped)


def test_runs_with_another_seed_fail_no_more_often_than_stated(tmp_path):
    """Flips of 2 % both ways, of which one in twenty would exceed the tolerance if chance were not
    asked."""
    base, noise = made(tmp_path, planted()), random.Random(0)
    fine, strict = 0, 0
    for _ in range(200):
        lost = {i for i in range(500) if noise.random() < 0.04}
        gained = {i for i in range(500, 900) if noise.random() < 0.05}
        again = with_flips(base, lost, gained)
        fine += not gate_runs([again], [], {base.key: base}, USUAL).failures
        strict += not gate_runs(
            [again], [], {base.key: base}, Limits(tolerance=0.0, alpha=0.3)
        ).failures
    assert fine >= 200 * 0.95
    assert 200 * 0.7 <= strict < 200  # at a level of 30 % some do fail, or the test could not


def test_many_accuracies_are_not_each_given_the_whole_chance_of_failing(tmp_path):
    """One of a pair of models lost six images, p = 1/64.

    Enough for one test at 5 %, too little for four.
    """
    first = [made(tmp_path / "a", planted(100, 50, 10), model=name) for name in ("one", "two")]
    again = [with_flips(first[0], set(range(6)), set()), first[1]]
    alone = gate_runs(again[:1], [], {first[0].key: first[0]}, USUAL).cells[0]
    beside = gate_runs(again, [], {run.key: run for run in first}, USUAL).cells[0]
    assert (alone.p, beside.p) == (2 / 64, 4 / 64)
    assert (alone.mark, beside.mark) == ("!", "~")


def test_too_few_examples_to_see_a_drop_are_said(tmp_path):
    found = gate(tmp_path, planted(20, 10, 2), planted(20, 10, 2, range(5)))
    assert found.headline == "passed"
    assert found.notes == (
        (
            "with 20 examples and 2 tests no drop below 30.0 points can be significant: evaluate "
            "more, or set --hard-limit"
        ),
    )
    assert (
        gate(tmp_path, planted(20, 10, 2), planted(20, 10, 2), Limits(hard_limit=0.1)).notes == ()
    )
    assert gate(tmp_path, planted(), planted()).notes == ()
    assert (
        "no drop can be significant" in gate(tmp_path, planted(4, 2, 1), planted(4, 2, 1)).notes[0]
    )


@given(st.integers(1, 12), st.sampled_from([0.01, 0.05, 0.2]))
def test_the_least_drop_that_is_said_to_be_visible_is_the_least_that_is(
    tmp_path_factory, lost, alpha
):
    folder = tmp_path_factory.getbasetemp() / "least"
    found = gate(
        folder,
        planted(50, 25, 5),
        planted(50, 25, 5, range(lost)),
        Limits(tolerance=0.0, alpha=alpha),
    )
    least = float(found.notes[0].split("below ")[1].split(" points")[0])
    assert bool(found.failures) is (100 * lost / 50 >= least)


def test_a_run_that_is_missing_is_named_with_the_nearest_that_is_there(tmp_path):
    old = made(tmp_path, planted(), suite="standard")
    new = made(tmp_path, planted(), suite="plus")
    found = gate_runs([new], [], {old.key: old}, USUAL)
    assert found.headline == "incomplete: 1 run not judged"
    assert found.gaps[0].text.startswith("net, digits, 1000 examples")
    assert found.gaps[0].why.endswith("nearest run there differs: suite standard against plus")
    assert [run.folder for run in found.added] == [new.folder]


def test_a_new_model_passes_and_what_cannot_be_read_does_not(tmp_path):
    run = made(tmp_path, planted())
    assert gate_runs([run], [], {}, USUAL).headline == "passed"
    problem = "'x' is unfinished"
    (gap,) = gate_runs([run], [problem], {}, USUAL).gaps
    assert gap.text.endswith(problem)


def test_a_baseline_of_other_labels_is_not_judged(tmp_path):
    old = made(tmp_path, planted())
    row = old.examples[0]._replace(label=5)
    found = gate_runs(
        [Run(old.folder, old.record, old.examples | {0: row})], [], {old.key: old}, USUAL
    )
    assert found.cells == ()
    assert "not comparable: the same data, but other indices or labels" in found.gaps[0].text


def test_an_untrustworthy_number_is_a_note(tmp_path):
    run = made(tmp_path, planted(), verdict="suspicious")
    (note,) = gate_runs([run], [], {run.key: run}, USUAL).notes
    assert "the robust accuracy is suspicious" in note


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def updated(tmp_path):
    runs, _ = read_runs(tmp_path / "results")
    folder = tmp_path / "baseline"
    return update(folder, read_baseline(folder), one_each(runs, tmp_path / "results"))


def test_a_new_baseline_is_two_files_a_run_as_they_are(tmp_path):
    folder = store(tmp_path / "results", planted())
    (line,) = updated(tmp_path)
    assert line.startswith("net linf:8/255: added as ")
    assert files(tmp_path / "baseline") == [
        f"net/{folder.name}/{name}" for name in (EXAMPLES, RECORD)
    ]
    copy = tmp_path / "baseline" / "net" / folder.name
    assert [(copy / name).read_bytes() for name in (EXAMPLES, RECORD)] == [
        (folder / name).read_bytes() for name in (EXAMPLES, RECORD)
    ]
    assert sum(path.stat().st_size for path in copy.iterdir()) < 80_000


def test_a_run_keeps_its_id_in_a_baseline_though_a_later_version_would_give_another(tmp_path):
    shutil.copytree(GOLDEN / "records" / "1-first", tmp_path / "results")
    (record,) = (tmp_path / "results").rglob(RECORD)
    assert read_record(record).identity.run_id() != record.parent.name
    updated(tmp_path)
    assert files(tmp_path / "baseline")[0] == f"digits-plain/{record.parent.name}/{EXAMPLES}"


def test_an_update_replaces_the_run_of_the_same_protocol_and_keeps_the_others(tmp_path):
    store(tmp_path / "baseline", planted(), checkpoint_sha256="old")
    kept = store(tmp_path / "baseline", planted(), model="kept")
    new = store(tmp_path / "results", planted(), checkpoint_sha256="new")
    (line,) = updated(tmp_path)
    assert "replaces" in line
    assert {path.parent.name for path in (tmp_path / "baseline").rglob(RECORD)} == {
        kept.name,
        new.name,
    }
    assert {path.name for path in (tmp_path / "baseline" / "net").iterdir()} == {new.name}
    assert updated(tmp_path) == ["net linf:8/255: written anew"]


def test_an_update_that_cannot_be_written_leaves_the_old_run(tmp_path, full_disk):
    store(tmp_path / "baseline", planted(), checkpoint_sha256="old")
    store(tmp_path / "results", planted(), checkpoint_sha256="new")
    before = files(tmp_path / "baseline")
    with full_disk(1000), pytest.raises(RecordError, match="cannot write"):
        updated(tmp_path)
    assert files(tmp_path / "baseline") == before
    assert len(read_baseline(tmp_path / "baseline")) == 1


def test_a_run_in_a_baseline_is_there_once_its_record_is(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(baseline, "write_bytes", lambda path, _: written.append(path.name))
    store(tmp_path / "results", planted())
    updated(tmp_path)
    assert written == [EXAMPLES, RECORD]


def test_no_name_in_a_record_leads_out_of_the_baseline(tmp_path):
    folder = store(tmp_path / "results", planted(10, 5, 1), model="../../out")
    assert folder.parent.name == "out"
    updated(tmp_path)
    assert files(tmp_path) == sorted(
        [*files_under(tmp_path, "results"), *files_under(tmp_path, "baseline")]
    )
    assert files(tmp_path / "baseline")[0].startswith("out/")


def files_under(folder, name):
    return [f"{name}/{path}" for path in files(folder / name)]


def test_two_runs_for_one_place_are_refused_and_a_damaged_baseline_is_named(tmp_path):
    folder = store(tmp_path, planted(10, 5, 1))
    store(tmp_path, planted(10, 5, 1), seed=1)
    with pytest.raises(
        NotComparableError, match=r"expected one run of 'net' .* got '\w+' and '\w+': delete one"
    ):
        read_baseline(tmp_path)
    (folder / EXAMPLES).write_text("")
    with pytest.raises(RecordError, match=r"the baseline is damaged: .*examples\.csv', line 1"):
        read_baseline(tmp_path)
