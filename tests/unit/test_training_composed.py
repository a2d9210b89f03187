"""Checkpoints of defences that are composed of parts.

What is trained, what is written, what is refused.
"""

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from robustbench_kd.checkpoints.card import Architecture, read_card
from robustbench_kd.checkpoints.composite import own_state
from robustbench_kd.checkpoints.normalisation import parse_normalisation
from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.errors import CheckpointError, UsageError
from robustbench_kd.core.plugins import components
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.tensors.defence import Key, Randomized
from robustbench_kd.tensors.distillation import BatchContext, CachedNetwork, Progress, total
from robustbench_kd.training.design import Composition, Network
from robustbench_kd.training.events import Epoch
from robustbench_kd.training.loop import seeded_build, train
from robustbench_kd.training.make import Plan, make_checkpoint
from robustbench_kd.training.methods import denoise
from robustbench_kd.training.recipe import Recipe

THREAT = Threat.parse("linf:0.15")
SMALL = {"depth": 4, "width": 4}
# Small where the defaults are not; a family that is not named here is made with its defaults.
FAMILIES = {
    "frontend": {**SMALL, "amplitude": 0.05},
    "denoiser": {"width": 4},
    "detector": {"steps_t": 3, "steps_u": 3},
}
COMPOSED = [family for family in components("defences") if family != "classifier"]


def recipe(**changes):
    base = {
        "method": "pgd-at",
        "epochs": 1,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "optimiser": "adam",
    }
    return Recipe.model_validate(
        {**base, "validation": 16, "validation_steps": 2, "attack_steps": 2, **changes}
    )


FIT = recipe(epochs=0)


def plan(name, design, setting):
    return Plan(name, setting, design, THREAT, (str(THREAT),), torch.device("cpu"))


def ignore(event):
    pass


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", split="train", limit=64)


@pytest.fixture(scope="module")
def shelf(digits, tmp_path_factory):
    """A folder with the cards of two networks, one of them normalised."""
    folder = tmp_path_factory.mktemp("shelf")
    for seed, normalisation in enumerate(("none", "0.3/0.4")):
        network = Network(
            Architecture(name="small_cnn", arguments={"width": 4}),
            parse_normalisation(normalisation),
        )
        setting = recipe(method="plain", learning_rate=0.01, epochs=2, seed=seed)
        make_checkpoint(plan(f"net{seed}", network, setting), digits, folder, ignore)
    return folder


@pytest.fixture
def folder(shelf, tmp_path):
    """A copy of the folder that a test may write into."""
    return Path(shutil.copytree(shelf, tmp_path / "checkpoints"))


def composition(folder, family="frontend", arguments=None, parts=("net0",)):
    arguments = SMALL if arguments is None else arguments
    return Composition(family, tuple(folder / f"{part}.toml" for part in parts), arguments)


def opened(path):
    (target,) = describe(str(path), Choices())
    return load(target, classes=10, shape=(1, 8, 8)).model


def key_of(n):
    return Key(0, "test", ids=torch.arange(n), draw=torch.zeros(n, dtype=torch.int64))


def answer(defence, images):
    with torch.no_grad():
        return (
            defence.draw(images, key_of(len(images)))
            if isinstance(defence, Randomized)
            else defence(images)
        )


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# What is made


def test_training_a_front_end_changes_its_own_tensors_and_no_file_of_its_part(digits, folder):
    before, design = contents(folder), composition(folder)
    fresh = design.build(digits, 0, folder / "front.toml")
    made = make_checkpoint(plan("front", design, recipe()), digits, folder, ignore)
    trained = opened(made.path)
    assert own_state(trained).keys() == own_state(fresh).keys()
    assert not torch.equal(trained.last.weight, fresh.last.weight)
    parts = {
        name: value for name, value in trained.state_dict().items() if name.startswith("parts.")
    }
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in parts.items())
    after = contents(folder)
    assert set(after) - set(before) == {"front.toml", "front.safetensors"}
    assert all(after[name] == before[name] for name in before)


