"""Folders that somebody else has made: nothing is written through links, nothing is believed."""

import json
import os
import shutil
from pathlib import Path

import pytest
from fake_runs import planted, store
from oracles import Quantised, conv, images_for, linear, request

from robustbench_kd.analysis.leaderboard import read_leaderboard
from robustbench_kd.analysis.runs import read_runs
from robustbench_kd.core.agreement import stored_record
from robustbench_kd.core.errors import IncompleteError, RecordError
from robustbench_kd.core.files import read_bytes, write_text
from robustbench_kd.core.ledger import Ledger
from robustbench_kd.core.records import Identity
from robustbench_kd.core.rundir import ADVERSARIAL, EXAMPLES, JOB, LEDGER, RECORD
from robustbench_kd.core.shards import Shard
from robustbench_kd.engine.evaluate import evaluate, evaluate_shard
from robustbench_kd.engine.record.merge import merge


@pytest.fixture
def mine(tmp_path):
    """A file of the receiver's own."""
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    return path


def snapshot(folder):
    return {
        str(path): path.is_symlink() or path.read_bytes()
        for path in folder.rglob("*")
        if not path.is_dir()
    }


def sharded(results, *numbers):
    model = conv()
    asked = request(model, images_for(model, 8))
    for number in numbers:
        folder = evaluate_shard(asked, results, Shard(number, 2))
    return asked, folder


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_ledger_that_is_a_link_is_refused_and_its_target_is_whole(tmp_path, mine, link):
    asked, folder = sharded(tmp_path / "results", 1, 2)
    (folder / LEDGER).unlink()
    link(mine, folder / LEDGER)
    with pytest.raises(RecordError, match="expected a regular file"):
        merge(folder)
    with pytest.raises(RecordError, match="expected a regular file"):
        evaluate(asked, tmp_path / "results")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("level", [0, 1])
def test_a_folder_of_a_run_or_of_a_model_that_is_a_link_is_refused(tmp_path, level):
    _, folder = sharded(tmp_path / "results", 1, 2)
    place = [folder, folder.parent][level]
    elsewhere = tmp_path / "elsewhere"
    place.rename(elsewhere)
    place.symlink_to(elsewhere)
    before = snapshot(elsewhere)
    with pytest.raises(RecordError, match="is a link; remove it"):
        merge(folder)
    assert snapshot(elsewhere) == before


def test_nothing_but_a_regular_file_is_replaced(tmp_path, mine):
    (tmp_path / "link").symlink_to(mine)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(RecordError, match="expected a regular file, got a"):
            write_text(tmp_path / name, "text")
    assert mine.read_text() == "mine"
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(RecordError, match="got a device"):
        write_text(type(mine)("/dev/null"), "text")


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path, mine, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    made = []
    replaced = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (made.append(a), replaced(a, b)))
    write_text(tmp_path / "report.html", "one")
    Path(made[0]).symlink_to(mine)
    write_text(tmp_path / "report.html", "two")
    assert (mine.read_text(), (tmp_path / "report.html").read_text()) == ("mine", "two")


def test_files_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    made = []
    real = os.replace
    os.replace = lambda a, b: (made.append(str(a)), real(a, b))
    try:
        write_text(tmp_path / "file", "one")
    finally:
        os.replace = real
    living = made[0].replace(f".{os.getpid()}.", f".{os.getppid()}.")
    dead = made[0].replace(f".{os.getpid()}.", ".4194999.")
    for name in (living, dead):
        Path(name).touch()
    write_text(tmp_path / "file", "two")
    assert Path(living).exists()
    assert not Path(dead).exists()
    with Ledger(tmp_path / LEDGER):  # whoever has the run alone knows that nobody writes there
        assert not Path(living).exists()


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / RECORD)
    for path in (tmp_path / RECORD, "/dev/zero"):
        with pytest.raises(RecordError, match="expected a regular file"):
            read_bytes(path)
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(RecordError, match="expected at most 4 bytes, got 5"):
        read_bytes(tmp_path / "large", 4)


def test_merge_changes_nothing_before_all_is_known(tmp_path):
    _, folder = sharded(tmp_path, 1)
    (folder / LEDGER).unlink()
    before = snapshot(folder)
    with pytest.raises(IncompleteError, match="lacks shards 2/2"):
        merge(folder)
    assert snapshot(folder) == before


def test_a_damaged_shard_is_named_and_decided_again(tmp_path):
    asked, folder = sharded(tmp_path / "whole", 1, 2)
    expected = merge(folder)
    _, folder = sharded(tmp_path / "damaged", 1, 2)
    path = folder / "ledger-2-of-2.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"broken":', b'"Broken":', 1))
    with pytest.raises(IncompleteError, match=r"2-of-2\.jsonl' is damaged at line 1.*lacks shards"):
        merge(folder)
    (folder / JOB).write_bytes(b"{}")
    for number in (1, 2):
        evaluate_shard(asked, tmp_path / "damaged", Shard(number, 2))
    assert merge(folder).stages[-1].accuracy == expected.stages[-1].accuracy


def test_a_record_of_another_model_is_no_answer(tmp_path):
    other, model = linear(), conv()
    theirs = evaluate(request(other, images_for(other, 8, (1, 8, 8))), tmp_path / "theirs")
    asked = request(model, images_for(model, 8))
    own = evaluate(asked, tmp_path / "own")
    shutil.rmtree(own.folder)
    shutil.copytree(theirs.folder, own.folder)
    with pytest.raises(RecordError, match=f"is a record of 'net', run {theirs.folder.name}, not"):
        evaluate(asked, tmp_path / "own")
    assert evaluate(asked, tmp_path / "own", fresh=True).record.robust == own.record.robust


