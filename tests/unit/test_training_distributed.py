"""Two processes train one network as one process would. torchrun runs this file itself, once for
all tests."""

import faulthandler
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_kd.checkpoints.card import read_card
from robustbench_kd.cli import main
from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.training import distributed
from robustbench_kd.training.events import Epoch
from robustbench_kd.training.loop import seeded_build, train
from robustbench_kd.training.recipe import Recipe
from robustbench_kd.training.training_checkpoint import TrainingCheckpoint
from robustbench_kd.training.training_state import Partners

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="torch was built without gloo",
    ),
]

LINF = Threat.parse("linf:0.1")
RANKS = ["0", "1"]
EXACT = {
    "method": "pgd-at",
    "attack_steps": 2,
    "random_start": "none",
    "weight_decay": 0.01,
    "gradient_clip": 0.5,
}
NOISY = {"attack_steps": 1, "augmentation": "flip_crop", "batch_size": 32}
CRD = {"negatives": 4, "dimensions": 4}
EXACT_KINDS = {
    "momentum": EXACT,
    "adam and average": {
        **EXACT,
        "optimiser": "adam",
        "learning_rate": 0.01,
        "weight_averaging": "ema",
        "averaging_start": 2,
        "averaging_decay": 0.9,
    },
}
NOISY_KINDS = {
    "attacks in training mode": {**NOISY, "method": "trades", "attack_mode": "train"},
    "equal average": {**NOISY, "method": "plain", "weight_averaging": "swa", "averaging_start": 2},
    "balance": {**NOISY, "method": "mtard"},
    "memory bank": {**NOISY, "method": "crd", "options": CRD},
    "peer": {**NOISY, "method": "peeraid"},
    "gradients of gradients": {**NOISY, "method": "rslad", "additions": {"igdm": {}}},
}


def recipe(**changes):
    base = {
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 0.1,
        "validation": 21,
        "validation_steps": 1,
        "seed": 3,
    }
    return Recipe.model_validate(base | changes)


def data(n=84):
    """Of 84 examples 63 are trained on, in batches of 16 and one of 15, which two processes cannot
    halve."""
    labels = torch.arange(n) % 2
    images = 0.4 * torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[labels == 1] += 0.4
    return Dataset("bright", images, labels, tuple(range(n)), 2)


def network(seed=0, *, noisy=True):
    def build():
        between = [nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)] if noisy else [nn.ReLU()]
        return nn.Sequential(nn.Conv2d(1, 4, 3), *between, nn.Flatten(), nn.Linear(16, 2))

    return seeded_build(build, seed)


def ignore(event):
    pass


def trained(fields, *, observer=ignore, memory=None, noisy):
    """Returns the outcome of a training, and the weights that the network ends with."""
    student, setting = network(noisy=noisy), recipe(**fields)
    teachers = tuple(
        network(seed) for seed in range(10, 10 + len(setting.opened().options.teachers()))
    )
    partners = Partners(teachers=teachers, fresh=lambda: network(7))
    return train(
        student, data(), LINF, setting, observer, partners=partners, memory=memory
    ), student.state_dict()


# What each process does


def stop_after_two(event):
    if isinstance(event, Epoch) and event.epoch == 2:
        raise KeyboardInterrupt


def resumed(folder):
    memory, fields = TrainingCheckpoint(folder / "net.training", "this"), NOISY_KINDS["balance"]
    try:
        trained(fields, observer=stop_after_two, memory=memory, noisy=True)
    except KeyboardInterrupt:
        # The first process has to have written what the other one reads.
        torch.distributed.barrier()
    return trained(fields, memory=memory, noisy=True)


def moved():
    """Returns buffers after a step in which process r added r + 1 to all of the first one and to
    row r of the second."""
    module, rank = nn.Module(), torch.distributed.get_rank()
    module.register_buffer("statistics", torch.ones(2))
    module.register_buffer("bank", torch.ones(3))
    module.register_buffer("mask", torch.tensor([-torch.inf, torch.inf, 0.1]))
    module.register_buffer("estimate", torch.tensor([torch.nan, torch.nan], dtype=torch.float64))
    with distributed.in_common(module):
        module.statistics += rank + 1
        module.bank[rank] += rank + 1
        module.estimate = torch.tensor([rank + 1.0, torch.nan], dtype=torch.float64)
    return module.state_dict()


