"""A data set decided in parts gives the files of a data set decided at once."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Failing, conv, images_for, request

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import IncompleteError, RecordError, UsageError
from robustbench_kd.core.ledger import Decision, Entry, Ledger, finished, unfinished
from robustbench_kd.core.rundir import DRAWS, EXAMPLES, JOB, LEDGER, read_record
from robustbench_kd.core.shards import Shard, shards
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import evaluate, evaluate_shard
from robustbench_kd.engine.record.merge import merge

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"


def entry(stage, *indices):
    return Entry(
        stage=stage,
        decisions=[
            Decision(index=index, broken=True, prediction=0, margin=-1) for index in indices
        ],
    )


def written(record, folder):
    """What must not depend on how the work was divided."""
    files = {
        name: (folder / name).read_text() for name in (EXAMPLES, DRAWS) if (folder / name).exists()
    }
    stages = [(stage.stage, stage.accuracy) for stage in record.stages]
    return record.run_id, files, stages, record.findings, record.robust, record.detection


def at_once(asked, results):
    outcome = evaluate(asked, results)
    return written(outcome.record, outcome.folder)


def in_parts(asked, results, count):
    for shard in reversed(shards(count)):
        folder = evaluate_shard(asked, results, shard)
    return written(merge(folder), folder)


@given(st.integers(1, 40), st.integers(1, 12))
def test_every_row_is_in_one_shard(n, count):
    assert sorted(row for shard in shards(count) for row in shard.rows(n)) == list(range(n))


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1.0/2"])
def test_what_is_no_part_of_a_whole_is_refused(text):
    with pytest.raises(UsageError, match="expected a shard as NUMBER/COUNT"):
        Shard.parse(text)


def test_a_run_is_finished_once_the_shards_of_one_division_are():
    assert unfinished([]) == (Shard(1, 1),)
    some = [finished(Shard(1, 3)), finished(Shard(3, 3)), finished(Shard(1, 5))]
    assert unfinished(some) == (Shard(2, 3),)
    assert unfinished([*some, finished(Shard(2, 3))]) == ()


def test_shards_write_files_of_their_own_and_know_what_all_say(tmp_path):
    path = tmp_path / LEDGER
    with Ledger(path) as ledger:
        ledger.append(entry("clean", 1))
    with Ledger(path, Shard(1, 2)) as first, Ledger(path, Shard(2, 2)) as second:
        first.append(entry("clean", 2))
        second.append(entry("clean", 3))
    with Ledger(path) as ledger:
        assert {decision.index for kept in ledger.entries for decision in kept.decisions} == {
            1,
            2,
            3,
        }
        ledger.remove()
    assert not list(tmp_path.iterdir())


def test_a_run_as_a_whole_shares_with_nobody(tmp_path):
    path = tmp_path / LEDGER
    busy = pytest.raises(RecordError, match="another process is writing")
    with Ledger(path, Shard(1, 2)), busy:
        Ledger(path).__enter__()
    with Ledger(path, Shard(1, 2)), busy:
        Ledger(path, Shard(1, 2)).__enter__()
    with Ledger(path), busy:
        Ledger(path, Shard(1, 2)).__enter__()


def test_a_ledger_that_is_lent_learns_what_shards_wrote(tmp_path):
    path = tmp_path / LEDGER
    with Ledger(path) as ledger:
        with ledger.lent(), Ledger(path, Shard(1, 2)) as shard:
            shard.append(entry("clean", 7))
        assert ledger.entries == [entry("clean", 7)]
        with pytest.raises(RecordError, match="another process is writing"):
            Ledger(path, Shard(1, 2)).__enter__()


@pytest.mark.parametrize(
    ("count", "probes"),
    [(1, False), (2, False), (5, False), pytest.param(3, True, marks=pytest.mark.slow)],
)
def test_merged_shards_give_the_files_of_one_process(count, probes, tmp_path):
    model = conv()
    asked = request(
        model,
        images_for(model, wrong=4),
        suite="apgd-ce,apgd-dlr",
        threat="linf:0.02",
        probes=probes,
    )
    expected = at_once(asked, tmp_path / "whole")
    assert in_parts(asked, tmp_path / "parts", count) == expected
    assert not list(tmp_path.rglob("ledger*")) + list(tmp_path.rglob(JOB))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-ensemble-3", "digits-smoothed"])
def test_defences_that_answer_by_chance_are_merged_too(name, tmp_path):
    (target,) = describe(str(CHECKPOINTS / f"{name}.toml"), Choices())
    data = open_dataset("digits", limit=48)
    subject = load(target, classes=10, shape=(1, 8, 8))
    asked = request(subject.model, data, threat="linf:0.1")
    assert in_parts(asked, tmp_path / "parts", 2) == at_once(asked, tmp_path / "whole")


def test_what_a_detector_rejects_is_merged_too(tmp_path):
    model = conv(classes=11)
    model.abstains = True
    data = images_for(model, n=12)
    with torch.no_grad():
        data = replace(data, labels=model(data.images)[:, :10].argmax(dim=1), classes=10)
    asked = request(model, data, threat="linf:0.02")
    assert in_parts(asked, tmp_path / "parts", 2) == at_once(asked, tmp_path / "whole")


def test_a_smaller_radius_is_carried_into_every_shard(tmp_path):
    model = conv()
    data = images_for(model)
    small = evaluate(request(model, data, threat="linf:0.01"), tmp_path).folder
    asked = request(model, data, threat="linf:0.03", smaller=small)
    assert in_parts(asked, tmp_path / "parts", 3) == at_once(asked, tmp_path / "whole")


def test_the_division_may_change_while_a_run_is_unfinished(tmp_path):
    model = conv()
    asked = request(model, images_for(model), threat="linf:0.02")
    evaluate_shard(asked, tmp_path / "parts", Shard(2, 3))
    evaluate_shard(asked, tmp_path / "parts", Shard(1, 2))
    assert at_once(asked, tmp_path / "parts") == at_once(asked, tmp_path / "whole")


def test_a_finished_shard_is_not_decided_again(tmp_path):
    model = Failing(conv(), KeyboardInterrupt())
    asked = request(model, images_for(conv()), threat="linf:0.02", batch_size=8)
    evaluate_shard(asked, tmp_path, Shard(1, 2))
    calls = model.calls
    evaluate_shard(asked, tmp_path, Shard(1, 2))
    assert model.calls == calls + 1


def test_what_is_missing_is_named(tmp_path):
    model = conv()
    folder = evaluate_shard(request(model, images_for(model)), tmp_path, Shard(2, 3))
    with pytest.raises(IncompleteError, match="lacks shards 1/3, 3/3: run each by --shard"):
        merge(folder)
    evaluate_shard(request(model, images_for(model)), tmp_path, Shard(1, 3))
    evaluate_shard(request(model, images_for(model)), tmp_path, Shard(3, 3))
    (folder / JOB).write_text("{}")
    with pytest.raises(RecordError, match=r"job\.json' is damaged"):
        merge(folder)


def test_a_merged_run_is_merged_once_and_left_alone_afterwards(tmp_path):
    model = conv()
    asked = request(model, images_for(model))
    folder = evaluate_shard(asked, tmp_path, Shard(1, 1))
    record = merge(folder)
    assert merge(folder) == record == read_record(folder / "run.json")
    assert evaluate_shard(asked, tmp_path, Shard(1, 1)) == folder
    assert not (folder / LEDGER).exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"engine": "autoattack"}, "which images share a batch: use --engine native"),
        (
            {"suite": "fast"},
            "samples among all survivors, which no shard knows: use --mode exact",
        ),
        ({"at_least": 0.5}, "examples in their order settle the claim: use one worker"),
        ({"saves": True}, "shards keep no images by themselves"),
    ],
)
def test_what_cannot_be_divided_is_refused(options, why, tmp_path):
    model = conv()
    with pytest.raises(UsageError, match=why):
        evaluate_shard(request(model, images_for(model), **options), tmp_path, Shard(1, 2))


def test_more_shards_than_examples_are_refused(tmp_path):
    model = conv()
    with pytest.raises(UsageError, match="expected at most 3 shards, as many as examples, got 4"):
        evaluate_shard(request(model, images_for(model, n=3)), tmp_path, Shard(1, 4))
