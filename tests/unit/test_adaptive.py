"""Adaptive attacks, stand-in models, fast runs and curves, on defences whose weakness is known."""

import csv
from dataclasses import replace

import pytest
import torch
from oracles import Changed, Quantised, linear, nearest_mean, request
from torch import nn

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.rundir import EXAMPLES
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.datasets import open_dataset
from robustbench_kd.defences.ensemble import RandomizedEnsemble
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.native.subsampling import missed
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.engine.run.stages import plan_stages
from robustbench_kd.tensors.defence import Surface
from robustbench_kd.tensors.oracle import Oracle

BUDGETS = {
    "apgd-ce": {"steps": 20},
    "apgd-margin": {"steps": 50},
    "apgd-t": {"targets": 2, "steps": 10},
    "fab-t": {"targets": 2, "steps": 5},
    "square": {"queries": 500},
}
RADIUS = "linf:0.2"


@pytest.fixture(scope="module")
def digits():
    return open_dataset("digits", limit=30)


@pytest.fixture(scope="module")
def net():
    return nearest_mean()


def run(
    model,
    data,
    folder,
    suite="apgd-ce",
    *,
    threat=RADIUS,
    attacks=("apgd-margin", "apgd-ce"),
    **options,
):
    """Evaluates with short budgets; `attacks` are those of the adaptive part."""
    chosen = parse_suite(suite)
    short = {"budgets": BUDGETS, "norms": {}, "surfaces": {}}
    adaptive = chosen.adaptive and replace(chosen.adaptive, attacks=attacks, **short)
    asked = replace(
        request(model, data, threat=threat),
        suite=replace(chosen, adaptive=adaptive, **short),
    )
    return evaluate(replace(asked, **options), folder)


def robust(*arguments, **options):
    return run(*arguments, **options).record.robust.value


class Hidden(nn.Module):
    """A network whose gradient is hidden; it declares the network inside where it is honest."""

    def __init__(self, inner, *, honest):
        super().__init__()
        self.inner, self.honest = inner, honest

    def forward(self, images):
        return self.inner(images).detach() + 0 * images.sum()

    def surfaces(self):
        inner = self.inner
        return (
            [Surface(name="inside", answer=lambda images, _key: inner(images))]
            if self.honest
            else []
        )


@pytest.fixture(scope="module")
def truth(net, digits, tmp_path_factory):
    """The accuracy of the net inside, which every defence around it must fall to."""
    return robust(net, digits, tmp_path_factory.mktemp("truth"), "apgd-ce+adaptive")


def test_a_declared_surface_opens_a_defence_without_gradients(net, digits, truth, tmp_path):
    defence = Hidden(net, honest=True).eval()
    record = run(defence, digits, tmp_path, "apgd-ce+adaptive").record
    assert record.standard.value > truth + 0.3
    assert record.robust.value == pytest.approx(truth, abs=0.03)
    assert record.stages[-1].accuracy == record.robust


def test_a_surrogate_opens_a_defence_that_declares_nothing(net, digits, truth, tmp_path):
    extra = Extra(surrogates={"net": net})
    found = robust(
        Hidden(net, honest=False).eval(), digits, tmp_path, "apgd-ce+adaptive", extra=extra
    )
    assert found == pytest.approx(truth, abs=0.03)


def test_queries_alone_find_what_gradients_miss(net, digits, truth, tmp_path):
    """A gradient estimated from queries reaches a net that shows none, without a surface or a
    surrogate."""
    defence = Hidden(net, honest=False).eval()
    standard = robust(defence, digits, tmp_path)
    found = robust(defence, digits, tmp_path, "adaptive", attacks=("apgd-margin", "square"))
    assert standard > truth + 0.3
    assert found == pytest.approx(truth, abs=0.07)


def test_the_margin_sees_through_saturated_logits(net, digits, truth, tmp_path):
    saturated = Changed(net, lambda logits: logits * 1e6).eval()
    assert robust(saturated, digits, tmp_path) > truth + 0.3
    assert robust(saturated, digits, tmp_path, "adaptive") == pytest.approx(truth, abs=0.03)


def test_one_class_only_falls_to_the_logits_inside_or_to_a_surrogate(net, digits, truth, tmp_path):
    """Logits that say nothing but the class: every query is alike until it succeeds."""

    def hardened(logits):
        return nn.functional.one_hot(logits.argmax(dim=1), 10).float() + 0 * logits

    defence = Changed(net, hardened).eval()
    assert robust(defence, digits, tmp_path) > truth + 0.3
    found = robust(defence, digits, tmp_path, "adaptive", attacks=("apgd-margin",))
    assert found == pytest.approx(truth, abs=0.03)
    extra = Extra(surrogates={"net": net})
    assert robust(defence, digits, tmp_path, "adaptive", extra=extra) == pytest.approx(
        truth, abs=0.03
    )


def test_an_attack_goes_on_from_the_images_of_a_surrogate(net, digits, tmp_path):
    """The surrogate is another net, so that its images only come near.

    The stage that follows starts from them.
    """
    other = linear(classes=10)
    stages = plan_stages(
        parse_suite("adaptive"),
        Oracle(net, torch.device("cpu")),
        request(net, digits).threat,
        Extra({"other": other}),
    )
    names = [stage.name for stage in stages]
    assert (
        names.index("from-surrogate-other:apgd-margin") == names.index("surrogate-other:apgd-t") + 1
    )
    record = run(net, digits, tmp_path, "adaptive", extra=Extra(surrogates={"other": other})).record
    assert {stage.stage for stage in record.stages} >= {
        "surrogate-other:apgd-margin",
        "from-surrogate-other:apgd-margin",
    }


