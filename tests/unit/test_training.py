"""Recipes, the inner attack, the methods and the loop, on problems whose answers are known."""

import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.distillation import CachedNetwork, away_from, labelled, total
from robustbench_kd.tensors.geometry import inside, random_start
from robustbench_kd.tensors.losses import kl_divergence
from robustbench_kd.training.augmentation import augment
from robustbench_kd.training.batches import split
from robustbench_kd.training.events import Epoch, Step
from robustbench_kd.training.inner import attack, mode, pgd
from robustbench_kd.training.loop import seeded_build, train
from robustbench_kd.training.recipe import Recipe, load_recipe
from robustbench_kd.training.schedule import learning_rate
from robustbench_kd.training.training_state import Partners, open_course
from robustbench_kd.training.validation import evaluate

LINF = Threat.parse("linf:0.1")
L2 = Threat.parse("l2:0.3")


def recipe(**changes):
    base = {
        "method": "plain",
        "epochs": 3,
        "batch_size": 16,
        "learning_rate": 0.1,
        "validation": 20,
    }
    return Recipe.model_validate(base | changes)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def halves(n=80):
    """Two classes, told apart by which half of the image is bright."""
    labels = torch.arange(n) % 2
    images = 0.4 * torch.rand(n, 1, 4, 4, generator=generator())
    images[labels == 0, :, :, :2] += 0.5
    images[labels == 1, :, :, 2:] += 0.5
    return Dataset("halves", images, labels, tuple(range(n)), 2)


