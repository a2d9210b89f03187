"""What every distillation method promises, and how methods and additions are opened."""

import inspect
import math
import tomllib
from dataclasses import replace

import pytest
import torch
from torch import nn

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.threat import Norm
from robustbench_kd.distill import open_method
from robustbench_kd.models import vit_tiny
from robustbench_kd.tensors.distillation import (
    BatchContext,
    CachedNetwork,
    FrozenTeacher,
    Progress,
    Setup,
    evaluating,
    total,
)
from robustbench_kd.tensors.geometry import inside, project
from robustbench_kd.training.recipe import Recipe, load_recipe

COMPONENTS = plugins.components("distill")
ADDITIONS = {
    name for name, one in COMPONENTS.items() if hasattr(plugins.module("distill", one.stem), "term")
}
METHODS = sorted(set(COMPONENTS) - ADDITIONS)
CLEAN = {"kd", "hint", "crd", "inductive_bias"}
ATTACKING = sorted(set(METHODS) - CLEAN)
FEW = {"crd": {"negatives": 8, "dimensions": 4}, "crdnd_reconstructed": {"dimensions": 4}}
EPS = 0.1


def network(seed=0, scale=1.0):
    """A small network with batch normalisation, of three classes."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)]
    built = nn.Sequential(*layers)
    nn.init.normal_(built[-1].weight, std=scale)
    return built


def student(name, scale=1.0):
    if name != "inductive_bias":
        return network(1, scale)
    torch.manual_seed(1)
    built = vit_tiny.build(
        classes=3, channels=1, size=4, patch=2, width=6, depth=1, distillation_tokens=2
    )
    for layer in built.heads.layers:
        nn.init.normal_(layer.weight, std=scale)
    return built


class Scene:
    """One batch of six images with a method, its teachers, and a student in training mode."""

    def __init__(self, name, *, scale=1.0, epoch=70, additions=None):
        self.method = open_method(name, FEW.get(name, {}), additions)
        self.student = student(name, scale)
        self.teachers = [
            network(seed, scale) for seed in range(2, 2 + len(self.method.options.teachers()))
        ]
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(6, 1, 4, 4, generator=generator)
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        frozen = tuple(FrozenTeacher(teacher) for teacher in self.teachers)
        setup = Setup(
            student=self.student,
            teachers=tuple(self.teachers),
            images=images[:2],
            labels=labels.repeat(2),
            fresh=lambda: student(name, scale),
        )
        self.helper = self.method.prepare(setup)
        self.context = BatchContext(
            student=CachedNetwork(self.student),
            teachers=frozen,
            images=images,
            labels=labels,
            rows=torch.arange(6),
            progress=Progress(epoch, 100),
            generator=generator,
            helper=self.helper,
        )
        self.student.train()

    def attack(self, steps=3):
        """Ascends the method's objective; returns its mean before and after."""
        objective, images = self.method.inner(self.context), self.context.images
        start = (images + 0.01 * torch.randn(images.shape, generator=self.context.generator)).clamp(
            0, 1
        )
        points, values = project(start, images, EPS, Norm.LINF), []
        self.student.eval()
        for _ in range(steps):
            points.requires_grad_()
            value = objective(points, self.student(points))
            assert value.shape == (6,)
            (gradient,) = torch.autograd.grad(value.sum(), points)
            values.append(value.detach().mean())
            points = project(points.detach() + EPS / 2 * gradient.sign(), images, EPS, Norm.LINF)
        self.student.train()
        self.context = replace(self.context, adversarial=points)
        return values[0], objective(points, self.student.eval()(points)).mean()

    def terms(self):
        if self.method.name in ATTACKING:
            self.attack()
        self.student.train()
        return self.method.loss(self.context)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same_state(module, before):
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# The contract


