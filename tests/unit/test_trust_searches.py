"""Checks that read short attacks, on traces and on models with known answers."""

from dataclasses import replace

import pytest
import torch
from broken import Through, declared_ensemble, digits, masked
from oracles import Quantised, constant, images_for, linear, nearest_mean

from robustbench_kd.core.records import Severity
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.probing.checkup import Scope, offered, probe_of, short_attacks
from robustbench_kd.tensors.geometry import inside
from robustbench_kd.tensors.meter import Meter
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.short_attacks import Trace
from robustbench_kd.trust import (
    accuracy_not_falling,
    incomplete_optimisation,
    more_budget_helps,
    noise_beats_gradients,
    silent_success,
    single_step_beats_many,
    transfer_beats_white_box,
    unbounded_attack_fails,
)

SHAPE = (1, 8, 8)
YELLOW, RED = Severity.YELLOW, Severity.RED


def attacks(model=None, data=None, threat="linf:0.02", meter=None, n=50):
    model = model or linear()
    data = data or images_for(model, n=n, shape=SHAPE)
    oracle = Oracle(model, torch.device("cpu"), meter)
    sample = probe_of(oracle, data, Threat.parse(threat), Scope())
    return short_attacks(sample, oracle, parts=True)


def outcomes(**results):
    """Attacks that have run already, with the given results."""
    made = attacks()
    vars(made).update(results)
    return made


def trace(rows, wrong, losses=None):
    wrong = torch.tensor(wrong, dtype=torch.bool)
    losses = torch.zeros(wrong.shape) if losses is None else torch.as_tensor(losses)
    return Trace(torch.arange(50)[rows], losses, wrong)


def outcome(broken, n=50):
    """A trace of one point over `n` rows; the first `broken` rows are broken."""
    return trace(slice(None, n), [[row < broken for row in range(n)]])


def all_findings(made):
    found = []
    for check in offered("search"):
        found += check(made)
    return found


@pytest.mark.parametrize("threat", ["linf:0.05", "l2:0.5", "l1:3"])
@pytest.mark.parametrize("make", [linear, nearest_mean])
def test_a_sound_model_has_no_finding(make, threat):
    assert all_findings(attacks(make(), threat=threat, n=24)) == []


def test_a_declared_ensemble_has_no_finding():
    data = open_dataset("digits", split="test", limit=12)
    assert all_findings(attacks(declared_ensemble(), data, "linf:0.15")) == []


def test_masked_gradients_lose_to_their_backbone():
    made = attacks(masked(), open_dataset("digits", split="test", limit=16), "linf:0.15")
    (found,) = transfer_beats_white_box.search(made)
    assert found.severity is RED
    assert len(found.examples) > 5


# Short attacks


def test_attacks_on_two_linear_classes_break_exactly_what_can_be_broken():
    model = linear(classes=2)
    eps = torch.tensor(0.05)
    made = attacks(model, threat="linf:0.05")
    sample = made.sample
    weight = model.weight.detach()
    slope = weight[1 - sample.labels] - weight[sample.labels]
    images = sample.images.flatten(1)
    reach = torch.minimum(torch.where(slope > 0, 1 - images, images), eps)
    (loss, _) = sample.clean
    broken = (loss + (slope.abs() * reach).sum(dim=1) > 0).nonzero()[:, 0].tolist()
    assert 5 < len(broken) < 45
    assert sorted(made.broken.tolist()) == broken
    assert sorted([*made.survivors.tolist(), *broken]) == list(range(50))


def test_broken_rows_are_not_attacked_again():
    made = attacks()
    assert torch.equal(made.second.rows, made.first.survivors)
    assert torch.equal(made.prolonged.rows, made.second.survivors)
    assert torch.equal(made.repeated.rows, made.second.survivors)


def test_a_row_leaves_when_it_is_broken_and_stays_to_the_end_in_the_first_attack():
    made = attacks(threat="linf:0.05")
    assert made.first.losses.isfinite().all()
    wide = made.widened[1.0]
    last = wide.losses.isfinite().sum(dim=0)
    assert torch.equal(last - 1, wide.wrong.float().argmax(dim=0))


@pytest.mark.parametrize(
    ("threat", "radii"), [("linf:0.2", [0.4, 0.8, 1]), ("linf:0.3", [0.6, 1]), ("l2:1", [2, 4, 8])]
)
def test_radii_grow_to_the_whole_box(threat, radii):
    assert list(attacks(threat=threat, n=4).widened) == radii


@pytest.mark.parametrize("norm", list(Norm))
def test_random_points_lie_in_the_ball(norm):
    sample = attacks(threat=f"{norm}:0.3").sample
    for points in (
        sample.nearby("noise", 1),
        sample.corners("noise"),
        sample.ascent(1, sample.clean[1]),
    ):
        assert inside(points, sample.images, 0.3 + 1e-6, norm).all()
        assert not torch.equal(points, sample.images)


def test_random_points_depend_on_the_example_alone():
    sample = attacks().sample
    rows = torch.tensor([7, 3])
    assert torch.equal(sample.nearby("noise", 1, rows=rows), sample.nearby("noise", 1)[rows])
    assert not torch.equal(sample.nearby("noise", 1, repeat=1), sample.nearby("noise", 1))


def test_without_survivors_there_is_no_pass():
    meter = Meter()
    made = attacks(threat="linf:0.5", meter=meter)
    assert len(made.survivors) == 0
    before = meter.passes
    assert len(made.broken_by_noise) == len(made.prolonged.broken) == len(made.repeated.broken) == 0
    assert meter.passes == before