def test_parts_are_frozen_and_stay_in_evaluation_mode(digits, folder):
    defence, modes = composition(folder).build(digits, 0, folder / "front.toml"), []
    defence.part.register_forward_hook(lambda part, *_: modes.append(part.training))
    train(defence, digits, THREAT, recipe(attack_mode="train"), ignore)
    assert set(modes) == {False}
    wanted = [name for name, parameter in defence.named_parameters() if parameter.requires_grad]
    assert wanted
    assert not any(name.startswith("parts.") for name in wanted)


@pytest.mark.parametrize(
    ("family", "arguments", "part", "changes"),
    [
        ("frontend", SMALL, "net0", {}),
        ("frontend", SMALL, "net1", {"method": "trades"}),
        ("frontend", {**SMALL, "amplitude": 0.05}, "net0", {"epochs": 0}),
        ("denoiser", {"width": 4, "known": True}, "net1", {"method": "denoise", "noise_shape": 25}),
        ("denoiser", {"width": 4}, "net0", {"method": "denoise"}),
        ("cache", {}, "net1", {"epochs": 0}),
        ("ensemble", {"weights": [0.3, 0.7]}, "net0", {"epochs": 0}),
    ],
    ids=str,
)
def test_a_card_loads_back_what_was_trained(digits, folder, family, arguments, part, changes):
    """Bit for bit, whatever the global generator holds: so the training repeats, too."""
    parts, setting = ["net0", "net1"] if family == "ensemble" else [part], recipe(**changes)
    design = composition(folder, family, arguments, parts)
    torch.manual_seed(1)
    defence = design.build(digits, setting.seed, folder / "made.toml")
    defence.load_state_dict(train(defence, digits, THREAT, setting, ignore).best_state)
    torch.manual_seed(2)
    made = make_checkpoint(plan("made", design, setting), digits, folder, ignore)
    assert torch.equal(
        answer(opened(made.path), digits.images), answer(defence.eval(), digits.images)
    )


def test_making_a_checkpoint_moves_no_global_generator(digits, folder):
    before = torch.get_rng_state()
    make_checkpoint(plan("front", composition(folder), recipe()), digits, folder, ignore)
    assert torch.equal(torch.get_rng_state(), before)


def test_own_weights_at_first_depend_on_the_seed_and_not_on_the_part(digits, folder):
    def build(part, seed):
        return own_state(
            composition(folder, parts=[part]).build(digits, seed, folder / "front.toml")
        )["body.0.weight"]

    assert torch.equal(build("net0", 0), build("net1", 0))
    assert not torch.equal(build("net0", 0), build("net0", 1))


def test_the_card_says_what_the_defence_is_made_of(digits, folder):
    card = read_card(
        make_checkpoint(plan("front", composition(folder), recipe()), digits, folder, ignore).path
    )
    assert (card.family, card.parts, card.arguments) == ("frontend", ("net0.toml",), SMALL)
    assert (card.classes, card.image_shape, card.dataset, card.threats) == (
        10,
        (1, 8, 8),
        "digits",
        ("linf:0.15",),
    )
    assert card.weights.file == "front.safetensors"
    assert card.made["validation"].keys() == {"n", "clean_accuracy", "pgd_accuracy"}
    assert (card.made["method"], card.made["epoch"]) == ("pgd-at", 1)


def test_without_epochs_a_front_end_is_fitted_and_not_optimised(digits, folder):
    design = composition(folder, arguments={**SMALL, "amplitude": 0.05})
    made = make_checkpoint(plan("masked", design, FIT), digits, folder, ignore)
    front = opened(made.path)
    rows = digits.images
    assert (front.front(rows) - rows).abs().mean().item() == pytest.approx(0.05, rel=0.2)
    card = read_card(made.path)
    assert (card.made["method"], card.made["epoch"]) == ("fit", 0)