def linear(weights, dtype=torch.float32):
    """A network of two classes with logits (0, w . x)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weights), 2, dtype=dtype))
    rows = torch.tensor([[0.0] * len(weights), weights], dtype=dtype)
    network.load_state_dict({"1.weight": rows, "1.bias": torch.zeros(2, dtype=dtype)})
    return network


def small(seed=0):
    def build():
        convolution = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
        return nn.Sequential(*convolution, nn.Flatten(), nn.Dropout(0.2), nn.Linear(16, 2))

    return seeded_build(build, seed)


def ignore(event):
    pass


def labels_objective(labels):
    return partial(labelled, labels)


def batch_loss(network, images, labels, setting):
    """The loss of one batch of all images, after its attack."""
    data = Dataset("batch", images, labels, tuple(range(len(labels))), 2)
    current = open_course(network, data, LINF, setting, Partners(), generator=generator())
    return total(current.terms(torch.arange(len(labels)), epoch=1))


# Recipes


@pytest.mark.parametrize("name", plugins.files("training/recipes", ".toml"))
def test_every_recipe_of_the_package_loads(name):
    assert load_recipe(name).method in plugins.components("training/methods")
    assert load_recipe(name).opened().options.teachers() == ()


def test_the_trades_recipe_attacks_as_published():
    published = load_recipe("digits-trades")
    assert (published.random_start, published.attack_mode) == ("gaussian", "eval")
    assert Recipe.model_fields["beta"].default == 6.0


def test_overrides_are_toml_values_and_words_need_no_quotes():
    changed = load_recipe(
        "digits-plain",
        {
            "epochs": "7",
            "learning_rate": "5e-2",
            "milestones": "[3, 5]",
            "schedule": "milestones",
            "nesterov": "true",
        },
    )
    assert (changed.epochs, changed.learning_rate, changed.milestones) == (7, 0.05, (3, 5))
    assert (changed.schedule, changed.nesterov) == ("milestones", True)


def test_a_hyphenated_word_needs_no_quotes():
    assert load_recipe("digits-plain", {"method": "pgd-at"}).method == "pgd-at"
    assert load_recipe("digits-plain", {"method": '"trades"'}).method == "trades"


def test_a_recipe_is_read_from_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'method = "plain"\nepochs = 2\nbatch_size = 8\nlearning_rate = 0.1\nvalidation = 10\n'
    )
    assert load_recipe(str(path)).epochs == 2


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits-plian", {}, "unknown recipe 'digits-plian': did you mean 'digits-plain'?"),
        ("nowhere.toml", {}, "cannot read recipe 'nowhere.toml': No such file"),
        ("digits-plain", {"epoch": "3"}, "unknown recipe key 'epoch': did you mean 'epochs'?"),
        (
            "digits-plain",
            {"method": "pgd-ta"},
            "unknown training method 'pgd-ta': did you mean 'pgd-at'?",
        ),
        (
            "digits-plain",
            {"epochs": "-1"},
            "recipe 'digits-plain': epochs: expected greater than or equal to 0, got -1",
        ),
        ("digits-plain", {"epochs": '"3"'}, "epochs: expected a valid integer, got '3'"),
        ("digits-plain", {"nesterov": "1"}, "nesterov: expected a valid boolean, got 1"),
        (
            "digits-plain",
            {"learning_rate": "nan"},
            "learning_rate: expected a finite number, got nan",
        ),
        ("digits-plain", {"schedule": "linear"}, "schedule: expected 'constant', 'cosine'"),
        (
            "digits-plain",
            {"milestones": "[1.5]"},
            "milestones.0: expected a valid integer, got 1.5",
        ),
        ("digits-plain", {"epochs": "3 4"}, "recipe key 'epochs': expected a TOML value"),
        ("digits-plain", {"epochs": "3\nseed = 4"}, "recipe key 'epochs': expected a TOML value"),
    ],
)
def test_an_impossible_recipe_is_refused_in_one_line(name, overrides, message):
    with pytest.raises(UsageError) as caught:
        load_recipe(name, overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = ", "is not TOML"),
        ('method = "plain"', "epochs: expected a value, got none"),
    ],
)
def test_a_broken_recipe_file_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_recipe(str(path))


def test_a_recipe_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        recipe().epochs = 5


# Learning rates and augmentation


def test_a_cosine_falls_from_the_full_rate_to_nearly_none():
    rates = [learning_rate(recipe(epochs=10, schedule="cosine"), step, 100) for step in range(1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == pytest.approx(0.1, rel=1e-3)
    assert 0 < rates[-1] < 1e-5


def test_one_cycle_peaks_after_three_tenths():
    rates = [
        learning_rate(recipe(epochs=10, schedule="onecycle"), step, 100) for step in range(1000)
    ]
    assert rates.index(max(rates)) in {299, 300}
    assert max(rates) == pytest.approx(0.1, rel=0.01)
    assert 0 < rates[0] < 0.001
    assert 0 < rates[-1] < 0.001


def test_milestones_multiply_the_rate_after_their_epochs():
    steps = recipe(epochs=4, schedule="milestones", milestones=[2, 3], decay=0.5)
    assert [learning_rate(steps, step, 2) for step in range(8)] == [
        0.1,
        0.1,
        0.1,
        0.1,
        0.05,
        0.05,
        0.025,
        0.025,
    ]


def test_a_constant_rate_stays():
    assert {learning_rate(recipe(schedule="constant"), step, 2) for step in range(6)} == {0.1}


def test_a_shift_moves_each_image_by_at_most_the_padding():
    image = torch.zeros(1, 2, 5, 5)
    image[:, :, 2, 2] = 1
    shifted = augment(
        image.expand(400, -1, -1, -1), recipe(augmentation="shift", padding=1), generator()
    )
    places = shifted[:, 0].flatten(1).argmax(1)
    assert torch.equal(shifted.sum((2, 3)), torch.ones(400, 2))
    assert set(places.tolist()) == {6, 7, 8, 11, 12, 13, 16, 17, 18}
    assert torch.equal(shifted[:, 0], shifted[:, 1])


def test_flip_crop_also_mirrors_about_half_of_the_images():
    image = torch.zeros(1, 1, 3, 9)
    image[..., 1, :3] = 1
    changed = augment(
        image.expand(400, -1, -1, -1), recipe(augmentation="flip_crop", padding=1), generator()
    )
    mirrored = changed[..., 6:].sum((1, 2, 3)) > changed[..., :3].sum((1, 2, 3))
    assert 150 < int(mirrored.sum()) < 250


def test_no_augmentation_changes_nothing():
    images = halves().images
    assert torch.equal(augment(images, recipe(augmentation="none"), generator()), images)


# The inner maximisation


@pytest.mark.parametrize(
    ("threat", "dual"), [(LINF, lambda w: w.abs().sum()), (L2, lambda w: w.norm())]
)
def test_pgd_finds_the_exact_optimum_of_a_linear_network(threat, dual):
    """The logit of a linear network can fall by eps times the dual norm of its weights, and no
    further."""
    weights = [1.0, -2.0, 0.5, 3.0]
    network, images = linear(weights), torch.full((3, 1, 2, 2), 0.5)
    labels = torch.ones(3, dtype=torch.int64)
    points = pgd(
        network,
        images,
        labels_objective(labels),
        threat,
        steps=20,
        step_size=0.25,
        start="uniform",
        generator=generator(),
    )
    fall = (network(images) - network(points))[:, 1]
    expected = threat.eps * float(dual(torch.tensor(weights)))
    assert fall.tolist() == pytest.approx([expected] * 3, rel=1e-3)


@pytest.mark.parametrize("threat", [LINF, L2, Threat.parse("linf:1"), Threat.parse("l2:5")])
@pytest.mark.parametrize("start", ["none", "uniform", "gaussian"])
def test_pgd_stays_inside_ball_and_box(threat, start):
    data, network = halves(), small().eval()
    objective = labels_objective(data.labels)
    points = pgd(
        network,
        data.images,
        objective,
        threat,
        steps=5,
        step_size=0.7,
        start=start,
        generator=generator(),
    )
    assert inside(points, data.images, threat.eps, threat.norm).all()
    assert not points.requires_grad
    assert (
        objective(points, network(points)).mean() > objective(points, network(data.images)).mean()
    )


def test_pgd_raises_a_divergence_too():
    data, network = halves(), small().eval()
    clean = network(data.images).detach()
    points = pgd(
        network,
        data.images,
        partial(away_from, clean),
        LINF,
        steps=5,
        step_size=0.25,
        start="gaussian",
        generator=generator(),
    )
    noise = random_start(data.images, LINF.eps, LINF.norm, generator())
    assert (
        kl_divergence(clean, network(points)).mean()
        > 5 * kl_divergence(clean, network(noise)).mean()
    )


def test_an_attack_leaves_images_gradients_and_modes_as_they_were():
    data, network = halves(), small().train()
    network[1].eval()
    network[0].weight.grad = torch.full_like(network[0].weight, 7.0)
    before = data.images.clone()
    attack(
        CachedNetwork(network),
        data.images,
        labels_objective(data.labels),
        threat=LINF,
        recipe=recipe(),
        generator=generator(),
    )
    assert torch.equal(data.images, before)
    assert network[0].weight.grad.unique().tolist() == [7.0]
    assert all(parameter.grad is None for parameter in network[5].parameters())
    assert [network.training, network[0].training, network[1].training] == [True, True, False]


@pytest.mark.parametrize(("attack_mode", "updates"), [("eval", 0), ("train", 10)])
def test_the_attack_mode_decides_whether_batch_statistics_move(attack_mode, updates):
    data, network = halves(), small().train()
    attack(
        CachedNetwork(network),
        data.images,
        labels_objective(data.labels),
        threat=LINF,
        recipe=recipe(attack_mode=attack_mode),
        generator=generator(),
    )
    assert int(network[1].num_batches_tracked) == updates


def test_modes_return_after_an_error():
    network = small().train()
    with pytest.raises(ZeroDivisionError), mode(network, training=False):
        raise ZeroDivisionError
    assert network[1].training


# Methods


def test_the_plain_loss_is_the_mean_cross_entropy():
    data, network = halves(), linear([0.3] * 16)
    value = batch_loss(network, data.images, data.labels, recipe())
    torch.testing.assert_close(value, functional.cross_entropy(network(data.images), data.labels))


def test_pgd_training_minimises_the_worst_case_of_a_linear_network():
    weights = torch.linspace(-1, 1, 16).tolist()
    network, images = linear(weights), torch.full((2, 1, 4, 4), 0.5)
    labels = torch.tensor([0, 1])
    value = batch_loss(network, images, labels, recipe(method="pgd-at"))
    logit, fall = sum(0.5 * w for w in weights), 0.1 * sum(abs(w) for w in weights)
    expected = [math.log1p(math.exp(logit + fall)), math.log1p(math.exp(-(logit - fall)))]
    assert float(value.detach()) == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_the_trades_loss_and_its_gradient_are_the_published_formula():
    """Both softmax outputs carry gradient.

    The divergence is summed over classes and averaged over examples.
    """
    data = halves(12)
    images = data.images.double()
    network = seeded_build(
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)), 0
    ).double()
    setting = recipe(method="trades", beta=3.0, random_start="gaussian", attack_steps=3)
    value = batch_loss(network, images, data.labels, setting)
    target = network(images).detach()
    points = attack(
        CachedNetwork(network),
        images,
        partial(away_from, target),
        threat=LINF,
        recipe=setting,
        generator=generator(),
    )
    natural, adversarial = network(images).softmax(1), network(points).softmax(1)
    picked = natural[torch.arange(12), data.labels]
    divergence = (natural * (natural / adversarial).log()).sum(1)
    expected = -picked.log().mean() + 3.0 * divergence.sum() / 12
    assert float(divergence.detach().mean()) > 1e-4
    torch.testing.assert_close(value, expected)
    parameters = list(network.parameters())
    found, wanted = (torch.autograd.grad(loss, parameters) for loss in (value, expected))
    torch.testing.assert_close(found, wanted)


# The loop


def test_training_learns_a_separable_problem():
    outcome = train(small(), halves(), LINF, recipe(epochs=8), ignore)
    assert outcome.history[-1].loss < outcome.history[0].loss / 2
    assert outcome.validation.clean == 1.0


def test_adversarial_training_relies_on_the_pixel_that_the_attacker_cannot_flip():
    """One strong pixel is right nine times of ten.

    The weak ones together are always right but within reach.
    """
    labels = torch.arange(200) % 2
    signs = (2.0 * labels - 1)[:, None].expand(-1, 64).clone()
    signs[labels.numel() // 10 * 9 :, 0] *= -1
    images = 0.5 + signs * torch.tensor([0.3] + [0.05, -0.05] * 31 + [0.05])
    data = Dataset("odds", images.view(-1, 1, 8, 8), labels, tuple(range(200)), 2)
    accuracies = {}
    for method in ("plain", "pgd-at"):
        setting = recipe(method=method, epochs=10, attack_steps=3, step_size=1.0)
        accuracies[method] = (
            train(linear([0.0] * 64), data, LINF, setting, ignore).history[-1].validation.robust
        )
    assert accuracies["plain"] < 0.2
    assert accuracies["pgd-at"] > 0.8


@pytest.mark.parametrize("method", ["plain", "pgd-at", "trades"])
def test_the_same_seed_gives_the_same_weights(method):
    setting = recipe(method=method, augmentation="flip_crop", epochs=2, attack_steps=2)
    torch.manual_seed(1)
    first = train(small(), halves(), LINF, setting, ignore)
    torch.manual_seed(2)
    second = train(small(), halves(), LINF, setting, ignore)
    assert first.history == second.history
    assert all(
        torch.equal(first.best_state[name], second.best_state[name]) for name in first.best_state
    )


def test_another_seed_gives_other_weights():
    first, second = (train(small(), halves(), LINF, recipe(seed=seed), ignore) for seed in (0, 1))
    assert not torch.equal(first.best_state["5.weight"], second.best_state["5.weight"])


def test_neither_building_nor_training_moves_the_global_generator():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(small(), halves(), LINF, recipe(method="pgd-at", augmentation="shift"), ignore)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_seeded_build_follows_from_its_seed():
    first, again, other = (seeded_build(lambda: nn.Linear(3, 3), seed).weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class Recorder(nn.Module):
    """Remembers the brightness of every image that it sees in training mode."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.seen = set()

    def forward(self, images):
        values = images.flatten(1).mean(1)
        if self.training:
            self.seen |= {round(50 * value) for value in values.tolist()}
        return self.head(values[:, None])