def test_a_copy_in_another_folder_is_left_out(tmp_path):
    folder = store(tmp_path)
    shutil.copytree(folder, folder.with_name("0" * 16))
    found = read_leaderboard(tmp_path)
    assert [len(board.records) for board in found.boards] == [1]
    assert len(found.left_out) == len(read_runs(tmp_path)[1]) == 1


def _with_id(content):
    """Gives a record the ids of its identity, as a forger would."""
    identity = Identity.model_validate(content["identity"])
    return content | {"run_id": identity.run_id(), "protocol_hash": identity.protocol_hash()}


def _few(content):
    """Five examples at a small radius with an accuracy of 750 %, among runs of 500 examples."""
    best = {"value": 7.5, "n": 5, "ci_low": 7.5, "ci_high": 7.5}
    identity = content["identity"] | {"examples": 5, "eps": 0.001, "eps_text": "1/1000"}
    return content | {"robust": best, "identity": identity}


FORGERIES = {
    "few examples": _few,
    "another radius": lambda found: found | {"identity": found["identity"] | {"eps": 0.5}},
    "another text": lambda found: found | {"identity": found["identity"] | {"eps_text": "1/9"}},
    "another protocol": lambda found: found | {"protocol_hash": "0" * 16},
    "another id": lambda found: found | {"run_id": "0" * 16},
    "a better verdict": lambda found: found | {"verdict": "suspicious"},
    "a wider interval": lambda found: found | {"robust": found["robust"] | {"ci_low": 0.0}},
    "more accuracy": lambda found: found | {"robust": found["clean"]},
    "no stages": lambda found: found | {"stages": []},
    "fewer passes": lambda found: found | {"forwards": 0},
    "no time": lambda found: found | {"seconds": "NaN"},
    "a bound": lambda found: found | {"missed": 0.1},
    "a claim": lambda found: (
        found
        | {
            "claim": {
                "text": "robust>=0.9",
                "holds": True,
                "evaluated": 100,
                "population": 100,
                "mistakes": 0.05,
            }
        }
    ),
}


@pytest.mark.parametrize("ids", ["old ids", "new ids"])
@pytest.mark.parametrize("kind", FORGERIES)
def test_a_forged_record_is_named_and_in_no_table(tmp_path, kind, ids):
    folder = store(tmp_path, planted(100, 50, 10))
    content = FORGERIES[kind](json.loads((folder / RECORD).read_text()))
    if ids == "new ids" and kind not in {"another protocol", "another id"}:
        content = _with_id(content)
    (folder / RECORD).write_text(json.dumps(content))
    place = folder.rename(folder.with_name(content["run_id"]))
    found = read_leaderboard(tmp_path)
    runs, problems = read_runs(tmp_path)
    assert (found.boards, runs) == ((), [])
    assert len(found.left_out) == len(problems) == 1
    assert str(place) in found.left_out[0]
    with pytest.raises(RecordError):
        stored_record(place)


def test_examples_that_were_changed_are_named(tmp_path):
    folder = store(tmp_path, planted(100, 50, 10))
    text = (folder / EXAMPLES).read_text()
    (folder / EXAMPLES).write_text(text.replace("False,apgd-ce", "True,", 1))
    (reason,) = read_leaderboard(tmp_path).left_out
    assert "the files are of different runs" in reason


def test_the_gate_is_incomplete_where_a_run_contradicts_itself(tmp_path, rkd):
    folder = store(tmp_path / "results", planted(100, 50, 10))
    store(tmp_path / "baseline", planted(100, 50, 10))
    text = (folder / RECORD).read_text()
    (folder / RECORD).write_text(text.replace('"seconds": 4.5', '"seconds": 0.5'))
    told = rkd("gate", tmp_path / "results", "--baseline", tmp_path / "baseline")
    assert "2 runs not judged" in told.error(4)


def test_a_result_without_checks_does_not_answer_for_one_with_them(tmp_path):
    model = Quantised(linear()).eval()
    data = images_for(model, 24, (1, 8, 8))
    unchecked = evaluate(request(model, data), tmp_path / "one")
    checked = evaluate(request(model, data, probes=True), tmp_path / "other")
    assert "model-not-checked" in {finding.check for finding in unchecked.record.findings}
    again = evaluate(request(model, data, probes=True), tmp_path / "one")
    assert (again.again, again.stored) == (True, False)
    assert again.record.findings == checked.record.findings
    assert again.record.verdict == checked.record.verdict == "unreliable"


def test_shards_without_checks_are_checked_when_it_is_asked_for(tmp_path):
    model = Quantised(linear()).eval()
    data = images_for(model, 24, (1, 8, 8))
    for number in (1, 2):
        evaluate_shard(request(model, data), tmp_path, Shard(number, 2))
    for number in (1, 2):
        folder = evaluate_shard(request(model, data, probes=True), tmp_path, Shard(number, 2))
    assert merge(folder).verdict == "unreliable"


def test_images_of_another_run_are_as_good_as_none(tmp_path):
    model = conv()
    data = images_for(model, 8, wrong=1)
    saved = evaluate(request(model, data, saves=True), tmp_path)
    other = evaluate(request(model, data, saves=True, seed=1), tmp_path)
    shutil.copy(other.folder / ADVERSARIAL, saved.folder / ADVERSARIAL)
    assert not evaluate(request(model, data, saves=True), tmp_path).stored
