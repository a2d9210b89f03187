"""Every distillation loss against its formula, written out in float64."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustbench_kd.distill import crd, crdnd_reconstructed, hint, mtard, open_method, saad
from robustbench_kd.distill._divergence import trust
from robustbench_kd.distill._gradients import gradient_match, ramp
from robustbench_kd.tensors.distillation import (
    BatchContext,
    CachedNetwork,
    FrozenTeacher,
    Progress,
    Setup,
    total,
)

N, CLASSES = 5, 4
LABELS = torch.tensor([0, 1, 2, 3, 1])


def linear(seed, size=4, classes=CLASSES):
    """A linear network in float64."""
    generator = torch.Generator().manual_seed(seed)
    built = nn.Sequential(nn.Flatten(), nn.Linear(size, classes, dtype=torch.float64))
    for parameter in built.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return built


def context(pupil, *teachers, epoch=70, epochs=100, helper=None, n=N):
    generator = torch.Generator().manual_seed(9)
    images = torch.rand(n, 1, 2, 2, generator=generator, dtype=torch.float64)
    return BatchContext(
        student=CachedNetwork(pupil),
        teachers=tuple(FrozenTeacher(teacher) for teacher in teachers),
        images=images,
        labels=LABELS[:n],
        rows=torch.arange(n),
        progress=Progress(epoch, epochs),
        generator=generator,
        helper=helper or nn.Module(),
        adversarial=images
        + 0.2 * torch.rand(images.shape, generator=generator, dtype=torch.float64),
    )


def p(logits, temperature=1.0):
    e = (logits / temperature - logits.max(dim=1, keepdim=True).values / temperature).exp()
    return e / e.sum(dim=1, keepdim=True)


def kl(target, logits, temperature=1.0):
    """The plain sum over classes, one value per example."""
    a, b = p(target, temperature), p(logits, temperature)
    return (a * (a / b).log()).sum(dim=1)


def ce(logits, labels=LABELS):
    return torch.stack([-p(logits)[row, label].log() for row, label in enumerate(labels)])


@pytest.fixture
def nets():
    return linear(1), linear(2), linear(3)


@pytest.fixture
def scene(nets):
    """The student's and two teachers' logits on clean (x) and adversarial (a) images."""
    pupil, first, second = nets
    batch = context(pupil, first, second)
    clean, attacked = batch.images, batch.adversarial
    return batch, {
        "sx": pupil(clean),
        "sa": pupil(attacked),
        "tx": first(clean),
        "ta": first(attacked),
        "ux": second(clean),
        "ua": second(attacked),
    }


def close(terms, expected):
    assert set(terms) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            terms[name].double(), torch.as_tensor(value, dtype=torch.float64), msg=name
        )


def test_kd(scene):
    batch, z = scene
    terms = open_method("kd", {"temperature": 3.0}).loss(batch)
    close(
        terms,
        {"labels": 0.1 * ce(z["sx"]).mean(), "teacher": 0.9 * 9 * kl(z["tx"], z["sx"], 3).mean()},
    )


def test_ard_softens_both_networks_and_means_over_classes(scene):
    batch, z = scene
    close(
        open_method("ard").loss(batch),
        {"teacher": 900 * kl(z["tx"], z["sa"], 30).mean() / CLASSES},
    )
    terms = open_method(
        "ard", {"teacher_weight": 0.7, "temperature": 2.0, "reduction": "batchmean"}
    ).loss(batch)
    close(
        terms,
        {"teacher": 0.7 * 4 * kl(z["tx"], z["sa"], 2).mean(), "labels": 0.3 * ce(z["sx"]).mean()},
    )


def test_iad_one(scene):
    batch, z = scene
    doubt = 1 - torch.stack([p(z["ta"])[row, label] for row, label in enumerate(LABELS)]) ** 0.1
    terms = open_method("iad", {"teacher_weight": 0.8}).loss(batch)
    close(
        terms,
        {
            "teacher": 0.8 * kl(z["tx"], z["sa"]).mean(),
            "self": 0.8 * (doubt * kl(z["sx"], z["sa"])).mean(),
            "labels": 0.2 * ce(z["sx"]).mean(),
        },
    )


def test_iad_two(scene):
    batch, z = scene
    trusted = torch.stack([p(z["ta"])[row, label] for row, label in enumerate(LABELS)]) ** 0.1
    close(
        open_method("iad2").loss(batch),
        {
            "labels": 0.25 * ce(z["sa"]).mean(),
            "teacher": 0.5 * (trusted * kl(z["ta"], z["sa"])).mean(),
            "self": 0.5 * ((1 - trusted) * kl(z["sx"], z["sa"])).mean(),
            "standard": 0.25 * kl(z["ua"], z["sa"]).mean(),
        },
    )


@pytest.mark.parametrize(("name", "begin"), [("iad", 60), ("iad2", 40), ("adaiad", 60)])
def test_the_teacher_is_trusted_wholly_until_the_epochs_before_doubt_are_over(nets, name, begin):
    for epoch, doubts in ((begin, False), (begin + 1, True)):
        terms = open_method(name).loss(context(*nets, epoch=epoch))
        assert bool("self" in terms and terms["self"] > 0) is doubts


def test_the_own_answer_of_iad_carries_gradient_unless_detached(nets):
    def slope(detach):
        pupil = linear(1)
        open_method("iad", {"detach_self": detach}).loss(context(pupil, nets[1]))["self"].backward()
        return pupil[1].weight.grad

    assert not torch.allclose(slope(detach=True), slope(detach=False))


def test_trust_is_a_power_of_the_label_s_probability_without_gradient():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]], dtype=torch.float64, requires_grad=True)
    found = trust(logits, torch.tensor([0, 0]), 2.0)
    torch.testing.assert_close(found, torch.tensor([0.25, 0.5625], dtype=torch.float64))
    assert not found.requires_grad


def test_rslad(scene):
    batch, z = scene
    close(
        open_method("rslad", {"scale": 10.0}).loss(batch),
        {
            "adversarial": 10 * 5 / 6 * kl(z["tx"], z["sa"]).mean() / CLASSES,
            "clean": 10 * 1 / 6 * kl(z["tx"], z["sx"]).mean() / CLASSES,
        },
    )


@pytest.mark.parametrize(("classes", "scale"), [(10, 1.0), (100, 10.0)])
def test_the_published_scales_of_rslad_are_a_tenth_of_batchmean(classes, scale):
    batch = context(linear(1, classes=classes), linear(2, classes=classes))
    published = open_method("rslad", {"reduction": "elementmean", "scale": scale}).loss(batch)
    summed = open_method("rslad", {"reduction": "batchmean"}).loss(batch)
    close(published, {name: value / 10 for name, value in summed.items()})


def test_adaad(scene):
    batch, z = scene
    close(
        open_method("adaad").loss(batch),
        {"adversarial": kl(z["ta"], z["sa"]).mean() / CLASSES},
    )
    terms = open_method("adaad", {"adversarial_weight": 0.6, "reduction": "batchmean"}).loss(batch)
    close(
        terms,
        {
            "adversarial": 0.6 * kl(z["ta"], z["sa"]).mean(),
            "clean": 0.4 * kl(z["tx"], z["sx"]).mean(),
        },
    )


def test_adaiad(scene):
    batch, z = scene
    doubt = 1 - torch.stack([p(z["ta"])[row, label] for row, label in enumerate(LABELS)]) ** 0.1
    close(
        open_method("adaiad").loss(batch),
        {
            "adversarial": 900 * kl(z["ta"], z["sa"], 30).mean(),
            "self": (doubt * kl(z["sx"], z["sa"])).mean(),
        },
    )


def test_the_attack_of_adaad_climbs_through_both_networks(scene):
    batch, _ = scene
    pupil, first = batch.student.network, batch.teachers[0].network
    points = batch.images.clone().requires_grad_()
    objective = open_method("adaad").inner(batch)
    (found,) = torch.autograd.grad(objective(points, pupil(points)).sum(), points)
    (expected,) = torch.autograd.grad(kl(first(points), pupil(points)).sum(), points)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ard", lambda z: ce(z["sa"])),
        ("iad", lambda z: ce(z["sa"])),
        ("mtard", lambda z: ce(z["sa"])),
        ("akd", lambda z: ce(z["sa"])),
        ("rslad", lambda z: kl(z["tx"], z["sa"])),
        ("crdnd_reconstructed", lambda z: kl(z["tx"], z["sa"])),
        ("adaad", lambda z: kl(z["ta"], z["sa"])),
    ],
)
def test_attacks_raise_what_the_papers_say(scene, name, expected):
    batch, z = scene
    objective = open_method(
        name, {"contrast_weight": 0.0} if name.startswith("crdnd") else {}
    ).inner(batch)
    torch.testing.assert_close(objective(batch.adversarial, z["sa"]), expected(z))


def test_akd_is_the_cross_entropy_with_the_mixed_target_less_a_constant(scene):
    batch, z = scene
    weights = (0.3, 0.2)
    found = total(open_method("akd", {"weights": weights}).loss(batch))
    label = torch.nn.functional.one_hot(LABELS, CLASSES)
    target = 0.5 * label + 0.3 * p(z["ta"]) + 0.2 * p(z["ua"])
    constant = sum(
        w * (p(z[t]) * p(z[t]).log()).sum(dim=1).mean()
        for w, t in zip(weights, ("ta", "ua"), strict=True)
    )
    torch.testing.assert_close(found, constant - (target * p(z["sa"]).log()).sum(dim=1).mean())


# MTARD


def test_mtard_moves_its_balance_and_weighs_by_it(scene):
    batch, z = scene
    adversarial, clean = (
        kl(z["ta"], z["sa"]).mean() / CLASSES,
        kl(z["ux"], z["sx"]).mean() / CLASSES,
    )
    balance = mtard.Balance()
    balance.first.copy_(torch.stack([2 * adversarial, 4 * clean]).detach())
    terms = open_method("mtard").loss(replace(batch, helper=balance))
    weight = 0.5 - 0.025 * (0.5 - 0.25 / 0.75)
    assert balance.clean_weight.item() == pytest.approx(weight)
    close(terms, {"adversarial": (1 - weight) * adversarial, "clean": weight * clean})


def test_the_first_step_of_mtard_is_even_and_remembered(scene):
    batch, _ = scene
    balance = mtard.Balance()
    open_method("mtard").loss(replace(batch, helper=balance))
    assert balance.clean_weight == 0.5
    assert (balance.first > 0).all()


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 3),
)
def test_the_weights_of_mtard_stay_on_the_simplex(losses, rate, power):
    balance = mtard.Balance()
    for pair in losses:
        balance.update(torch.tensor(pair, dtype=torch.float64), rate=rate, power=power)
        assert 0 <= balance.clean_weight <= 1


@pytest.mark.parametrize(
    ("epoch", "rate"), [(215, 0.025), (216, 0.0025), (261, 0.00025), (300, 0.000025)]
)
def test_the_rate_of_mtard_falls_after_the_published_epochs(epoch, rate):
    assert mtard._rate(Progress(epoch, 300), mtard.Options()) == pytest.approx(rate)


# SAAD


def test_saad_weighs_examples_by_the_teacher_s_entropy(scene):
    batch, z = scene
    entropies = -(p(z["ta"]) * p(z["ta"]).log()).sum(dim=1)
    weights = 5 * (entropies - entropies.min())
    teacher, pupil = batch.teachers[0].network, batch.student.network
    behind = 2 * batch.images - batch.adversarial
    matched = kl(z["ta"] - teacher(behind), z["sa"] - pupil(behind))
    rest = 1 - weights / (weights.max() + 1e-8)
    close(
        open_method("saad-c").loss(batch),
        {
            "adversarial": (weights * kl(z["ta"], z["sa"])).mean(),
            "gradient": 0.7 * (weights * matched).mean(),
            "clean": 0.2 * (rest * kl(z["tx"], z["sx"])).mean(),
        },
    )


def test_saad_without_the_clean_term_is_the_same_otherwise(scene):
    batch, _ = scene
    both = open_method("saad-c").loss(batch)
    close(
        open_method("saad").loss(batch),
        {name: both[name] for name in ("adversarial", "gradient")},
    )


def test_the_attack_of_saad_corrects_the_true_logit_to_first_order(scene):
    batch, z = scene
    objective = open_method("saad", {"correction": 0.5}).inner(batch)
    weight = batch.teachers[0].network[1].weight
    offset = (batch.adversarial - batch.images).flatten(1)
    target = z["tx"].clone()
    for row, label in enumerate(LABELS):
        target[row, label] += 0.5 * (weight[label] @ offset[row])
    torch.testing.assert_close(objective(batch.adversarial, z["sa"]), kl(target, z["sa"]))


@pytest.mark.parametrize("order", [0.5, 2.0])
def test_entropy_of_an_order(order):
    logits = torch.randn(6, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(
        saad.entropy(logits, order), (p(logits) ** order).sum(dim=1).log() / (1 - order)
    )


def test_entropy_of_orders_near_one_is_shannon_s():
    logits = torch.randn(6, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(
        saad.entropy(logits, 1 + 1e-7), saad.entropy(logits, 1.0), rtol=1e-5, atol=1e-6
    )


# PeerAiD


def test_peeraid(nets):
    pupil, peer, _ = nets
    batch = context(pupil, helper=peer)
    clean, attacked = batch.images, batch.adversarial
    pa, sa, sx = peer(attacked), pupil(attacked), pupil(clean)
    terms = open_method("peeraid", {"label_weight": 0.3}).loss(batch)
    close(
        terms,
        {
            "labels": 0.3 * ce(sa).mean(),
            "peer": 25 * kl(pa, sa, 5).mean() / CLASSES,
            "self": 25 * kl(sx, sa, 5).mean() / CLASSES,
            "peer-labels": ce(pa).mean(),
            "peer-student": 0.1 * kl(sa, pa).mean() / CLASSES,
        },
    )
    objective = open_method("peeraid").inner(batch)
    torch.testing.assert_close(objective(attacked, sa), kl(peer(clean), sa))


@pytest.mark.parametrize(
    ("name", "student_learns", "peer_learns"), [("peer", True, False), ("peer-student", True, True)]
)
def test_who_learns_from_whom_in_peeraid(name, student_learns, peer_learns):
    pupil, peer = linear(1), linear(2)
    open_method("peeraid").loss(context(pupil, helper=peer))[name].backward()
    assert (pupil[1].weight.grad is not None) is student_learns
    assert (peer[1].weight.grad is not None) is peer_learns


# IGDM


def test_igdm_is_the_divergence_of_output_differences(scene):
    batch, _ = scene
    teacher, pupil = batch.teachers[0].network, batch.student.network
    x, offset = batch.images, batch.adversarial - batch.images
    expected = kl(
        teacher(x + 0.5 * offset) - teacher(x - 2 * offset),
        pupil(x + 0.5 * offset) - pupil(x - 2 * offset),
    )
    torch.testing.assert_close(gradient_match(batch, beta=0.5, gamma=2.0), expected)
    method = open_method("adaad", {}, {"igdm": {"alpha": 4.0, "beta": 0.5, "gamma": 2.0}})
    torch.testing.assert_close(method.loss(batch)["igdm"], 4 * 0.7 * expected.mean())


def test_igdm_of_linear_networks_is_the_gradient_s_product_with_the_perturbation(scene):
    batch, _ = scene
    pupil, teacher = (
        batch.student.network[1].weight,
        batch.teachers[0].network[1].weight,
    )
    offset = 2 * (batch.adversarial - batch.images).flatten(1)
    torch.testing.assert_close(gradient_match(batch), kl(offset @ teacher.T, offset @ pupil.T))


def test_igdm_of_linear_networks_with_equal_weights_is_zero_whatever_the_biases():
    pupil, teacher = linear(1), linear(1)
    teacher[1].bias.data += torch.arange(CLASSES)
    torch.testing.assert_close(
        gradient_match(context(pupil, teacher)), torch.zeros(N, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("rule", "epoch", "epochs", "share"),
    [
        ("linear_total", 150, 300, 0.5),
        ("linear_200", 300, 300, 1.5),
        ("linear_200", 100, 100, 0.5),
        ("constant", 1, 9, 1),
    ],
)
def test_ramps(rule, epoch, epochs, share):
    assert ramp(Progress(epoch, epochs), rule) == share


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kd", {"label_weight": 0.0}),
        ("rslad", {}),
        ("adaad", {}),
        ("mtard", {}),
        ("akd", {"weights": (1.0,)}),
        ("saad-c", {}),
        ("ard", {"temperature": 1.0}),
        ("iad", {}),
    ],
)
def test_equal_networks_that_see_the_same_have_no_loss_and_no_gradient(name, options):
    """Teacher terms and IGDM vanish where student and teacher are one function and adversarial
    images are clean ones."""
    pupil = linear(1)
    additions = {} if name == "kd" else {"igdm": {}}
    same = context(pupil, linear(1), linear(1), helper=mtard.Balance())
    method = open_method(name, options, additions)
    used = len(method.options.teachers())
    loss = total(method.loss(replace(same, adversarial=same.images, teachers=same.teachers[:used])))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(
        pupil[1].weight.grad, torch.zeros_like(pupil[1].weight), atol=1e-12, rtol=0
    )


def test_igdm_of_equal_networks_is_zero_on_adversarial_images_too():
    pupil = linear(1)
    matched = gradient_match(context(pupil, linear(1))).sum()
    matched.backward()
    assert matched.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(
        pupil[1].weight.grad, torch.zeros_like(pupil[1].weight), atol=1e-12, rtol=0
    )


# Features: hint, CRD and the reconstruction of CRDND


def test_hint(nets):
    pupil, teacher, regressor = linear(1), linear(2), nn.Linear(4, 4, dtype=torch.float64)
    batch = context(pupil, teacher, helper=regressor)
    flat = batch.images.flatten(1)
    gap = (regressor(flat) - flat).square()
    labels = ce(pupil(batch.images)).mean()
    close(open_method("hint").loss(batch), {"labels": labels, "hint": 100 * gap.mean()})
    halved = open_method("hint", {"distance": "half_sum", "hint_weight": 3.0}).loss(batch)
    close(halved, {"labels": labels, "hint": 3 * gap.sum(dim=1).mean() / 2})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ((8, 8, 8), (6, 4, 4)),
        ((8, 4, 4), (6, 8, 8)),
        ((8, 7, 7), (6, 5, 4)),
        ((8, 4, 4), (6, 4, 4)),
        ((8,), (6,)),
    ],
)
def test_a_regressor_gives_features_the_teacher_s_shape(found, expected):
    made = hint._regressor(torch.Size(found), torch.Size(expected), activated=True)
    assert made(torch.rand(2, *found)).shape == (2, *expected)


@pytest.mark.parametrize(
    ("found", "expected"), [((8, 4, 4), (6, 5, 5)), ((8, 4, 4), (6,)), ((8, 4), (6, 4))]
)
def test_features_that_no_regressor_fits_are_refused(found, expected):
    with pytest.raises(Exception, match="name other layers"):
        hint._regressor(torch.Size(found), torch.Size(expected), activated=True)


def memory(labels=None):
    return crd.Memory((4, 4), LABELS.repeat(4) if labels is None else labels, 3).double()


def test_crd_is_the_sum_of_both_contrasts(nets):
    bank = memory()
    bank.log_scales.copy_(torch.tensor([1.0, 2.0], dtype=torch.float64))
    batch = context(*nets[:2], helper=bank)
    flat = batch.images.flatten(1)
    student, teacher = (unit(embed(flat)) for embed in (bank.embed_student, bank.embed_teacher))
    generator = torch.Generator()
    generator.set_state(batch.generator.get_state())
    rows = torch.cat([torch.arange(N)[:, None], bank.others(LABELS, 6, generator)], dim=1)
    noise, expected = 6 / 20, 0.0
    for anchor, side, scale in ((student, bank.teacher, 1.0), (teacher, bank.student, 2.0)):
        e = ((side[rows] * anchor[:, None]).sum(dim=2) / 0.07).exp() / math.exp(scale)
        h = e / (e + noise)
        expected = expected - (h[:, 0].log() + (1 - h[:, 1:]).log().sum(dim=1)).mean()
    terms = open_method("crd", {"negatives": 6}).loss(batch)
    close(
        terms,
        {
            "labels": ce(batch.student(batch.images)).mean(),
            "contrast": 0.8 * expected,
        },
    )


def unit(vectors):
    return vectors / vectors.norm(dim=1, keepdim=True)


def test_the_memory_of_crd_moves_half_way_and_stays_on_the_sphere(nets):
    bank = memory()
    before, other = bank.student[:N].clone(), bank.student[N:].clone()
    batch = context(*nets[:2], helper=bank)
    open_method("crd", {"negatives": 6}).loss(batch)
    fresh = unit(bank.embed_student(batch.images.flatten(1)))
    torch.testing.assert_close(bank.student[:N], unit(0.5 * before + 0.5 * fresh))
    assert torch.equal(bank.student[N:], other)
    assert not bank.student.requires_grad


def test_the_scales_of_crd_are_set_once(nets):
    bank = memory()
    method, batch = open_method("crd", {"negatives": 6}), context(*nets[:2], helper=bank)
    assert bank.log_scales.isnan().all()
    method.loss(batch)
    first = bank.log_scales.clone()
    method.loss(replace(batch, images=batch.images / 2))
    assert first.isfinite().all()
    assert torch.equal(bank.log_scales, first)


def test_negatives_of_crd_are_every_example_of_other_classes_alike():
    labels = torch.tensor([2, 0, 1, 0, 2, 2, 1])
    drawn = memory(labels).others(torch.tensor([0, 2]), 20_000, torch.Generator().manual_seed(0))
    for row, label in zip(drawn, (0, 2), strict=True):
        others = (labels != label).nonzero().flatten()
        counts = row.bincount(minlength=len(labels))
        assert counts.sum() == counts[others].sum() == 20_000
        assert (counts[others] / 20_000 - 1 / len(others)).abs().max() < 0.02


def test_crd_needs_two_classes():
    with pytest.raises(Exception, match="at least two classes"):
        memory(torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_the_share_of_the_label_gives_a_tie_where_the_teacher_is_wrong(margin):
    logits = 3 * torch.randn(200, CLASSES, dtype=torch.float64)
    labels = torch.randint(CLASSES, (200,))
    options = crdnd_reconstructed.Options(margin=margin)
    mixed = crdnd_reconstructed.denoised(logits, labels, options)
    wrong = logits.argmax(dim=1) != labels
    right = mixed.gather(1, labels[:, None]).squeeze(1)
    others = mixed.scatter(1, labels[:, None], 0).max(dim=1).values
    torch.testing.assert_close(mixed[~wrong], p(logits)[~wrong])
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(200, dtype=torch.float64))
    assert wrong.any()
    if margin:
        assert (right > others)[wrong].all()
    else:
        torch.testing.assert_close(right[wrong], others[wrong])


def test_denoising_by_trust_and_none():
    logits = torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([1])
    known = p(logits)
    share = 1 - known[0, 1] ** 0.1
    by_trust = crdnd_reconstructed.denoised(
        logits, label, crdnd_reconstructed.Options(denoise="trust")
    )
    expected = (1 - share) * known + share * torch.tensor([[0.0, 1.0, 0.0]])
    torch.testing.assert_close(by_trust, expected)
    plain = crdnd_reconstructed.denoised(logits, label, crdnd_reconstructed.Options(denoise="none"))
    torch.testing.assert_close(plain, known)


def test_the_reconstruction_without_its_parts_is_rslad(scene):
    batch, _ = scene
    bare = open_method("crdnd_reconstructed", {"denoise": "none", "contrast_weight": 0.0}).loss(
        batch
    )
    close(bare, open_method("rslad").loss(batch))


def test_the_contrast_of_features_leaves_out_the_same_class():
    scores, labels = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 1, 0, 2])
    expected = []
    for i in range(4):
        rivals = [j for j in range(4) if j == i or labels[j] != labels[i]]
        expected.append(-(scores[i, i].exp() / scores[i, rivals].exp().sum()).log())
    torch.testing.assert_close(
        crdnd_reconstructed.contrast(scores, labels), torch.stack(expected).mean()
    )


def test_heads_of_the_reconstruction_come_from_the_features_shapes():
    pupil, teacher = linear(1, size=4).float(), linear(2, size=4).float()
    method = open_method("crdnd_reconstructed", {"dimensions": 7})
    setup = Setup(
        student=pupil,
        teachers=(teacher,),
        images=torch.rand(2, 1, 2, 2),
        labels=LABELS,
        fresh=lambda: linear(3),
    )
    heads = method.prepare(setup)
    assert [(head.in_features, head.out_features) for head in heads] == [(4, 7), (4, 7)]


# Inductive bias


class Three(nn.Module):
    """Three linear heads, shown as `heads`."""

    def __init__(self):
        super().__init__()
        self.heads = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 3 * CLASSES, dtype=torch.float64), nn.Unflatten(1, (3, -1))
        )

    def forward(self, images):
        return self.heads(images).mean(dim=1)


def test_inductive_bias_gives_each_token_its_teacher(nets):
    pupil = Three()
    batch = context(pupil, *nets[1:])
    own, convolution, involution = pupil.heads(batch.images).unbind(dim=1)
    tx, ux = nets[1](batch.images), nets[2](batch.images)
    smooth = 0.9 * ce(own) - 0.1 * p(own).log().mean(dim=1)
    close(
        open_method("inductive_bias", {"temperature": 2.0}).loss(batch),
        {
            "labels": smooth.mean(),
            "convolution": 4 * kl(tx, convolution, 2).mean(),
            "involution": 4 * kl(ux, involution, 2).mean(),
        },
    )


def test_a_student_without_three_heads_is_refused(nets):
    with pytest.raises(Exception, match="distillation_tokens=2"):
        open_method("inductive_bias", {"heads_layer": "1"}).loss(context(*nets))