def drawn():
    """Returns what a process draws in two steps, and again in the second one."""
    shared = torch.Generator()
    return [
        torch.rand(4, generator=distributed.source(shared, 3, step)).tolist() for step in (0, 1, 1)
    ]


def refusal():
    try:
        distributed.mine(torch.arange(3))
    except UsageError as error:
        return str(error)
    return ""


def work(folder):
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(
        90, exit=True
    )  # a process that waits for another one would do so for half an hour
    chosen = [
        "--arch",
        "small_cnn",
        "--arch-arg",
        "width=2",
        "--set",
        "epochs=1",
        "--out",
        str(folder / "made"),
    ]
    with distributed.joined(torch.device("cpu")):
        found = {
            "exact": {kind: trained(fields, noisy=False) for kind, fields in EXACT_KINDS.items()},
            "noisy": {kind: trained(fields, noisy=True) for kind, fields in NOISY_KINDS.items()},
            "resumed": resumed(folder),
            "moved": moved(),
            "drawn": drawn(),
            "refusal": refusal(),
        }
        torch.save(found, folder / f"{torch.distributed.get_rank()}.pt")
        main(["train", "digits-plain", "--name", "net", *chosen])


# What came of it


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder in which two processes worked, and what they printed."""
    folder = tmp_path_factory.mktemp("launched")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    done = subprocess.run(
        [*command, __file__, folder],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def found(launched):
    return [torch.load(launched[0] / f"{rank}.pt", weights_only=False) for rank in RANKS]


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.mark.parametrize(
    ("group", "kind"),
    [("exact", kind) for kind in EXACT_KINDS] + [("noisy", kind) for kind in NOISY_KINDS],
)
def test_both_processes_end_with_the_same_weights_and_statistics(found, group, kind):
    (first, first_last), (second, second_last) = (each[group][kind] for each in found)
    assert same(first_last, second_last)
    assert same(first.best_state, second.best_state)
    assert replace(first, best_state={}) == replace(second, best_state={})
    assert not same(first_last, network(noisy=group == "noisy").state_dict())


@pytest.mark.parametrize("kind", EXACT_KINDS)
def test_without_chance_two_processes_learn_what_one_does(found, kind):
    expected, last = trained(EXACT_KINDS[kind], noisy=False)
    outcome, weights = found[0]["exact"][kind]
    torch.testing.assert_close(weights, last)
    torch.testing.assert_close(outcome.best_state, expected.best_state)
    assert [epoch.loss for epoch in outcome.history] == pytest.approx(
        [epoch.loss for epoch in expected.history]
    )
    assert outcome.validation.clean == expected.validation.clean


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(found):
    for each in found:
        (expected, last), (outcome, weights) = each["noisy"]["balance"], each["resumed"]
        assert same(weights, last)
        assert outcome.history == expected.history


def test_buffers_move_by_the_mean_over_those_who_move_them(found):
    for each in found:
        buffers = each["moved"]
        assert buffers["statistics"].tolist() == [2.5, 2.5]
        assert buffers["bank"].tolist() == [2.0, 3.0, 1.0]
        assert torch.equal(buffers["mask"], torch.tensor([-torch.inf, torch.inf, 0.1]))
        assert torch.equal(
            buffers["estimate"].nan_to_num(0), torch.tensor([1.5, 0.0], dtype=torch.float64)
        )


def test_noise_differs_between_processes_and_steps_and_can_be_drawn_again(found):
    numbers = [tuple(step) for each in found for step in each["drawn"]]
    assert numbers[1] == numbers[2]
    assert len(set(numbers)) == 4


def test_too_few_examples_for_all_processes_are_refused(found):
    for each in found:
        assert each["refusal"].startswith(
            "expected two examples for each of 2 processes, got 3: raise batch_size"
        )


def test_one_process_writes_one_card_and_says_where_it_lies(launched):
    folder, done = launched
    card = folder / "made" / "net.toml"
    assert sorted(path.name for path in card.parent.iterdir()) == ["net.safetensors", "net.toml"]
    assert read_card(card).made["processes"] == 2
    assert done.stdout.split() == [str(card)]
    assert done.stderr.count("validation clean") == 2, (
        "one line for the epoch and one for the outcome"
    )


if __name__ == "__main__":
    work(Path(sys.argv[1]))