def test_the_methods_of_the_reference_are_all_there():
    expected = "kd hint crd ard iad iad2 rslad adaad adaiad mtard akd akd2 saad saad-c peeraid"
    assert set(METHODS) == {*expected.split(), "crdnd_reconstructed", "inductive_bias"}
    assert {"igdm"} == ADDITIONS


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_explains_itself(self, name):
        module = plugins.module("distill", COMPONENTS[name].stem)
        assert COMPONENTS[name].summary
        assert all(inspect.getdoc(part) for part in (module.Options, module.loss))
        assert list(inspect.signature(module.loss).parameters) == ["context", "options"]

    def test_gives_named_finite_scalars(self, name):
        terms = Scene(name).terms()
        assert all(value.shape == () and value.isfinite() for value in terms.values())
        assert total(terms).requires_grad

    def test_teaches_the_student_and_leaves_teachers_and_images_alone(self, name):
        scene = Scene(name)
        befores = [state(teacher) for teacher in scene.teachers]
        total(scene.terms()).backward()
        reached = [p.grad is not None and bool(p.grad.any()) for p in scene.student.parameters()]
        assert sum(reached) >= len(reached) - 1, (
            "a bias before a normalisation may be without effect"
        )
        for teacher, before in zip(scene.teachers, befores, strict=True):
            assert_same_state(teacher, before)
            assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
            assert not any(part.training for part in teacher.modules())
        assert scene.context.images.grad is None
        assert not scene.context.images.requires_grad

    def test_gives_gradients_to_all_that_it_lets_learn(self, name):
        scene = Scene(name)
        total(scene.terms()).backward()
        biases = {key for key, part in scene.helper.named_parameters() if part.grad is None}
        assert biases == set()

    @pytest.mark.parametrize("scale", [1e3, 1e8])
    def test_stays_finite_at_extreme_logits(self, name, scale):
        scene = Scene(name, scale=scale)
        terms = scene.terms()
        total(terms).backward()
        assert total(terms).isfinite()
        assert all(
            p.grad.isfinite().all() for p in scene.student.parameters() if p.grad is not None
        )

    def test_leaves_modes_as_they_were(self, name):
        scene = Scene(name)
        scene.helper.train()
        scene.terms()
        assert all(part.training for part in scene.student.modules())
        assert all(part.training for part in scene.helper.modules())

    def test_names_the_nearest_option_for_one_that_does_not_exist(self, name):
        with pytest.raises(UsageError, match=rf"unknown option of {name} 'no_such_thing'"):
            open_method(name, {"no_such_thing": 1})


@pytest.mark.parametrize("name", ATTACKING)
class TestEveryAttack:
    def test_raises_its_objective_inside_ball_and_box(self, name):
        scene = Scene(name)
        before, after = scene.attack(steps=4)
        assert after > before
        adversarial = scene.context.adversarial
        assert inside(adversarial, scene.context.images, EPS, Norm.LINF).all()
        assert not adversarial.requires_grad

    def test_leaves_no_gradient_behind(self, name):
        scene = Scene(name)
        scene.attack()
        everyone = [scene.student, scene.helper, *scene.teachers]
        assert all(p.grad is None for network in everyone for p in network.parameters())

    def test_takes_an_addition(self, name):
        if not Scene(name).method.options.teachers():
            return
        terms = Scene(name, additions={"igdm": {"alpha": 2.0}}).terms()
        assert terms["igdm"] > 0


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_a_method_without_an_attack_makes_no_adversarial_images(name):
    assert Scene(name).method.inner(Scene(name).context) is None


# Asking once


class Counting(nn.Module):
    """Counts its passes."""

    def __init__(self):
        super().__init__()
        self.inner, self.passes = network(), 0

    def forward(self, images):
        self.passes += 1
        return self.inner(images)


def test_student_and_teacher_are_asked_once_about_each_tensor():
    pupil, teacher = Counting(), Counting()
    images = torch.rand(4, 1, 4, 4)
    method = open_method("rslad", {}, {"igdm": {}})
    context = BatchContext(
        student=CachedNetwork(pupil),
        teachers=(FrozenTeacher(teacher),),
        images=images,
        labels=torch.tensor([0, 1, 2, 0]),
        rows=torch.arange(4),
        progress=Progress(1, 2),
        generator=torch.Generator(),
    )
    method.inner(context)
    method.loss(replace(context, adversarial=images + 0.1))
    assert (pupil.passes, teacher.passes) == (3, 3)


def test_features_and_logits_come_from_one_pass():
    counting = Counting()
    asked, images = CachedNetwork(counting), torch.rand(2, 1, 4, 4)
    features, logits = asked.features(images, ""), asked(images)
    assert counting.passes == 1
    torch.testing.assert_close(logits, counting.inner[-1](features))


def test_a_layer_is_found_by_its_path_inside_any_wrapper():
    asked, images = CachedNetwork(Counting()), torch.rand(2, 1, 4, 4)
    assert asked.features(images, "2").shape == (2, 4, 2, 2)
    torch.testing.assert_close(asked.features(images, "inner.2"), asked.features(images, "2"))


@pytest.mark.parametrize(
    ("layer", "broken", "error", "message"),
    [
        (
            "layer2",
            nn.Sequential(nn.Flatten(), nn.Linear(16, 3)),
            UsageError,
            "unknown layer 'layer2'",
        ),
        ("", nn.Flatten(), ModelError, "ends in a linear layer"),
    ],
)
def test_a_layer_that_is_not_there_is_named(layer, broken, error, message):
    with pytest.raises(error, match=message):
        CachedNetwork(broken).features(torch.rand(1, 1, 4, 4), layer)