def test_a_defence_without_tensors_of_its_own_is_a_card_alone(digits, folder):
    before = set(contents(folder))
    design = composition(folder, "ensemble", {"mode": "logits"}, ["net0", "net1"])
    card = read_card(make_checkpoint(plan("both", design, FIT), digits, folder, ignore).path)
    assert card.weights is None
    assert set(contents(folder)) - before == {"both.toml"}


def test_the_card_of_a_randomized_defence_tells_that_each_image_was_asked_once(digits, folder):
    design = composition(folder, "ensemble", {}, ["net0", "net1"])
    made = make_checkpoint(plan("both", design, FIT), digits, folder, ignore)
    assert made.trained.validation.robust is None
    found = read_card(made.path).made["validation"]
    assert found == {"n": 16, "draws": 1, "clean_accuracy": made.trained.validation.clean}


def test_composed_defences_are_parts_themselves(digits, folder):
    for name, seed in (("front", 0), ("other", 1)):
        design = composition(folder, arguments={**SMALL, "amplitude": 0.05})
        make_checkpoint(plan(name, design, recipe(epochs=0, seed=seed)), digits, folder, ignore)
    design = composition(folder, "ensemble", {}, ["front", "other"])
    made = make_checkpoint(plan("mixed", design, FIT), digits, folder, ignore)
    first, second = opened(made.path).members()
    assert torch.equal(first(digits.images), opened(folder / "front.toml")(digits.images))
    assert not torch.equal(first(digits.images), second(digits.images))


@pytest.mark.parametrize("family", COMPOSED)
def test_every_family_is_made_without_optimisation_and_loads_back(digits, folder, family):
    arguments = FAMILIES.get(family, {})
    try:
        made = make_checkpoint(
            plan("made", composition(folder, family, arguments), FIT), digits, folder, ignore
        )
    except UsageError:  # it wants more parts
        design = composition(folder, family, arguments, ["net0", "net1"])
        made = make_checkpoint(plan("made", design, FIT), digits, folder, ignore)
    assert read_card(made.path).family == family
    assert answer(opened(made.path), digits.images[:8]).isfinite().all()


# What is refused


def refused(call, kind=UsageError):
    with pytest.raises(kind) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make(design, digits, folder, name="made", setting=FIT):
    return lambda: make_checkpoint(plan(name, design, setting), digits, folder, ignore)


def test_a_part_in_another_folder_is_refused_before_anything_is_written(digits, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    said = refused(make(composition(folder), digits, elsewhere))
    assert (
        f"in the folder of the new card, '{elsewhere}', got '{folder / 'net0.toml'}': copy its card"
        in said
    )
    assert f"or choose --out {folder}" in said
    assert not elsewhere.exists()


def test_the_folder_may_be_spelled_in_two_ways(digits, folder):
    around = folder / ".." / folder.name
    make(composition(around), digits, folder)()
    assert read_card(folder / "made.toml").parts == ("net0.toml",)


def test_an_unknown_argument_comes_with_the_nearest(digits, folder):
    said = refused(make(composition(folder, arguments={"dept": 5}), digits, folder))
    assert said.startswith("unknown argument of frontend 'dept': did you mean 'depth'?")


def test_an_unknown_family_comes_with_the_nearest(digits, folder):
    assert "did you mean 'frontend'?" in refused(
        make(composition(folder, "fronted"), digits, folder)
    )


def test_a_plain_classifier_is_not_composed(digits, folder):
    said = refused(make(composition(folder, "classifier", {}), digits, folder))
    assert (
        said
        == "expected a family that is composed of parts, got 'classifier': choose another --family"
    )


@pytest.mark.parametrize("part", ["net0.safetensors", "net0", "."])
def test_a_part_is_a_card(digits, folder, part):
    said = refused(make(Composition("frontend", (folder / part,), SMALL), digits, folder))
    assert said.startswith("expected the card of a part, such as net.toml, got ")


def test_a_part_that_is_not_there_is_said(digits, folder):
    said = refused(make(composition(folder, parts=["net7"]), digits, folder), CheckpointError)
    assert said == f"cannot read card '{folder / 'net7.toml'}': No such file or directory"


@pytest.mark.parametrize("name", ["net0", "front", "weights"])
def test_a_name_that_would_overwrite_a_part_is_refused(digits, folder, name):
    """Its own card, a card that it is made of, and a weights file of another name."""
    card = folder / "net0.toml"
    card.write_text(card.read_text().replace("net0.safetensors", "weights.safetensors"))
    (folder / "net0.safetensors").rename(folder / "weights.safetensors")
    make(composition(folder), digits, folder, "front")()
    make(composition(folder, "smoothed", {}, ["front"]), digits, folder, "noisy")()
    before = contents(folder)
    parts = {"net0": ["net0"], "front": ["front"], "weights": ["front"]}[name]
    said = refused(make(composition(folder, "smoothed", {}, parts), digits, folder, name))
    part = folder / f"{parts[0]}.toml"
    problem = f"'{name}' would overwrite a file of its part '{part}'"
    assert said == f"{problem}: choose another --name"
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["", "a/b", "..", "a\nb"])
def test_a_name_that_is_no_file_name_is_refused(digits, folder, name):
    said = refused(make(composition(folder, "smoothed", {}), digits, folder, name))
    assert said == f"expected a name that can be a file name, got {name!r}"