def test_validation_examples_are_never_trained_on_and_all_others_are():
    images = (torch.arange(50) / 50).view(-1, 1, 1, 1).expand(-1, -1, 2, 2)
    data = Dataset("ramp", images, torch.arange(50) % 2, tuple(range(50)), 2)
    network = Recorder()
    train(network, data, LINF, recipe(validation=10, batch_size=7), ignore)
    rows, held_out = split(data.labels, 10, generator())
    assert network.seen == set(rows.tolist())
    assert len(held_out) == 10


def test_the_held_out_rows_keep_the_share_of_every_class():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    rows, held_out = split(labels, 30, generator())
    assert labels[held_out].bincount().tolist() == [21, 6, 3]
    assert sorted([*rows.tolist(), *held_out.tolist()]) == list(range(100))


def test_other_seeds_hold_out_other_rows():
    labels = torch.arange(100) % 4
    assert set(split(labels, 20, generator(0))[1].tolist()) != set(
        split(labels, 20, generator(1))[1].tolist()
    )


def test_a_validation_split_must_leave_examples_to_train_on():
    with pytest.raises(UsageError, match="validation size below the 80 training examples, got 80"):
        train(small(), halves(), LINF, recipe(validation=80), ignore)


def test_events_report_every_step_and_every_epoch():
    events = []
    outcome = train(small(), halves(), LINF, recipe(epochs=2, batch_size=25), events.append)
    assert [
        (event.epoch, event.step, event.steps) for event in events if isinstance(event, Step)
    ] == [(epoch, step, 3) for epoch in (1, 2) for step in (1, 2, 3)]
    assert tuple(event for event in events if isinstance(event, Epoch)) == outcome.history
    assert outcome.history[0].loss == pytest.approx(sum(event.loss for event in events[:3]) / 3)