def test_a_layer_that_takes_no_part_is_named():
    idle = nn.Sequential(nn.Flatten())
    idle.spare = nn.Linear(2, 2)
    idle.forward = lambda images: images.flatten(1)
    with pytest.raises(ModelError, match="takes no part"):
        CachedNetwork(idle).features(torch.rand(1, 1, 4, 4), "spare")


def test_evaluating_restores_every_mode():
    built = network().train()
    built[1].eval()
    with evaluating(built):
        assert not any(part.training for part in built.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in built] == [True, False, True, True, True]


# Opening


@pytest.mark.parametrize(
    ("name", "options", "additions", "message"),
    [
        ("rslda", {}, {}, "unknown distillation method 'rslda': did you mean 'rslad'?"),
        ("rslad", {"sclae": 1.0}, {}, "unknown option of rslad 'sclae': did you mean 'scale'?"),
        (
            "rslad",
            {"scale": "big"},
            {},
            "option 'scale' of rslad: expected a valid number, got 'big'",
        ),
        (
            "rslad",
            {"scale": -1.0},
            {},
            "option 'scale' of rslad: expected greater than 0, got -1.0",
        ),
        ("akd", {"weights": [0.7, 0.7]}, {}, "option 'weights' of akd: .*sum to at most 1"),
        ("igdm", {}, {}, "'igdm' is no distillation method"),
        ("rslad", {}, {"igmd": {}}, "unknown addition 'igmd': did you mean 'igdm'?"),
        ("rslad", {}, {"foo": {}}, r"unknown addition 'foo'\. Known: igdm$"),
        ("foo", {}, {}, "unknown distillation method 'foo'. Known: (?!.*igdm)"),
        ("rslad", {}, {"kd": {}}, "'kd' is no addition"),
        ("kd", {}, {"igdm": {}}, "'igdm' needs adversarial images, which 'kd' does not make"),
        ("peeraid", {}, {"igdm": {}}, "'igdm' needs a teacher, which 'peeraid' does not have"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_line(name, options, additions, message):
    with pytest.raises(UsageError, match=message) as caught:
        open_method(name, options, additions)
    assert "\n" not in str(caught.value)


def test_options_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        open_method("rslad").options.scale = 2.0


def test_a_variant_stands_for_its_options_and_can_be_overridden():
    assert open_method("saad-c").options.clean_weight == 0.2
    assert open_method("saad-c", {"clean_weight": 0.5}).options.clean_weight == 0.5
    assert open_method("iad2").options.teachers() == ("robust teacher", "standard teacher")


def test_a_missing_attack_or_teacher_is_said():
    context = Scene("kd").context
    with pytest.raises(UsageError, match="expected adversarial images, got none"):
        context.attacked  # noqa: B018  # a property that raises
    with pytest.raises(UsageError, match="expected a teacher, got none"):
        replace(context, teachers=()).teacher  # noqa: B018
    with pytest.raises(
        UsageError, match="expected the BatchNorm2d that 'prepare' makes, got a Module"
    ):
        context.prepared(nn.BatchNorm2d)


# Recipes

RECIPES = plugins.files("distill/recipes", ".toml")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_one(name):
    values = tomllib.loads(RECIPES[name].read_text(encoding="utf-8"))
    method = open_method(values["method"], values.get("options"), values.get("additions"))
    assert name.partition("-")[2] == method.name
    recipe = Recipe.model_validate(values)
    assert recipe.summary
    assert all(milestone < recipe.epochs for milestone in recipe.milestones)
    assert (recipe.averaging_start or 1) <= recipe.epochs
    assert load_recipe(name).opened().options == method.options
    if method.name in ATTACKING:
        assert "random_start" in values
    if "reconstructed" in method.name:
        assert "econstruction" in recipe.summary


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_recipe_for_digits(name):
    assert f"digits-{name}" in RECIPES


def test_published_settings_that_code_bases_share_or_not_are_in_the_recipes():
    def read(name):
        return tomllib.loads(RECIPES[name].read_text(encoding="utf-8"))

    trained = {
        "ard": "train",
        "iad": "train",
        "rslad": "eval",
        "adaad": "eval",
        "mtard": "eval",
        "peeraid": "eval",
    }
    for method, mode in trained.items():
        recipe = read(f"cifar10-{method}")
        assert recipe["attack_mode"] == mode
        assert recipe["random_start"] == ("uniform" if mode == "train" else "gaussian")
        assert recipe["weight_decay"] == (5e-4 if method == "adaad" else 2e-4)
        assert (recipe["attack_steps"], recipe["step_size"]) == (10, 0.25)
    assert math.isclose(
        read("cifar100-rslad")["options"]["scale"], 10 * read("cifar10-rslad")["options"]["scale"]
    )