class Darken:
    """A person's own attack: makes images darker by the radius."""

    def __init__(self, model, *, norm, eps, seed):
        self.model, self.eps = model, eps

    def __call__(self, images, labels):
        self.model(images)
        return (images - self.eps).clamp(0, 1)


def test_an_attack_of_ones_own_is_judged_like_any_other(net, digits, tmp_path):
    outcome = run(
        net, digits, tmp_path, "adaptive", attacks=(), extra=Extra(attacks={"darken": Darken})
    )
    with torch.no_grad():
        kept = net((digits.images - 0.2).clamp(0, 1)).argmax(dim=1) == digits.labels
        clean = net(digits.images).argmax(dim=1) == digits.labels
    assert outcome.record.robust.value == pytest.approx((kept & clean).float().mean().item())
    (stage,) = [stage for stage in outcome.record.stages if stage.stage == "darken"]
    assert stage.forwards >= len(digits)


class MemberByMember:
    """A person's own attack.

    Differentiates the first member of an ensemble twice, and asks the second one once.
    """

    def __init__(self, model, **_):
        self.first, self.second = model.members()

    def __call__(self, images, labels):
        points = images.clone().requires_grad_()
        for _ in range(2):
            torch.autograd.grad(self.first(points).sum(), points)
        self.second(images)
        return images


def test_passes_of_an_attack_on_members_are_counted(net, digits, tmp_path):
    pair = RandomizedEnsemble([net, linear(classes=10)], torch.tensor([0.5, 0.5]), per_batch=False)
    outcome = run(
        pair,
        digits,
        tmp_path,
        "adaptive",
        attacks=(),
        extra=Extra(attacks={"mine": MemberByMember}),
    )
    (stage,) = [stage for stage in outcome.record.stages if stage.stage == "mine"]
    standing = stage.backwards // 2
    assert standing > 0
    assert stage.forwards == 3 * standing + 2 * standing  # the judge asks both members once more


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        (
            lambda _model, **_: lambda images, _labels: images[:1],
            r"attack 'mine': expected images of shape",
        ),
        (lambda _model, **_: lambda _images, _labels: None, "got NoneType"),
        (
            lambda _model, **_: lambda _images, _labels: 1 / 0,
            "attack 'mine' failed: division by zero",
        ),
    ],
)
def test_an_attack_that_fails_is_named_in_one_line(net, digits, tmp_path, attack, said):
    with pytest.raises(ModelError, match=said):
        run(net, digits, tmp_path, "adaptive", attacks=(), extra=Extra(attacks={"mine": attack}))


def test_candidates_outside_the_ball_never_count(net, digits, tmp_path):
    attack = Extra(
        attacks={"white": lambda _model, **_: lambda images, _labels: torch.ones_like(images)}
    )
    record = run(net, digits, tmp_path, "adaptive", attacks=(), extra=attack).record
    assert record.robust == record.clean


def test_a_fast_run_spends_less_and_bounds_what_it_could_miss(net, digits, tmp_path):
    exact = run(net, digits, tmp_path, "standard", threat="linf:0.02").record
    fast = run(net, digits, tmp_path, "fast", threat="linf:0.02").record
    assert fast.identity.mode == "fast"
    assert fast.forwards + fast.backwards < 0.6 * (exact.forwards + exact.backwards)
    assert exact.robust.value >= fast.robust.value - fast.missed
    assert fast.missed > 0
    assert exact.missed is None
    assert fast.protocol_hash != exact.protocol_hash


def test_a_fast_run_goes_on_in_full_where_square_finds_what_gradients_miss(net, digits, tmp_path):
    record = run(Quantised(net, 16).eval(), digits, tmp_path, "fast").record
    alive = {stage.stage: stage.accuracy.value for stage in record.stages}
    assert alive["square"] < alive["fab-t"] - 0.2
    assert [
        finding.message.partition(" ")[0]
        for finding in record.findings
        if finding.check == "sample-fell"
    ] == ["square"]


@pytest.mark.parametrize(
    ("n", "sample", "most"), [(110, 17, 16), (0, 0, 0), (10, 10, 0), (10, 1, 9), (5443, 814, 18)]
)
def test_the_bound_is_the_largest_number_that_a_lucky_sample_could_hide(n, sample, most):
    assert missed(n, sample) == most


def test_a_curve_attacks_only_what_the_smaller_radius_left(net, digits, tmp_path):
    small = run(net, digits, tmp_path, threat="linf:0.1")
    large = run(net, digits, tmp_path, threat="linf:0.2", smaller=small.folder)
    alone = run(net, digits, tmp_path, threat="linf:0.2")
    assert large.record.robust == alone.record.robust
    assert large.record.run_id != alone.record.run_id
    assert large.record.forwards < alone.record.forwards
    assert large.record.stages[1].stage == "smaller-radius"
    assert large.record.stages[1].accuracy == small.record.robust
    with (large.folder / EXAMPLES).open() as file:
        distances = [
            float(row["distance"])
            for row in csv.DictReader(file)
            if row["broken_by"] == "smaller-radius"
        ]
    assert distances
    assert max(distances) <= 0.1 + 1e-6