def test_the_last_batch_is_never_a_single_example():
    """Batch normalisation over one value per channel would fail."""
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))
    outcome = train(network, halves(), LINF, recipe(epochs=1, batch_size=59), ignore)
    assert math.isfinite(outcome.history[0].loss)


def test_the_robust_selection_keeps_the_epoch_that_resists_best():
    setting = recipe(
        epochs=6, learning_rate=1.5, momentum=0.0, schedule="constant", selection="robust"
    )
    states = {}
    network = small()

    def keep(event):
        if isinstance(event, Epoch):
            states[event.epoch] = {
                name: value.clone() for name, value in network.state_dict().items()
            }

    outcome = train(network, halves(), Threat.parse("linf:0.25"), setting, keep)
    scores = [(epoch.validation.robust, epoch.validation.clean) for epoch in outcome.history]
    assert outcome.best_epoch == scores.index(max(scores)) + 1 < 6
    assert all(
        torch.equal(outcome.best_state[name], states[outcome.best_epoch][name])
        for name in outcome.best_state
    )


def test_the_last_selection_keeps_the_last_epoch():
    network = small()
    outcome = train(network, halves(), LINF, recipe(selection="last"), ignore)
    assert outcome.best_epoch == 3
    assert all(
        torch.equal(outcome.best_state[name], value) for name, value in network.state_dict().items()
    )


