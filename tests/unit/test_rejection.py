"""Defences that may reject, on images of few pixels where every number is known."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import Failing, Linear, images_for, linear, request
from sklearn.metrics import roc_auc_score
from torch import nn

from robustbench_kd.cli import _runs
from robustbench_kd.core.records import RunRecord
from robustbench_kd.core.rundir import LEDGER, RECORD
from robustbench_kd.defences.detector import assemble
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.judging.rejection import auc, caught
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.defence import Surface
from robustbench_kd.tensors.losses import margin

scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)


def bright():
    """Class 1 where the first pixel is above one half, with a margin of twice the difference."""
    return Linear(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0.0, -1.0])).eval()


class Wary(nn.Module):
    """Rejects where `excess(images)`, the height of its last logit above the others, is more than
    0."""

    abstains = True

    def __init__(self, excess, network=None):
        super().__init__()
        self.network, self.excess = network or bright(), excess

    def forward(self, images):
        logits = self.network(images)
        return torch.cat([logits, (logits.amax(dim=1) + self.excess(images))[:, None]], dim=1)


class Detached(Wary):
    """Has no gradient of its own, but declares the one it is made of."""

    def forward(self, images):
        return super().forward(images).detach()

    def surfaces(self):
        def whole(images, _key):
            return Wary.forward(self, images)

        return [Surface(name=name, answer=whole) for name in ("classifier", "joint")]


class Misled(Wary):
    """Declares a joint surface that leads an attack astray."""

    def __init__(self, excess, astray):
        super().__init__(excess)
        self.astray = astray

    def surfaces(self):
        return [Surface(name="joint", answer=partial(self.astray, self))]


class Rounded(nn.Module):
    """Sees images in 256 steps, so that its logits are exact; its gradient takes no notice."""

    def __init__(self):
        super().__init__()
        self.network = bright()

    def forward(self, images):
        return self.network(images + ((256 * images).round() / 256 - images).detach())


class Sometimes(nn.Module):
    """One of two members answers.

    A classifier, with probability 3/4, or one that rejects everything.
    """

    abstains = True

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([Wary(never), Wary(always)])
        self.register_buffer("weights", torch.tensor([0.75, 0.25]))

    def members(self):
        return list(self.parts)

    def draw(self, images, key):
        first = key.uniform("member", 1) < self.weights[0]
        return torch.where(first, self.parts[0](images), self.parts[1](images))


class Moody(Wary):
    """Rejects by chance, three times in ten, whatever it sees."""

    def __init__(self):
        super().__init__(always)

    def draw(self, images, key):
        logits = self.network(images)
        shift = torch.where(key.uniform("mood", 1)[:, 0] < 0.3, 1.0, -1.0)
        return torch.cat([logits, (logits.amax(dim=1) + shift)[:, None]], dim=1)


def never(images):
    return images.new_full((len(images),), -1.0)


def always(images):
    return images.new_full((len(images),), 1.0)


def near(images):
    """Fires where the classifier is unsure, up to 0.05 from its boundary."""
    return 0.05 - (images[:, 0, 0, 0] - 0.5).abs()


def spoilt(images):
    """Fires where the second pixel, which the classifier does not see, is 0.02 from one half."""
    return (images[:, 0, 0, 1] - 0.5).abs() - 0.02


def pixels(first, second=0.5):
    """Images of class 1, one row of two pixels each."""
    first = torch.as_tensor(first)
    images = torch.stack([first, torch.as_tensor(second).expand(len(first))], dim=1).view(
        -1, 1, 1, 2
    )
    return Dataset(
        "pixels", images, torch.ones(len(first), dtype=torch.long), tuple(range(len(first))), 2
    )


def run(model, data, folder, threat="linf:0.1", **options):
    asked = request(model, data, threat=threat, **options)
    short = replace(asked.suite, budgets={"apgd-ce": {"steps": 10}}, norms={}, surfaces={})
    return evaluate(replace(asked, suite=short), folder).record


def values(found, *names):
    return [getattr(found, name).value for name in names]


# By how much an image moves: to 0.48 (fooled, rejected), twice; to 0.54 (right, rejected); to 0.65
# (right, accepted).
MEANS = [0.58, 0.58, 0.64, 0.75]


@pytest.fixture(scope="module")
def perfect(tmp_path_factory):
    return run(Wary(near), pixels(MEANS), tmp_path_factory.mktemp("perfect"))


def test_images_under_attack_are_wrong_or_rejected_or_right_and_accepted(perfect):
    assert values(perfect, "clean", "robust") == [1, 1]
    found = perfect.detection
    assert values(found, "clean_rejected", "clean_rejected_right", "robust_handled") == [0, 0, 1]
    assert values(found, "attacked_rejected", "robust_accepted") == [0.75, 0.25]
    assert {found.clean_rejected.n, found.robust_accepted.n} == {4}
    assert found.robust_accepted.ci_low < 0.25 < found.robust_accepted.ci_high


@pytest.mark.parametrize("attack", ["oblivious", "joint"])
def test_a_detector_that_catches_every_success_has_an_area_of_one(perfect, attack):
    roc = getattr(perfect.detection, attack)
    assert (roc.clean, roc.successes.n, roc.successes.auc) == (4, 2, 1)
    assert values(roc.successes, "tpr_5", "tpr_10") == [1, 1]


@pytest.mark.parametrize("attack", ["oblivious", "joint"])
def test_attempts_that_fail_are_counted_apart(perfect, attack):
    """Clean scores are -0.08, -0.08, -0.14 + 0.05 and so on.

    Attacked ones 0.03, 0.03, 0.01 and -0.1.
    """
    attempts = getattr(perfect.detection, attack).attempts
    assert (attempts.n, attempts.auc, attempts.tpr_5.value) == (4, 13 / 16, 0.75)


def test_rejecting_everything_earns_nothing(tmp_path):
    record = run(Wary(always, Rounded()), pixels(MEANS), tmp_path)
    assert values(record, "clean", "robust") == [0, 0]
    found = record.detection
    assert values(found, "clean_rejected", "clean_rejected_right", "attacked_rejected") == [1, 1, 1]
    assert values(found, "robust_handled", "robust_accepted") == [1, 0]
    for roc in (found.oblivious, found.joint):
        assert (roc.attempts.n, roc.successes.n) == (4, 2)
        assert (roc.attempts.auc, roc.successes.auc) == (0.5, 0.5)
        assert (roc.attempts.tpr_10.value, roc.successes.tpr_10.value) == (0, 0)


def test_rejecting_nothing_is_a_plain_classifier(tmp_path):
    record = run(Wary(never, Rounded()), pixels(MEANS), tmp_path)
    assert values(record, "clean", "robust") == [1, 0.5]
    names = ("clean_rejected", "attacked_rejected", "robust_handled", "robust_accepted")
    assert values(record.detection, *names) == [0, 0, 0.5, 0.5]
    assert record.detection.oblivious.successes.auc == 0.5


@pytest.fixture(scope="module")
def avoidable():
    generator = torch.Generator().manual_seed(0)
    data = pixels(torch.full((40,), 0.55), 0.48 + 0.04 * torch.rand(40, generator=generator))
    return Wary(spoilt), data


def test_what_only_the_oblivious_attacker_trips_over_is_worth_little(avoidable, tmp_path):
    found = run(*avoidable, tmp_path).detection
    assert found.oblivious.successes.n == found.joint.successes.n == 40
    assert found.oblivious.successes.auc > 0.8
    assert found.joint.successes.auc < 0.2
    assert found.oblivious.successes.tpr_5.value > 0.5 > found.joint.successes.tpr_5.value
    assert values(found, "robust_handled", "attacked_rejected") == [0, 0]


def test_who_knows_the_detector_shows_it_the_image_with_the_lower_score(avoidable, tmp_path):
    """His own attack goes astray here: it spoils the second pixel all the more."""

    def astray(defence, images, _key):
        logits = defence.network(images)
        return torch.cat([logits, logits.amax(dim=1, keepdim=True) + 1 - images[:, 0, :, 1]], dim=1)

    found = run(Misled(spoilt, astray), avoidable[1], tmp_path).detection
    assert found.joint.successes.n == 40
    assert found.joint.successes.auc <= found.oblivious.successes.auc < 0.99


def test_who_knows_the_detector_shows_it_an_image_that_fools_the_classifier(tmp_path):
    """His own attack goes astray here: it leads away from the boundary, to the lowest score."""

    def astray(defence, images, _key):
        return torch.cat([-defence.network(images), images.new_full((len(images), 1), -9.0)], dim=1)

    found = run(Misled(near, astray), pixels([0.58] * 4), tmp_path).detection
    assert found.joint.successes.n == 4


def test_declared_surfaces_stand_in_for_a_defence_without_gradients(avoidable, tmp_path):
    found = run(Detached(spoilt), avoidable[1], tmp_path).detection
    assert found.joint.successes.n == 40
    assert found.joint.successes.auc < 0.2
    assert found.robust_handled.value == 0


def test_an_attacker_would_rather_fool_the_classifier_and_be_rejected_than_fail(tmp_path):
    def fooled(images):
        return (0.5 - images[:, 0, 0, 0]).sign()

    found = run(Wary(fooled), pixels([0.58] * 4), tmp_path).detection
    assert found.joint.successes.n == 4
    assert values(found, "attacked_rejected", "robust_handled") == [1, 1]


def test_images_that_the_classifier_gets_wrong_are_not_attacked_but_count(tmp_path):
    found = run(Wary(near), pixels([0.3, 0.46, 0.54, 0.75]), tmp_path).detection
    assert (found.oblivious.clean, found.joint.attempts.n, found.clean_rejected_right.n) == (
        2,
        2,
        2,
    )
    assert values(found, "clean_rejected", "clean_rejected_right", "robust_accepted") == [
        0.5,
        0.5,
        0.25,
    ]
    assert found.robust_handled.value == 0.5  # the first is wrong, the third is moved to 0.44


def test_without_an_image_that_is_right_there_is_no_curve(tmp_path):
    found = run(Wary(near), pixels([0.3, 0.2]), tmp_path).detection
    assert found.clean_rejected_right is None
    assert (found.joint.clean, found.joint.attempts.n, found.joint.attempts.auc) == (0, 0, None)


def test_shares_of_a_finite_ensemble_are_exact(tmp_path):
    record = run(Sometimes(), pixels([0.55, 0.75]), tmp_path)
    assert values(record, "clean", "robust") == [0.75, 0.5]
    names = ("clean_rejected", "attacked_rejected", "robust_handled", "robust_accepted")
    assert values(record.detection, *names) == pytest.approx([0.25, 0.25, (0.25 + 1) / 2, 0.75 / 2])


def test_rejecting_by_chance_is_told_by_draws_and_tells_no_attack(tmp_path):
    data = pixels(torch.linspace(0.56, 0.8, 30))
    found = run(Moody(), data, tmp_path).detection
    assert found.clean_rejected.value == pytest.approx(0.3, abs=5 * (0.21 / 3000) ** 0.5)
    assert found.oblivious.attempts.auc == pytest.approx(0.5, abs=0.02)
    assert found.oblivious.successes.auc == pytest.approx(0.5, abs=0.3)
    assert found.attacked_rejected == found.clean_rejected


def test_an_attacker_gains_nothing_from_choosing_where_the_draws_alone_decide(tmp_path):
    found = run(Moody(), pixels([0.7, 0.8]), tmp_path).detection
    assert found.robust_handled.value == 1
    assert found.robust_accepted.value == pytest.approx(1 - found.clean_rejected.value)


def test_the_batch_size_changes_nothing(tmp_path):
    data = pixels(torch.linspace(0.56, 0.8, 8))
    whole, split = (run(Moody(), data, tmp_path / str(batch), batch_size=batch) for batch in (8, 3))
    assert split.detection == whole.detection


@pytest.mark.parametrize("left", [30, 80])
def test_an_interrupted_measurement_goes_on_where_it_stopped(tmp_path, left):
    """Each attack asks 51 times, in one batch; then the defence itself is asked once."""
    data = pixels(MEANS)

    def failing(after=10**9):
        return Failing(bright(), KeyboardInterrupt(), after=after)

    whole = failing()
    expected = run(Wary(near, whole), data, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Wary(near, failing(whole.calls - left)), data, tmp_path)
    (folder,) = tmp_path.glob("net/*")
    assert RunRecord.model_validate_json((folder / RECORD).read_text()).detection is None
    assert ('"detection-oblivious"' in (folder / LEDGER).read_text()) == (left < 52)
    rest = failing()
    resumed = run(Wary(near, rest), data, tmp_path)
    assert resumed.detection == expected.detection
    assert rest.calls < 52 * (2 if left > 52 else 1) + 15


def test_an_ordinary_defence_has_no_detection(tmp_path):
    assert run(linear(), images_for(linear(), n=4, shape=(1, 8, 8)), tmp_path).detection is None


def test_the_record_round_trips(perfect):
    assert RunRecord.model_validate_json(perfect.model_dump_json()) == perfect


def test_noise_gives_images_away_that_have_only_just_crossed_the_boundary(tmp_path):
    generator = torch.Generator().manual_seed(0)
    part = Linear(torch.randn(5, 64, generator=generator), torch.zeros(5)).requires_grad_(False)
    images = torch.rand(400, 1, 8, 8, generator=generator)
    labels = part(images).argmax(dim=1)
    defence = assemble([part], criteria=["noise"], sigma=0.1, fpr=0.1)
    clear = margin(part(images), labels) > 2
    images, labels = images[clear], labels[clear]
    defence.fit(images, labels, images[60:], labels[60:])
    data = Dataset("random", images[:60], labels[:60], tuple(range(60)), 5)
    record = run(defence, data, tmp_path, threat="linf:0.05")
    found = record.detection
    assert record.clean.value == pytest.approx(1 - found.clean_rejected.value)
    assert 0.02 < found.clean_rejected.value < 0.25
    assert found.oblivious.successes.n > 20
    assert found.oblivious.successes.auc > 0.95
    assert found.joint.successes.auc <= found.oblivious.successes.auc
    assert found.robust_accepted.value < 0.3 < record.robust.value


def test_scores_that_tie_count_half():
    """Of 12 pairs 2 is above 1 and ties twice, 3 is above three and ties once, 4 is above all.

    2 + 3.5 + 4.
    """
    assert auc(torch.tensor([1.0, 2, 2, 3]), torch.tensor([2.0, 3, 4])) == 9.5 / 12


@given(scores, scores)
def test_the_area_is_that_of_sklearn(clean, attacked):
    expected = roc_auc_score([0] * len(clean) + [1] * len(attacked), clean + attacked)
    assert auc(torch.tensor(clean), torch.tensor(attacked)) == pytest.approx(expected)


def test_the_threshold_may_reject_so_many_clean_images_and_no_more():
    clean, attacked = torch.arange(20.0), torch.tensor([17.5, 18.0, 18.5, 19.5])
    assert caught(clean, attacked, 5).value == 0.5  # above 18, which rejects one in twenty
    assert caught(clean, attacked, 10).value == 1
    assert caught(clean[:10], attacked - 10, 5).value == 0.25  # a tenth is too much: above 9


@given(scores, scores, st.sampled_from([0, 5, 10, 50]))
def test_no_lower_threshold_would_do(clean, attacked, percent):
    low, high = torch.tensor(clean), torch.tensor(attacked)
    allowed = [level for level in clean if 100 * int((low > level).sum()) <= percent * len(clean)]
    found = caught(low, high, percent)
    assert (found.n, found.value) == (
        len(attacked),
        pytest.approx((high > min(allowed)).double().mean().item()),
    )


def test_without_scores_on_either_side_nothing_is_said():
    none, one = torch.tensor([]), torch.tensor([1.0])
    assert [auc(none, one), auc(one, none), caught(none, one, 5), caught(one, none, 5)] == [
        None
    ] * 4


def test_the_terminal_says_what_is_rejected_and_what_is_caught(perfect):
    (note,) = _runs._notes(perfect)
    assert note == (
        "net: rejects 0.0 % of clean and 75.0 % of attacked images, 25.0 % are right and accepted "
        "under attack; "
        "TPR at FPR 5 %: 100.0 % oblivious, 100.0 % joint"
    )
