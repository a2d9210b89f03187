"""The native engine.

The same verdicts for every batch size, order and interruption, and no pass for the decided.
"""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import IncompleteError
from robustbench_kd.core.rundir import EXAMPLES
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine import evaluate as evaluation
from robustbench_kd.engine.decide import SearchModel
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.native.queue import Queue
from robustbench_kd.engine.passes.speedups import Speedups
from robustbench_kd.engine.run.request import Request
from robustbench_kd.engine.run.stages import Stage, build_attack
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Surface

CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"
SHORT = {
    "apgd-ce": {"restarts": 1, "steps": 12},
    "apgd-t": {"targets": 3, "steps": 12},
    "fab-t": {"targets": 3, "steps": 8},
    "square": {"queries": 40},
}
STANDARD = parse_suite("standard")
SUITE = replace(STANDARD, name="short", budgets=SHORT, norms={}, surfaces={})


def request(
    data: Dataset,
    *,
    threat="linf:0.2",
    suite=SUITE,
    target=CHECKPOINTS / "digits-small.toml",
    **options,
):
    (described,) = describe(str(target), Choices(**options.pop("choices", {})))
    subject = load(described, classes=data.classes, shape=tuple(data.images.shape[1:]))
    device = torch.device("cpu")
    return Request(subject, data, Threat.parse(threat), suite, device, probes=False, **options)


def passes(name, suite):
    """The passes that one survivor of ten classes costs."""
    return Stage(name, Surface(name="", answer=None), build_attack(name, suite, Norm.LINF)).passes(
        Norm.LINF, 10
    )


def asking(model):
    """Lets the search ask something else in place of the model."""
    return lambda plan, _data: SearchModel(model(plan.oracle), plan.request.batch_size)


def verdicts(outcome):
    """What is known of each example, without the margins that rounding may change in the last
    digits."""
    kept = (
        "label",
        "clean_prediction",
        "robust",
        "broken_by",
        "adversarial_prediction",
        "forwards",
        "backwards",
    )
    with (outcome.folder / EXAMPLES).open() as file:
        return {row["index"]: tuple(row[name] for name in kept) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", limit=40)


@pytest.fixture(scope="module")
def expected(digits, tmp_path_factory):
    return verdicts(evaluate(request(digits), tmp_path_factory.mktemp("expected")))


@pytest.mark.parametrize("size", [1, 7, 16])
def test_the_batch_size_changes_no_verdict(digits, expected, tmp_path, size):
    assert verdicts(evaluate(request(digits, batch_size=size), tmp_path)) == expected


@pytest.fixture(scope="module")
def many():
    return open_dataset("digits", limit=300)


@pytest.fixture(scope="module")
def expected_of_many(many, tmp_path_factory):
    return verdicts(evaluate(request(many, batch_size=300), tmp_path_factory.mktemp("many")))


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 250, 0])
def test_the_batch_size_changes_no_verdict_of_many(many, expected_of_many, tmp_path, size):
    assert verdicts(evaluate(request(many, batch_size=size), tmp_path)) == expected_of_many


def test_the_order_of_examples_changes_no_verdict(digits, expected, tmp_path):
    shuffled = digits.take(torch.randperm(len(digits), generator=torch.Generator().manual_seed(1)))
    assert verdicts(evaluate(request(shuffled, batch_size=16), tmp_path)) == expected


@pytest.mark.parametrize("stage", ["apgd-t", "fab-t", "square"])
def test_an_interrupted_run_ends_as_if_nothing_had_happened(digits, expected, tmp_path, stage):
    def interrupt(progress):
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(request(digits), tmp_path, observer=interrupt)
    assert verdicts(evaluate(request(digits), tmp_path)) == expected


@pytest.mark.parametrize("norm", ["linf:0.2", "l2:1", "l1:4"])
def test_every_norm_lowers_the_accuracy_and_stays_in_its_ball(digits, tmp_path, norm):
    outcome = evaluate(request(digits, threat=norm), tmp_path)
    assert outcome.record.robust.value < outcome.record.clean.value
    with (outcome.folder / EXAMPLES).open() as file:
        distances = [float(row["distance"]) for row in csv.DictReader(file) if row["distance"]]
    assert max(distances) <= Threat.parse(norm).eps * (1 + 1e-5)