# Checks


def test_a_single_step_is_compared_with_all_others():
    """One step breaks every image at this radius, but the attacks have broken none."""
    made = attacks(threat="linf:0.5")
    assert single_step_beats_many.search(made) == []
    vars(made).update(second=outcome(0))
    (found,) = single_step_beats_many.search(made)
    assert (found.severity, found.value) == (RED, 1)


@pytest.mark.parametrize(("count", "severity"), [(1, None), (2, YELLOW), (3, RED)])
def test_noise_counts_what_gradients_left(count, severity):
    found = noise_beats_gradients.search(
        outcomes(second=outcome(0), broken_by_noise=torch.arange(count))
    )
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    assert all(finding.value == count / 50 for finding in found)


def test_noise_finds_what_rounding_hides_from_gradients():
    model = Quantised(linear(), levels=3).eval()
    made = attacks(model, threat="linf:0.2")
    (found,) = noise_beats_gradients.search(made)
    assert found.severity is RED
    assert noise_beats_gradients.search(attacks(linear(), threat="linf:0.2")) == []


@pytest.mark.parametrize(
    ("longer", "again", "severity"), [(0, 0, None), (2, 2, None), (3, 0, YELLOW), (0, 11, RED)]
)
def test_more_steps_and_restarts_are_counted_once_per_image(longer, again, severity):
    found = more_budget_helps.search(
        outcomes(second=outcome(0), prolonged=outcome(longer), repeated=outcome(again))
    )
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def rising(fraction):
    """Losses of three rows over fifty points; the last ten gain a fraction of their range."""
    start = torch.linspace(0, 1 - fraction, 41)
    end = torch.linspace(1 - fraction, 1, 11)[2:]
    return torch.cat([start, end])[:, None].expand(50, 3)


@pytest.mark.parametrize(("fraction", "found"), [(0.0, 0), (0.03, 0), (0.1, 1)])
def test_a_loss_that_still_rises_is_incomplete(fraction, found):
    path = trace(slice(0, 3), [[False] * 3] * 50, rising(fraction))
    assert len(incomplete_optimisation.search(outcomes(second=path))) == found


def test_attacks_that_succeeded_are_complete():
    path = trace(slice(0, 3), [[False] * 3] * 49 + [[True] * 3], rising(0.5))
    assert incomplete_optimisation.search(outcomes(second=path)) == []


def test_a_loss_that_falls_back_keeps_its_best():
    """Only the best loss so far counts, as for an attack that keeps its best point."""
    losses = rising(0.0).clone()
    losses[-5:] = 0
    path = trace(slice(0, 3), [[False] * 3] * 50, losses)
    assert incomplete_optimisation.search(outcomes(second=path)) == []


def test_success_is_silent_if_the_last_point_is_correct_again():
    passing = trace(
        slice(0, 4), [[False] * 4, [True, True, True, False], [True, False, False, False]]
    )
    (found,) = silent_success.search(outcomes(first=passing))
    assert found.examples == [101, 102]
    assert silent_success.search(outcomes(first=outcome(4))) == []


def test_an_attack_without_limit_fails_where_gradients_are_zero():
    model = constant()
    (found,) = unbounded_attack_fails.search(attacks(model, images_for(model, n=6, shape=SHAPE)))
    assert (found.severity, found.value) == (RED, 1)
    assert unbounded_attack_fails.search(attacks()) == []


def grown(*broken):
    """Attacks that broke these numbers of rows at the radius, twice, four times, anywhere."""
    at_radius, *wider = broken
    traces = [outcome(count) for count in wider]
    widened = dict(zip((0.04, 0.08, 1.0), traces, strict=True))
    return outcomes(first=outcome(0), second=outcome(at_radius), widened=widened)


@pytest.mark.parametrize(
    ("broken", "severity"),
    [
        ((5, 10, 20, 50), None),
        ((50, 50, 50, 50), None),
        ((5, 4, 20, 50), None),
        ((9, 5, 20, 50), YELLOW),
        ((20, 5, 30, 50), RED),
        ((0, 0, 0, 0), RED),
        ((5, 5, 5, 5), RED),
    ],
)
def test_accuracy_must_fall_with_the_radius(broken, severity):
    found = accuracy_not_falling.search(grown(*broken))
    assert [finding.severity for finding in found] == ([severity] if severity else [])


def test_transfer_is_judged_on_the_defence_itself():
    """An attack on an unrelated part breaks nothing, whatever the part answers."""
    made = attacks(
        nearest_mean(), open_dataset("digits", split="test", limit=24), threat="linf:0.05"
    )
    useless = replace(made, parts={"useless": lambda points, _rows: Through(linear())(points)})
    assert transfer_beats_white_box.search(made) == []
    assert transfer_beats_white_box.search(useless) == []
    assert set(useless.transferred) == {"useless"}


def test_the_part_that_breaks_most_is_named():
    made = replace(attacks(), parts={"a": None, "b": None})
    vars(made).update(second=outcome(0), transferred={"a": torch.arange(2), "b": torch.arange(6)})
    (found,) = transfer_beats_white_box.search(made)
    assert "'b'" in found.message
    assert found.severity is RED


def test_parts_are_the_declared_surfaces():
    made = attacks(declared_ensemble(), open_dataset("digits", split="test", limit=4))
    assert list(made.parts) == ["member-0", "member-1", "member-2", "expected"]
    assert attacks(digits("plain"), open_dataset("digits", split="test", limit=4)).parts == {}
