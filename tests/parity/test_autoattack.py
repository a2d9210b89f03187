"""The verdicts of the AutoAttack package on a real robust network, image by image, also after a
`kill -9`."""

import csv
import json
import time

import pytest

pytestmark = [pytest.mark.data, pytest.mark.slow]

KNOWN = "autoattack_resnet2b_linf_2_255.json"


@pytest.fixture
def evaluation(test_data, tmp_path):
    """The arguments that repeat the stored evaluation."""
    return [
        "eval",
        "--engine",
        "autoattack",
        test_data / "models" / "resnet2b.pth",
        *("--arch", f"{test_data / 'real_models.py'}:resnet2b"),
        *("--dataset", f"npz:{test_data / 'cifar10_test_1000.npz'}"),
        *("--threat", "linf:2/255", "--examples", "200", "--device", "cpu", "--results", tmp_path),
    ]


def assert_the_known_verdicts(test_data, results):
    known = json.loads((test_data / KNOWN).read_text())
    (path,) = results.glob("*/*/examples.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [int(row["clean_correct"] == "True") for row in rows] == known["clean"]
    fallen = {"clean"}
    for stage, expected in known["stages"].items():
        fallen.add(stage)
        assert [int(row["broken_by"] not in fallen) for row in rows] == expected["alive"], stage


def test_every_verdict_of_every_stage_and_its_cost_are_the_packages_own(
    rkd, evaluation, test_data, tmp_path
):
    known = json.loads((test_data / KNOWN).read_text())
    (record,) = json.loads(rkd(*evaluation, "--json").stdout)
    assert_the_known_verdicts(test_data, tmp_path)
    standing = sum(known["clean"])
    for stage in record["stages"][1:]:
        # The stored run began every stage with the package's checks and a clean pass: eight
        # forwards of each image.
        assert stage["forwards"] == known["stages"][stage["stage"]]["forwards"] - 8 * standing
        standing = sum(known["stages"][stage["stage"]]["alive"])


def test_a_kill_in_the_middle_changes_nothing(rkd, rkd_process, evaluation, test_data, tmp_path):
    process = rkd_process(*evaluation)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        ledgers = list(tmp_path.glob("*/*/ledger.jsonl"))
        if ledgers and ledgers[0].read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("*/*/run.json")), "it was killed before it was done"
    assert rkd(*evaluation).code == 0
    assert_the_known_verdicts(test_data, tmp_path)