def test_a_survivor_costs_exactly_the_budget_and_a_fallen_example_less(digits, expected):
    budget = sum(passes(name, SUITE) for name in SUITE.attacks)
    costs = {key: int(row[5]) + int(row[6]) for key, row in expected.items() if row[3] != "clean"}
    standing = {key for key in costs if expected[key][2] == "True"}
    assert standing
    assert standing < costs.keys()
    assert {costs[key] for key in standing} == {budget}
    assert all(costs[key] < budget for key in costs.keys() - standing)


@pytest.mark.parametrize(
    ("attack", "most"), [("apgd-ce", 204), ("apgd-t", 1829), ("fab-t", 2729), ("square", 5004)]
)
def test_the_published_budget_costs_no_more_than_in_the_package(attack, most):
    assert passes(attack, STANDARD) <= most


def test_nearly_all_rows_that_are_computed_are_live(digits, tmp_path):
    record = evaluate(request(digits), tmp_path).record
    work = [stage.work for stage in record.stages if stage.work]
    assert sum(part.live for part in work) >= 0.97 * sum(part.computed for part in work) > 0


def test_what_the_search_alone_believes_is_no_success(digits, tmp_path, monkeypatch):
    """A search that sees every image as broken is refused each time, and the run ends with the
    clean accuracy."""
    monkeypatch.setattr(
        evaluation,
        "choose_search_model",
        asking(lambda oracle: lambda images: -oracle.model(images)),
    )
    square = replace(parse_suite("square"), budgets={"square": {"queries": 3}})
    record = evaluate(request(digits, threat="linf:1/2550", suite=square), tmp_path).record
    assert record.robust == record.clean
    assert record.stages[-1].work.disagreements > 0


def test_a_batch_that_does_not_fit_is_halved_and_changes_no_verdict(
    digits, expected, tmp_path, monkeypatch
):
    def crowded(oracle):
        def model(images):
            if len(images) > 10:
                raise torch.OutOfMemoryError
            return oracle.model(images)

        return model

    monkeypatch.setattr(evaluation, "choose_search_model", asking(crowded))
    outcome = evaluate(request(digits), tmp_path)
    assert verdicts(outcome) == expected
    assert "halved to 9" in " ".join(finding.message for finding in outcome.record.findings)


def test_where_not_even_one_image_fits_the_run_stops_and_can_be_resumed(
    digits, expected, tmp_path, monkeypatch
):
    def full(_images):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "choose_search_model", asking(lambda _oracle: full))
        with pytest.raises(IncompleteError, match="one image"):
            evaluate(request(digits), tmp_path)
    assert verdicts(evaluate(request(digits), tmp_path)) == expected


def test_a_row_whose_restart_failed_goes_on_with_its_next_one():
    queue = Queue([5, 6], restarts=2)
    rows, restarts = queue.next(1)
    assert (rows.tolist(), restarts.tolist()) == ([5], [0])
    assert queue.failed(5, 0)
    rows, restarts = queue.next(9)
    assert (rows.tolist(), restarts.tolist()) == ([5, 6], [1, 0])
    assert not queue.failed(5, 1)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(
    "speedups", [Speedups(), Speedups(fold=True), Speedups("bf16", channels_last=True)]
)
def test_no_image_that_is_proved_robust_is_reported_broken(test_data, tmp_path, speedups):
    choices = {"architecture": f"{test_data / 'real_models.py'}:resnet2b"}
    data = open_dataset(f"npz:{test_data / 'certified_resnet2b.npz'}")
    target = test_data / "models" / "resnet2b.pth"
    asked = request(
        data, threat="linf:2/255", suite=STANDARD, target=target, choices=choices, speedups=speedups
    )
    assert evaluate(asked, tmp_path).record.robust.value == 1


@pytest.mark.slow
@pytest.mark.data
def test_verdicts_on_a_real_network_are_the_package_s(test_data, tmp_path):
    choices = {"architecture": f"{test_data / 'real_models.py'}:resnet2b"}
    data = open_dataset(f"npz:{test_data / 'cifar10_test_1000.npz'}", limit=200)
    target = test_data / "models" / "resnet2b.pth"
    asked = request(data, threat="linf:2/255", suite=STANDARD, target=target, choices=choices)
    found = [row[2] == "True" for row in verdicts(evaluate(asked, tmp_path)).values()]
    reference = json.loads((test_data / "autoattack_resnet2b_linf_2_255.json").read_text())
    expected = [bool(value) for value in reference["stages"]["square"]["alive"]]
    assert sum(one != other for one, other in zip(found, expected, strict=True)) <= 1