def test_evaluation_counts_a_linear_network_exactly():
    """Of logits -0.3, -0.05, 0.05 and 0.3, the middle two fall within reach of 0.1 times the norm
    of 1."""
    images = torch.tensor([0.2, 0.45, 0.55, 0.8]).view(4, 1, 1, 1)
    network = linear([1.0])
    with torch.no_grad():
        network[1].bias[1] = -0.5
    data = Dataset("four", images, torch.tensor([0, 0, 1, 0]), (0, 1, 2, 3), 2)
    assert evaluate(network, data, LINF, recipe()) == (0.75, 0.25)


def test_a_clipped_gradient_bounds_the_step():
    network, data = small(), halves()
    before = nn.utils.parameters_to_vector(network.parameters()).clone()
    setting = recipe(
        epochs=1,
        batch_size=60,
        learning_rate=1.0,
        momentum=0.0,
        schedule="constant",
        gradient_clip=1e-3,
    )
    train(network, data, LINF, setting, ignore)
    moved = nn.utils.parameters_to_vector(network.parameters()) - before
    assert float(moved.norm().detach()) == pytest.approx(1e-3, rel=0.01)


def test_a_network_without_anything_to_optimise_is_refused():
    frozen = small().requires_grad_(requires_grad=False)
    with pytest.raises(
        UsageError, match="Sequential has nothing to optimise: expected a recipe with epochs = 0"
    ):
        train(frozen, halves(), LINF, recipe(), ignore)


