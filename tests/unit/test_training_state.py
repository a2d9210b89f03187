"""What a training remembers, averages and stores, and whom it learns with."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustbench_kd.core.errors import CheckpointError, UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors import hashed_file
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.distillation import CachedNetwork
from robustbench_kd.tensors.stored_logits import Archive, Views, ask
from robustbench_kd.training.events import Epoch
from robustbench_kd.training.loop import seeded_build, train
from robustbench_kd.training.recipe import Recipe, load_recipe
from robustbench_kd.training.schedule import learning_rate, make_optimiser
from robustbench_kd.training.training_checkpoint import TrainingCheckpoint
from robustbench_kd.training.training_state import Partners, open_course

LINF = Threat.parse("linf:0.1")
AVERAGES = {
    "swa": {"weight_averaging": "swa", "averaging_start": 2},
    "ema": {"weight_averaging": "ema", "averaging_start": 2, "averaging_decay": 0.9},
}
CRD = {"method": "crd", "options": {"negatives": 4, "dimensions": 4}}
TRAININGS = {
    "sgd": {
        "method": "trades",
        "attack_steps": 1,
        "random_start": "uniform",
        "augmentation": "flip_crop",
    },
    "adam": {"method": "plain", "optimiser": "adam", "learning_rate": 0.01},
    "without momentum": {"method": "plain", "momentum": 0.0},
    "memory bank": CRD,
    "peer": {"method": "peeraid", "attack_steps": 1, "optimiser": "adamw", "learning_rate": 0.01},
    "balance": {"method": "mtard", "attack_steps": 1},
    **{kind: {"method": "plain", **fields} for kind, fields in AVERAGES.items()},
}


def recipe(**changes):
    base = {
        "method": "plain",
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 0.1,
        "validation": 20,
    }
    return Recipe.model_validate({**base, "validation_steps": 1, "seed": 3, **changes})


def data(n=80):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 2
    images = 0.4 * torch.rand(n, 1, 4, 4, generator=generator)
    images[labels == 1] += 0.4
    return Dataset("bright", images, labels, tuple(range(0, 2 * n, 2)), 2)


def network(seed=0):
    def build():
        convolution = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 2))

    return seeded_build(build, seed)


def partners(setting):
    count = len(setting.opened().options.teachers())
    return Partners(
        teachers=tuple(network(seed) for seed in range(10, 10 + count)), fresh=lambda: network(7)
    )


def ignore(event):
    pass


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(first[name], second[name]) for name in first
    )


def stop_after(number):
    def observer(event):
        if isinstance(event, Epoch) and event.epoch == number:
            raise KeyboardInterrupt

    return observer


# Memory


@pytest.mark.parametrize("kind", TRAININGS)
@pytest.mark.parametrize("epoch", [1, 2, 3, 4])
def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, kind, epoch):
    setting, memory = (
        recipe(**TRAININGS[kind]),
        TrainingCheckpoint(tmp_path / "net.training", "this"),
    )
    expected = train(network(), data(), LINF, setting, ignore, partners=partners(setting))
    with pytest.raises(KeyboardInterrupt):
        train(
            network(),
            data(),
            LINF,
            setting,
            stop_after(epoch),
            partners=partners(setting),
            memory=memory,
        )
    seen = []
    found = train(
        network(), data(), LINF, setting, seen.append, partners=partners(setting), memory=memory
    )
    assert same(found.best_state, expected.best_state)
    assert (found.best_epoch, found.validation, found.history) == (
        expected.best_epoch,
        expected.validation,
        expected.history,
    )
    assert [event.epoch for event in seen if isinstance(event, Epoch)] == list(range(epoch + 1, 5))


@pytest.fixture
def stopped(tmp_path):
    """The memory of a training that was stopped after its second epoch."""
    memory = TrainingCheckpoint(tmp_path / "net.training", "this")
    with pytest.raises(KeyboardInterrupt):
        train(network(), data(), LINF, recipe(), stop_after(2), memory=memory)
    return memory


def go_on(memory, **changes):
    return train(network(), data(), LINF, recipe(**changes), ignore, memory=memory)


def test_the_memory_of_another_training_is_refused(stopped):
    with pytest.raises(CheckpointError, match=r"belongs to another training.*or delete it"):
        go_on(replace(stopped, identity="that"))


def test_a_damaged_memory_is_refused(stopped):
    content = bytearray(stopped.path.read_bytes())
    content[-1] ^= 1
    stopped.path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        go_on(stopped)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"\x80\x04cos\nsystem\n(S'true'\ntR."])
def test_a_file_that_is_no_memory_is_refused_and_never_run(stopped, content):
    stopped.path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        go_on(stopped)


def forged(memory, *, tensors=ignore, header=ignore):
    """Seals a changed memory anew, as somebody would who means harm."""
    content = hashed_file.read(memory.path)
    tensors(content.tensors)
    header(content.header)
    hashed_file.write(memory.path, *content)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("network/0.weight"),
        lambda tensors: tensors.pop("random/lessons"),
        lambda tensors: tensors.update({"best/0.weight": torch.zeros(3)}),
        lambda tensors: tensors.update({"average/0.weight": torch.zeros(3)}),
        lambda tensors: tensors.update({"network/0.weight": torch.zeros(4, 1, 9, 9)}),
        lambda tensors: tensors.update({"optimiser/0/momentum_buffer": torch.zeros(2, 2)}),
        lambda tensors: tensors.update({"optimiser/99/momentum_buffer": torch.zeros(())}),
        lambda tensors: tensors.update({"optimiser/x/momentum_buffer": torch.zeros(())}),
        lambda tensors: tensors.update({"random/lessons": torch.zeros(4, dtype=torch.uint8)}),
        lambda tensors: tensors.update({"random/cpu": torch.zeros(4)}),
    ],
)
def test_a_forged_memory_is_refused_in_one_line(stopped, change):
    forged(stopped, tensors=change)
    with pytest.raises(CheckpointError, match=r"does not fit this training .*delete it") as caught:
        go_on(stopped)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.clear(),
        lambda header: header.update(training="{}"),
        lambda header: header.update(
            training=header["training"].replace('"best_epoch":', '"best_epoch":9')
        ),
        lambda header: header.update(training=header["training"].replace('"epoch":1', '"epoch":5')),
    ],
)
def test_a_forged_header_is_refused(stopped, change):
    forged(stopped, header=change)
    with pytest.raises(CheckpointError, match="is no unfinished training"):
        go_on(stopped)


# Averages


@pytest.mark.parametrize("kind", AVERAGES)
def test_an_average_is_kept_in_place_of_the_last_weights(kind):
    trained = network()
    plain = train(trained, data(), LINF, recipe(selection="last"), ignore)
    averaged = train(network(), data(), LINF, recipe(selection="last", **AVERAGES[kind]), ignore)
    assert not torch.equal(averaged.best_state["5.weight"], plain.best_state["5.weight"])
    assert same(trained.state_dict(), plain.best_state)


def test_an_equal_average_is_the_mean_over_ends_of_epochs_with_fresh_statistics():
    student, ends = network(), []

    def note(event):
        if isinstance(event, Epoch) and event.epoch >= 2:
            ends.append(student[5].weight.detach().clone())

    setting = recipe(selection="last", **AVERAGES["swa"])
    found = train(student, data(), LINF, setting, note).best_state
    torch.testing.assert_close(found["5.weight"], torch.stack(ends).mean(dim=0))
    assert found["1.num_batches_tracked"] == 4, (
        "statistics come from one pass over the 60 training examples"
    )


def test_averaging_does_not_change_how_the_weights_themselves_move():
    students = [network(), network()]
    for student, fields in zip(students, ({}, AVERAGES["ema"]), strict=True):
        train(student, data(), LINF, recipe(**fields), ignore)
    assert same(*(student.state_dict() for student in students))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_averaging": "swa"}, "expected averaging_start"),
        ({"weight_averaging": "ema", "averaging_start": 1}, "expected averaging_decay"),
        (
            {"stored_views": 2, "augmentation": "shift"},
            'expected augmentation = "none" beside stored_views',
        ),
    ],
)
def test_fields_that_need_each_other_are_asked_for(fields, message):
    with pytest.raises(ValueError, match=message):
        recipe(**fields)


# Stored answers


def test_stored_answers_teach_as_the_teacher_itself_does():
    teacher, views = network(5).eval(), Views(count=1)
    setting = recipe(method="kd", stored_views=1)
    stored = ask(teacher, data(), views, batch_size=16, device=torch.device("cpu"))
    archive = Archive(views, (stored,))
    silent = Partners(teachers=(nn.Linear(1, 1),), archive=archive)
    found = train(network(), data(), LINF, setting, ignore, partners=silent)
    live = train(
        network(), data(), LINF, recipe(method="kd"), ignore, partners=Partners(teachers=(teacher,))
    )
    assert found.history[0].loss == pytest.approx(live.history[0].loss, rel=0.05)


def test_every_stored_view_is_shown():
    views = Views(count=3, padding=1)
    stored = ask(network(5).eval(), data(), views, batch_size=16, device=torch.device("cpu"))
    images = data().images.repeat(4, 1, 1, 1)
    ids = torch.tensor(data().ids).repeat(4)
    shown, (teacher,) = Archive(views, (stored,)).shown(
        images, ids, torch.Generator().manual_seed(0)
    )
    answers = {tuple(row) for row in teacher(shown).tolist()}
    assert 2 * len(data()) < len(answers) <= 3 * len(data())


# Precision


def test_half_precision_is_that_of_the_passes_alone():
    student, images = network().eval(), data().images
    exact, half = CachedNetwork(student)(images), CachedNetwork(student, half=True)(images)
    assert half.dtype == torch.float32
    assert torch.equal(half, half.bfloat16().float())
    assert not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)


def test_a_training_in_half_precision_learns():
    half = train(
        network(), data(), LINF, recipe(precision="bf16", method="trades", epochs=6), ignore
    )
    assert half.validation.clean == 1.0


def test_weights_learn_in_half_precision_after_a_target_without_gradient():
    setting = recipe(method="trades", precision="bf16", attack_steps=1)
    current = open_course(network(), data(), LINF, setting, Partners(), generator=torch.Generator())
    sum(current.terms(torch.arange(8), epoch=1).values()).backward()
    assert all(parameter.grad is not None for parameter in current.network.parameters())


# Optimisers, schedules, helpers


def test_the_rate_rises_linearly_through_the_warm_up_and_then_follows_the_schedule():
    warm, cold = recipe(epochs=10, warmup=2), recipe(epochs=10)
    rates = [learning_rate(warm, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (step + 0.5) / 10 for step in range(10)])
    assert rates[10:] == [learning_rate(cold, step, 5) for step in range(10, 50)]


def test_adamw_decays_weights_apart_from_the_gradient():
    layer = nn.Linear(2, 2)
    optimiser = make_optimiser(
        layer, recipe(optimiser="adamw", weight_decay=0.5), helper=nn.Module()
    )
    before = layer.weight.detach().clone()
    layer(torch.zeros(1, 2)).sum().backward()
    layer.weight.grad.zero_()
    optimiser.step()
    torch.testing.assert_close(layer.weight.detach(), before * (1 - 0.1 * 0.5))


def test_what_a_method_learns_besides_is_optimised_with_the_student():
    setting = recipe(**CRD)
    current = open_course(
        network(), data(), LINF, setting, partners(setting), generator=torch.Generator()
    )
    optimised = {
        id(parameter) for group in current.optimiser.param_groups for parameter in group["params"]
    }
    assert {
        id(p) for module in (current.network, current.helper) for p in module.parameters()
    } == optimised
    assert len(optimised) == 6 + 4


def test_a_peer_has_weights_of_its_own_and_needs_somebody_who_builds_it():
    with pytest.raises(UsageError, match="learns beside a second network"):
        train(network(), data(), LINF, recipe(method="peeraid"), ignore)


def test_the_terms_of_an_epoch_are_named_and_sum_to_its_loss():
    setting = recipe(method="rslad", attack_steps=1)
    found = train(network(), data(), LINF, setting, ignore, partners=partners(setting)).history[0]
    assert set(found.terms) == {"adversarial", "clean"}
    assert math.isclose(sum(found.terms.values()), found.loss, rel_tol=1e-5)


def test_teachers_are_untouched_by_a_training():
    setting = recipe(method="mtard", attack_steps=1, attack_mode="train")
    known = partners(setting)
    before = [
        {name: value.clone() for name, value in teacher.state_dict().items()}
        for teacher in known.teachers
    ]
    train(network(), data(), LINF, setting, ignore, partners=known)
    assert all(
        same(teacher.state_dict(), state)
        for teacher, state in zip(known.teachers, before, strict=True)
    )


# Recipes


def test_an_addition_counts_only_where_it_is_asked_for_and_brings_the_settings_of_the_recipe():
    assert load_recipe("digits-ard").additions is None
    asked = load_recipe("digits-ard", additions=["igdm"]).additions
    assert (asked["igdm"]["alpha"], asked["igdm"]["ramp"]) == (5.0, "linear_total")


def test_dotted_keys_reach_options_and_additions():
    changed = load_recipe(
        "digits-rslad", {"options.scale": "10.0", "additions.igdm.alpha": "0.5"}, additions=["igdm"]
    )
    assert (changed.options["scale"], changed.additions["igdm"]["alpha"]) == (10.0, 0.5)


def test_a_recipe_that_was_read_spells_out_every_option_and_is_read_again():
    found = load_recipe("digits-kd")
    assert found.options == {
        "label_weight": 0.1,
        "teacher_weight": 0.9,
        "temperature": 4.0,
        "reduction": "batchmean",
    }
    assert Recipe.model_validate(found.model_dump(mode="json", exclude_none=True)) == found


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "digits-rslad",
            {"options.sclae": "2.0"},
            "unknown option of rslad 'sclae': did you mean 'scale'?",
        ),
        (
            "digits-rslad",
            {"epochs.many": "2"},
            "recipe key 'epochs.many': 'epochs' holds no further keys",
        ),
        ("digits-plain", {"options.beta": "2.0"}, "'plain' takes no options and no additions"),
        ("digits-saad", {"weight_averaging": "ema"}, "expected averaging_decay, such as 0.999"),
    ],
)
def test_impossible_overrides_are_refused_in_one_line(name, overrides, message):
    with pytest.raises(UsageError) as caught:
        load_recipe(name, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_averaging_can_be_switched_off():
    assert load_recipe("digits-saad", {"weight_averaging": "none"}).weight_averaging is None