def test_a_family_without_parameters_cannot_be_optimised(digits, folder):
    said = refused(make(composition(folder, "smoothed", {}), digits, folder, setting=recipe()))
    assert re.fullmatch(
        "Smoothed has nothing to optimise: expected a recipe with epochs = 0 such as 'fit', got 1",
        said,
    )


# Denoising


class Blind(nn.Module):
    """Reconstructs nothing: its error is all of what it is given, or of what it should find."""

    def __init__(self, sigma, gain):
        super().__init__()
        self.sigma, self.gain, self.seen = sigma, gain, None

    def reconstruct(self, noisy):
        self.seen = noisy
        return self.gain * noisy


def denoising_loss(network, images, **changes):
    context = BatchContext(
        student=CachedNetwork(network),
        teachers=(),
        images=images,
        labels=torch.zeros(len(images), dtype=torch.int64),
        rows=torch.arange(len(images)),
        progress=Progress(1, 1),
        generator=torch.Generator().manual_seed(0),
    )
    return total(denoise.loss(context, recipe(method="denoise", **changes)))


@pytest.mark.parametrize("shape", [None, 1, 25])
def test_the_error_of_the_identity_is_the_variance_of_the_noise(shape):
    """With a Gamma distribution of shape k around sigma, the mean of the variances is sigma^2 (1 +
    1 / k)."""
    loss = denoising_loss(Blind(0.3, 1.0), torch.full((20_000, 1, 4, 4), 0.5), noise_shape=shape)
    assert loss.item() == pytest.approx(0.09 * (1 + (1 / shape if shape else 0)), rel=0.05)


def test_the_error_of_nothing_is_the_mean_square_of_the_image():
    assert denoising_loss(Blind(0.3, 0.0), torch.full((3, 1, 4, 4), 0.5)).item() == pytest.approx(
        0.25
    )


def test_the_published_noise_has_one_deviation_for_each_image():
    network = Blind(0.3, 1.0)
    denoising_loss(network, torch.zeros(2000, 1, 16, 16), noise_shape=25)
    deviations = network.seen.flatten(1).std(dim=1)
    assert deviations.mean().item() == pytest.approx(0.3, rel=0.01)
    assert deviations.std().item() == pytest.approx(0.3 / 5, rel=0.1)


