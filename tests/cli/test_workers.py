"""However many processes share the examples, and whichever of them die, the results are those of
one."""

import importlib.util
import json
import shutil
import signal
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]
WITH_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed"
)


def evaluation(factory, *rest):
    asked = [
        "--dataset",
        "digits",
        "--examples",
        32,
        "--threat",
        "linf:0.1",
        "--suite",
        "apgd-ce,apgd-margin",
    ]
    return ["eval", f"{HERE}/{factory}", *asked, "--no-probes", *rest]


def examples(results):
    """The run id and what was found of each example."""
    (path,) = results.glob("*/*/examples.csv")
    return path.parent.name, path.read_text()


@pytest.fixture
def deaths(tmp_path, monkeypatch):
    """Lets processes of `mortal` die; gives a function that says how many are to."""
    folder = tmp_path / "deaths"
    folder.mkdir()
    monkeypatch.setenv("RKD_TEST_DEATHS", str(folder))

    def to_come(number):
        for death in range(number):
            (folder / str(death)).touch()
        return folder

    return to_come


@pytest.fixture(scope="module")
def alone(rkd, tmp_path_factory):
    results = tmp_path_factory.mktemp("alone")
    assert rkd(*evaluation("oracles.py:nearest_mean", "--results", results)).code == 0
    return examples(results)


def test_shards_that_ran_apart_are_merged_where_their_folders_meet(rkd, alone, tmp_path):
    for number in range(1, 6):
        told = rkd(
            *evaluation(
                "oracles.py:nearest_mean",
                "--results",
                tmp_path / str(number),
                "--shard",
                f"{number}/5",
            )
        )
        assert (told.code, told.stdout) == (0, "")
        assert "'rkd merge" in told.stderr
        shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
        if number < 5:
            assert "lacks shards" in rkd("merge", tmp_path / "all").error(4)
    told = rkd("merge", tmp_path / "all", "--json")
    assert told.code == 0
    assert [record["status"] for record in json.loads(told.stdout)] == ["complete"]
    assert examples(tmp_path / "all") == alone
    assert "there is nothing to merge" in rkd("merge", tmp_path / "all").error(2)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--shard", "1/2", "--workers", "2"], "leave --workers and --executor out"),
        (["--shard", "1/2", "--fresh"], "--fresh would delete"),
        (["--shard", "3/2"], "expected a shard as NUMBER/COUNT"),
        (
            ["--shard", "1/2", "--threat", "linf:0.01,0.02"],
            "give each radius by a --threat of its own",
        ),
        (["--workers", "2", "--engine", "autoattack"], "use --engine native"),
        (["--until-decided", "robust>0.5"], "expected a claim"),
    ],
)
def test_what_does_not_go_together_is_refused(rkd, tmp_path, options, why):
    results = ["--results", tmp_path / "results"]
    assert why in rkd(*evaluation("oracles.py:nearest_mean", *options, *results)).error(2)


@pytest.mark.parametrize(("claim", "code"), [("robust>=0.2", 0), ("robust>=99%", 1)])
def test_a_claim_is_a_gate(rkd, tmp_path, claim, code):
    told = rkd(
        *evaluation("oracles.py:nearest_mean", "--until-decided", claim, "--results", tmp_path)
    )
    assert told.code == code
    assert ("holds" if code == 0 else "is refuted") in told.stdout
    if code:
        assert told.error(1) == "refuted: nearest_mean (robust>=0.99)"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(rkd, alone, tmp_path, workers):
    told = rkd(*evaluation("oracles.py:nearest_mean", "--results", tmp_path, "--workers", workers))
    assert told.code == 0
    assert examples(tmp_path) == alone


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=WITH_RAY)])
def test_a_worker_that_is_killed_costs_time_and_nothing_else(
    rkd_process, rkd, alone, tmp_path, deaths, executor
):
    left = deaths(2)
    share = ["--workers", 2, "--executor", executor, "--name", "nearest_mean"]
    process = rkd_process(
        *evaluation("oracles.py:mortal", "--results", tmp_path / "results", *share)
    )
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert not list(left.iterdir())
    assert examples(tmp_path / "results")[1] == alone[1]


@pytest.mark.slow
def test_workers_that_keep_dying_are_given_up_and_one_process_goes_on(
    rkd_process, rkd, alone, tmp_path, deaths
):
    left = deaths(20)
    arguments = evaluation("oracles.py:mortal", "--results", tmp_path / "results")
    process = rkd_process(*arguments, "--workers", 2)
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 4
    assert "died 4 times" in stderr
    shutil.rmtree(left)
    left.mkdir()
    assert rkd(*arguments).code == 0
    assert examples(tmp_path / "results")[1] == alone[1]


@pytest.mark.slow
def test_an_interrupt_ends_all_workers_and_loses_nothing(rkd_process, rkd, tmp_path):
    arguments = evaluation("oracles.py:slow_mean", "--results", tmp_path / "results")
    process = rkd_process(*arguments, "--workers", 2)
    until = time.monotonic() + 120
    while (
        time.monotonic() < until and len(list(tmp_path.glob("results/*/*/ledger-*-of-2.jsonl"))) < 2
    ):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stdout) == (130, "")
    assert "Traceback" not in stderr
    (record,) = tmp_path.glob("results/*/*/run.json")
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert rkd(*arguments).code == 0
    assert rkd(*evaluation("oracles.py:slow_mean", "--results", tmp_path / "alone")).code == 0
    assert examples(tmp_path / "results") == examples(tmp_path / "alone")
    assert not list(tmp_path.glob("results/*/*/ledger*"))


@pytest.mark.slow
@pytest.mark.parametrize("again", ["--fresh", "--save-adversarial"])
def test_workers_decide_a_finished_run_anew(rkd, alone, tmp_path, again):
    asked = evaluation("oracles.py:nearest_mean", "--results", tmp_path, "--workers", 2)
    for rest in ([], [again]):
        told = rkd(*asked, *rest)
        assert told.code == 0, told.stderr
    assert examples(tmp_path) == alone