def test_what_is_frozen_stays():
    network, data = small(), halves()
    network[0].requires_grad_(requires_grad=False)
    before, head = network[0].weight.clone(), network[5].weight.clone()
    train(network, data, LINF, recipe(weight_decay=0.1), ignore)
    assert torch.equal(network[0].weight, before)
    assert not torch.equal(network[5].weight, head)


def held_out_rows():
    return split(halves().labels, 20, generator())[1]


@pytest.mark.parametrize("method", ["plain", "pgd-at"])
def test_without_epochs_nothing_is_optimised(method):
    network, events = small(), []
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outcome = train(network, halves(), LINF, recipe(method=method, epochs=0), events.append)
    assert (outcome.best_epoch, outcome.history, events) == (0, (), [])
    assert all(torch.equal(outcome.best_state[name], before[name]) for name in before)
    assert outcome.validation == evaluate(network, halves().take(held_out_rows()), LINF, recipe())


class Attentive(nn.Module):
    """Remembers what it was fitted to, and in which mode."""

    def __init__(self):
        super().__init__()
        self.head, self.heard = nn.Linear(16, 2), []

    def forward(self, images):
        return self.head(images.flatten(1))

    def fit(self, *data):
        self.heard.append([value.clone() for value in data])
        with torch.no_grad():
            self.head.weight.fill_(torch.rand(()))


def test_a_defence_fits_itself_once_to_the_rows_of_the_split():
    network, data = Attentive(), halves()
    train(network, data, LINF, recipe(epochs=2), ignore)
    rows, held_out = split(data.labels, 20, generator())
    (heard,) = network.heard
    expected = [data.images[rows], data.labels[rows], data.images[held_out], data.labels[held_out]]
    assert all(torch.equal(*pair) for pair in zip(heard, expected, strict=True))


def test_fitting_draws_by_the_seed_alone():
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(
            train(Attentive(), halves(), LINF, recipe(epochs=0), ignore).best_state["head.weight"]
        )
    assert torch.equal(*states)


class Coin(nn.Module):
    """Answers by the key alone: class 1 for ids below a bound."""

    def __init__(self, bound):
        super().__init__()
        self.bound, self.keys = bound, []
        self.unused = nn.Parameter(torch.zeros(1))

    def draw(self, images, key):
        self.keys.append(key)
        return nn.functional.one_hot((key.ids < self.bound).long(), 2).float()


def test_a_randomized_defence_is_asked_once_for_each_image_and_not_attacked():
    labels = torch.tensor([1] * 6 + [0] * 4)
    data = Dataset("ten", torch.rand(10, 1, 2, 2), labels, tuple(range(100, 110)), 2)
    coin = Coin(103)
    found = evaluate(coin, data, LINF, recipe(batch_size=4, seed=5))
    assert found == (0.7, None)
    assert [key.ids.tolist() for key in coin.keys] == [
        [100, 101, 102, 103],
        [104, 105, 106],
        [107, 108, 109],
    ]
    assert {(key.seed, key.stream) for key in coin.keys} == {(5, "validation")}
    assert not any(key.draw.any() for key in coin.keys)


def test_adam_trains_too():
    outcome = train(
        small(), halves(), LINF, recipe(optimiser="adam", learning_rate=0.01, epochs=8), ignore
    )
    assert outcome.validation.clean == 1.0


def test_nesterov_without_momentum_is_plain_descent():
    first, second = (
        train(
            small(), halves(), LINF, recipe(epochs=1, momentum=0.0, nesterov=nesterov), ignore
        ).best_state
        for nesterov in (True, False)
    )
    assert torch.equal(first["5.weight"], second["5.weight"])


def test_a_loss_that_is_no_longer_finite_stops_the_training():
    setting = recipe(learning_rate=1e38, momentum=0.0)
    with pytest.raises(ModelError, match=r"the loss became .* in epoch 1: lower learning_rate"):
        train(small(), halves(), LINF, setting, ignore)


def test_l1_is_refused_before_any_work():
    with pytest.raises(UsageError, match="expected linf or l2"):
        train(small(), halves(), Threat.parse("l1:3"), recipe(), pytest.fail)


def test_an_interrupt_passes_through():
    def interrupt(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), halves(), LINF, recipe(), interrupt)