def test_training_a_denoiser_lowers_its_error_and_leaves_its_part(digits, folder):
    design = composition(folder, "denoiser", {"width": 4, "sigma": 0.2})
    defence = design.build(digits, 0, folder / "made.toml")
    part = {name: value.clone() for name, value in defence.part.state_dict().items()}
    setting = recipe(method="denoise", epochs=20, learning_rate=5e-3, selection="last")
    history = train(defence, digits, THREAT, setting, ignore).history
    assert history[-1].loss < history[0].loss / 2
    assert all(torch.equal(value, part[name]) for name, value in defence.part.state_dict().items())


def test_only_a_denoiser_learns_to_denoise(digits, folder):
    said = refused(make(composition(folder), digits, folder, setting=recipe(method="denoise")))
    assert (
        said == "method 'denoise' trains the family 'denoiser', got FrontEnd: choose another method"
    )


def test_a_seeded_build_gives_back_what_is_built():
    assert seeded_build(lambda: torch.rand(3).tolist(), 3) == seeded_build(
        lambda: torch.rand(3).tolist(), 3
    )


# Going on


def interrupted(event):
    if isinstance(event, Epoch):
        raise KeyboardInterrupt


def test_a_front_end_whose_training_was_stopped_ends_in_the_same_bytes(digits, folder):
    design, setting = composition(folder), recipe(epochs=2)
    make_checkpoint(plan("front", design, setting), digits, folder, ignore)
    whole = contents(folder)
    for name in ("front.toml", "front.safetensors"):
        (folder / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(plan("front", design, setting), digits, folder, interrupted)
    assert set(contents(folder)) - {"front.training"} == set(whole) - {
        "front.toml",
        "front.safetensors",
    }
    make_checkpoint(plan("front", design, setting), digits, folder, ignore)
    assert contents(folder) == whole


@pytest.mark.parametrize("changes", [{"seed": 1}, {"epochs": 3}, {"learning_rate": 1e-2}])
def test_another_recipe_does_not_go_on_from_a_stopped_training(digits, folder, changes):
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(
            plan("front", composition(folder), recipe(epochs=2)), digits, folder, interrupted
        )
    with pytest.raises(CheckpointError, match=r"'.*front\.training' belongs to another training"):
        make_checkpoint(
            plan("front", composition(folder), recipe(**{"epochs": 2, **changes})),
            digits,
            folder,
            ignore,
        )


def test_another_part_of_the_same_name_does_not_go_on_from_a_stopped_training(digits, folder):
    with pytest.raises(KeyboardInterrupt):
        make_checkpoint(
            plan("front", composition(folder), recipe(epochs=2)), digits, folder, interrupted
        )
    (folder / "net1.toml").rename(folder / "net0.toml")
    with pytest.raises(CheckpointError, match="belongs to another training"):
        make_checkpoint(
            plan("front", composition(folder), recipe(epochs=2)), digits, folder, ignore
        )


def test_the_same_command_makes_the_same_again(digits, folder):
    made = make_checkpoint(plan("front", composition(folder), recipe()), digits, folder, ignore)
    before = contents(folder)
    assert (
        make_checkpoint(plan("front", composition(folder), recipe()), digits, folder, ignore).path
        == made.path
    )
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("design", "setting", "said"),
    [
        ({}, {"learning_rate": 1e-2}, "other recipe"),
        ({"arguments": {**SMALL, "depth": 5}}, {}, "other arguments"),
        ({"parts": ("net1",)}, {"seed": 1}, "other recipe and parts"),
    ],
)
def test_a_checkpoint_that_was_made_otherwise_is_not_overwritten(
    digits, folder, design, setting, said
):
    make_checkpoint(plan("front", composition(folder), recipe()), digits, folder, ignore)
    before = contents(folder)
    with pytest.raises(
        UsageError,
        match=rf"front\.toml' was made with {said}, and would be lost: choose another --name",
    ):
        make_checkpoint(
            plan("front", composition(folder, **design), recipe(**setting)), digits, folder, ignore
        )
    assert contents(folder) == before
