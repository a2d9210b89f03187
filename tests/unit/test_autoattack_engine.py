"""The reference engine gives the package's own verdicts, resumes, and says what went wrong."""

import csv
import sys
from dataclasses import replace
from functools import partial

import pyautoattack
import pytest
import torch
from oracles import (
    Changed,
    Linear,
    Noisy,
    budgets,
    coin_flip,
    conv,
    detached,
    dropout,
    images_for,
    linear,
    masked,
    probabilities,
)
from oracles import request as any_request

from robustbench_kd.core.errors import ModelError, UsageError
from robustbench_kd.core.rundir import EXAMPLES
from robustbench_kd.engine.autoattack.package import check, passes
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.run.versions import autoattack_package, autoattack_version
from robustbench_kd.tensors.oracle import Oracle

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
STANDARD, REVERSED = "apgd-ce,apgd-t,fab-t,square", "square,fab-t,apgd-t,apgd-ce"
CPU = torch.device("cpu")
request = partial(any_request, engine="autoattack", probes=True)


@pytest.fixture
def cheap():
    with budgets(pyautoattack, iterations=6, queries=30):
        yield


def package_verdicts(model, data, identity, batch_size=250):
    """Which images still stand after each attack of a run, by the package's own loop."""
    verdicts = {}

    def remember(state, attack):
        verdicts[attack] = state.robust_flags.tolist()

    attacks = identity.attacks
    made = pyautoattack.AutoAttack(
        model, norm=NORMS[identity.norm], eps=identity.eps, seed=0, version="custom"
    )
    made._set_version("standard")
    made.attacks_to_run = attacks
    for targeted in (made.apgd_targeted, made.fab):
        targeted.n_target_classes = min(targeted.n_target_classes, data.classes - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pyautoattack.state.EvaluationState, "add_run_attack", remember)
        made.run_standard_evaluation(data.images, data.labels, batch_size=batch_size)
    return verdicts


def our_verdicts(outcome):
    """Which images still stand after each attack of a run, by `examples.csv`."""
    found = list(csv.DictReader((outcome.folder / EXAMPLES).read_text().splitlines()))
    attacks = outcome.record.identity.attacks
    return {
        attack: [row["broken_by"] not in {"clean", *attacks[: position + 1]} for row in found]
        for position, attack in enumerate(attacks)
    }


def checks_of(record):
    return {finding.check for finding in record.findings}


@pytest.mark.parametrize(
    ("threat", "suite"),
    [
        ("linf:0.03", STANDARD),
        ("l2:0.4", STANDARD),
        ("l1:2", STANDARD),
        ("linf:0.03", REVERSED),
        ("l2:0.4", REVERSED),
    ],
)
def test_every_stage_agrees_with_the_packages_own_loop(threat, suite, cheap, tmp_path):
    model = conv(classes=6)
    data = images_for(model, wrong=2)
    outcome = evaluate(request(model, data, threat=threat, suite=suite, batch_size=10), tmp_path)
    expected = package_verdicts(model, data, outcome.record.identity, batch_size=10)
    assert our_verdicts(outcome) == expected
    assert 0 < sum(expected[outcome.record.identity.attacks[-1]]) < 22, (
        "a useful comparison has both outcomes"
    )


@pytest.mark.parametrize(
    ("classes", "attacks", "said"),
    [
        (2, ["apgd-ce", "fab-t", "square"], ["apgd-t is undefined for 2 classes: left out"]),
        (
            3,
            ["apgd-ce", "apgd-dlr", "fab-t", "square"],
            ["apgd-t is undefined for 3 classes: apgd-dlr runs instead"],
        ),
        (5, ["apgd-ce", "apgd-t", "fab-t", "square"], []),
        (10, ["apgd-ce", "apgd-t", "fab-t", "square"], []),
    ],
)
def test_few_classes_run_what_is_defined_for_them(classes, attacks, said, cheap, tmp_path):
    model = conv(classes)
    data = images_for(model)
    outcome = evaluate(request(model, data, threat="linf:0.03", suite="standard"), tmp_path)
    record = outcome.record
    assert [stage.stage for stage in record.stages] == ["clean", *attacks]
    assert [
        finding.message for finding in record.findings if finding.check == "attack-undefined"
    ] == said
    assert our_verdicts(outcome) == package_verdicts(model, data, record.identity)


@pytest.mark.parametrize(("classes", "expected"), [(2, 1), (5, 4), (10, 9), (12, 9)])
def test_targets_are_at_most_nine_and_never_the_label(classes, expected, monkeypatch, tmp_path):
    seen = []
    original = pyautoattack.AutoAttack.__init__

    def remember(self, *args, **options):
        original(self, *args, **options)
        seen.append(self)

    with budgets(pyautoattack, iterations=2):
        monkeypatch.setattr(pyautoattack.AutoAttack, "__init__", remember)
        model = conv(classes)
        evaluate(request(model, images_for(model, n=4), suite="fab-t"), tmp_path)
    assert {made.fab.n_target_classes for made in seen} == {expected}


def test_a_suite_of_which_nothing_is_defined_is_refused(tmp_path):
    model = conv(2)
    with pytest.raises(UsageError, match="no attack of 'apgd-t' is defined for 2 classes"):
        evaluate(request(model, images_for(model), suite="apgd-t"), tmp_path)


def test_the_trace_function_and_the_random_state_are_left_alone(cheap, tmp_path):
    def tracer(frame, event, argument):
        return None

    model = conv()
    data = images_for(model)
    before, previous = torch.get_rng_state(), sys.gettrace()
    sys.settrace(tracer)
    try:
        evaluate(request(model, data, suite="apgd-ce,square"), tmp_path)
        assert sys.gettrace() is tracer
    finally:
        sys.settrace(previous)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_optimises_in_its_forward_pass_is_flagged_and_the_next_one_is_not():
    def climb(images):
        with torch.enable_grad():
            moved = images.detach().requires_grad_()
            moved.sum().backward()
        return images

    data = images_for(linear(), shape=(1, 8, 8))

    def found(model):
        return {
            finding.check
            for finding in check(Oracle(model, CPU), data.images, data.labels, randomized=False)
        }

    assert found(Changed(linear(), climb)) == {"optimisation-in-forward"}
    assert found(linear()) == set()


@pytest.mark.parametrize(
    ("model", "suite", "expected"),
    [
        (coin_flip(), "apgd-ce", {"randomness", "hidden-chance", "non-adaptive"}),
        (probabilities(), "apgd-ce", {"probabilities"}),
        (masked(), "apgd-t", {"zero-gradients"}),
        (dropout(), "apgd-ce", {"training-mode"}),
        (linear(), "apgd-ce", set()),
    ],
)
def test_what_the_package_warns_of_becomes_a_finding(model, suite, expected, cheap, tmp_path):
    data = images_for(linear(), shape=(1, 8, 8))
    record = evaluate(request(model, data, suite=suite), tmp_path).record
    assert checks_of(record) == expected


def test_the_rand_suite_expects_randomness(cheap, tmp_path):
    model = Noisy(linear(), 0.01)
    record = evaluate(
        request(model, images_for(linear(), n=4, shape=(1, 8, 8)), suite="rand"), tmp_path
    ).record
    assert "randomness" not in checks_of(record)


def test_square_beating_the_gradient_attacks_by_far_makes_a_number_unreliable(cheap, tmp_path):
    data = images_for(linear(), shape=(1, 8, 8))
    record = evaluate(
        request(masked(), data, threat="linf:0.1", suite="apgd-ce,square"), tmp_path
    ).record
    assert "square-beats-white-box" in checks_of(record)
    assert record.verdict == "unreliable"


@pytest.mark.parametrize("suite", ["apgd-ce", "fab-t", "square"])
def test_a_model_without_gradient_is_refused_in_one_sentence_or_evaluated(suite, cheap, tmp_path):
    data = images_for(linear(), n=4, shape=(1, 8, 8))
    if suite == "square":
        assert (
            evaluate(request(detached(), data, suite=suite), tmp_path).record.status == "complete"
        )
        return
    with pytest.raises(ModelError, match=f"{suite} cannot attack the model"):
        evaluate(request(detached(), data, suite=suite), tmp_path)


def one_survivor():
    """A linear model of four classes and one image that no attack of this radius can break."""
    weight = torch.eye(4, 64)
    data = images_for(Linear(weight, torch.tensor([5.0, 0.0, 0.0, 0.0])), n=1, shape=(1, 8, 8))
    return Linear(weight, torch.tensor([5.0, 0.0, 0.0, 0.0])), data


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (attack, threat)
        for attack in ("apgd-ce", "apgd-dlr", "apgd-t")
        for threat in ("linf:0.1", "l1:0.5")
    ]
    + [("fab", "l2:0.5"), ("fab-t", "linf:0.1"), ("square", "linf:0.1")],
)
def test_passes_of_a_survivor_are_as_planned(attack, threat, tmp_path):
    model, data = one_survivor()
    job = request(model, data, threat=threat, suite=attack)
    stage = evaluate(job, tmp_path).record.stages[-1]
    assert stage.accuracy.value == 1
    assert stage.forwards + stage.backwards == passes(attack, job.suite, job.threat.norm, classes=4)


@pytest.mark.parametrize(
    ("suite", "attack"), [("rand", "apgd-ce"), ("rand", "apgd-dlr"), ("plus", "fab")]
)
def test_passes_of_the_other_settings_are_as_planned(suite, attack, tmp_path):
    model, data = one_survivor()
    job = request(model, data, threat="linf:0.1", suite=suite)
    job = replace(job, suite=replace(job.suite, attacks=(attack,)))
    stage = evaluate(job, tmp_path).record.stages[-1]
    assert stage.forwards + stage.backwards == passes(attack, job.suite, job.threat.norm, classes=4)


def test_an_observer_is_told_of_every_stage_and_an_end(cheap, tmp_path):
    model = conv()
    moments = []
    evaluate(
        request(model, images_for(model), suite="apgd-ce,square"), tmp_path, observer=moments.append
    )
    assert list(dict.fromkeys(moment.stage for moment in moments)) == ["apgd-ce", "square"]
    assert all(0 <= moment.decided <= moment.total <= moment.examples for moment in moments)


def test_labels_that_the_model_cannot_give_are_refused(tmp_path):
    data = images_for(linear(10), shape=(1, 8, 8))
    with pytest.raises(ModelError, match=r"has 3 classes, but label \d occurs in 'random'"):
        evaluate(request(linear(3), data), tmp_path)


def test_an_unknown_engine_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UsageError, match="unknown engine 'autoatack': did you mean 'autoattack'"):
        evaluate(
            request(linear(), images_for(linear(), shape=(1, 8, 8)), engine="autoatack"), tmp_path
        )


def test_an_attack_that_the_package_lacks_is_refused(tmp_path):
    lacking = request(
        linear(), images_for(linear(), shape=(1, 8, 8)), suite="pgd", engine="autoattack"
    )
    with pytest.raises(UsageError, match="has no attack 'pgd': use --engine native"):
        evaluate(lacking, tmp_path)


UPSTREAM = """
import pyautoattack

made = []


class AutoAttack(pyautoattack.AutoAttack):
    def __init__(self, model, norm="Linf", eps=0.3, seed=None, verbose=True, attacks_to_run=(),
                 version="standard", is_tf_model=False, device="cuda", log_path=None):
        assert not verbose
        super().__init__(model, norm=norm, eps=eps, seed=seed, version=version, device=device)
        made.append(self)

    def set_version(self, version):
        pyautoattack.AutoAttack._set_version(self, version)

    _set_version = None
"""
UPSTREAM_CHECKS = """
from types import SimpleNamespace
from pyautoattack import checks

funcs = checks.funcs


def check_randomized(model, x, y, bs=250, n=5, alpha=1e-4, logger=None):
    checks.check_randomized(model, x, y, bs=bs, logger=SimpleNamespace(warning=logger.log))


def check_range_output(model, x, alpha=1e-5, logger=None):
    checks.check_range_output(model, x, logger=SimpleNamespace(warning=logger.log))


def check_dynamic(model, x, is_tf_model=False, logger=None):
    checks.check_dynamic(model, x, is_tf_model, logger=SimpleNamespace(warning=logger.log))
"""


@pytest.fixture
def upstream(tmp_path, monkeypatch):
    """A package with the name, the signatures and the logger of upstream AutoAttack, which is not
    installable here."""
    site = tmp_path / "site"
    (site / "autoattack").mkdir(parents=True)
    (site / "autoattack" / "__init__.py").write_text(UPSTREAM)
    (site / "autoattack" / "checks.py").write_text(UPSTREAM_CHECKS)
    monkeypatch.syspath_prepend(site)
    yield site
    for name in [name for name in sys.modules if name.partition(".")[0] == "autoattack"]:
        del sys.modules[name]


def test_upstream_autoattack_is_used_where_it_is_installed(upstream, tmp_path, monkeypatch):
    (upstream / "autoattack-0.1.dist-info").mkdir()
    (upstream / "autoattack-0.1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: autoattack\nVersion: 0.1\n"
    )
    data = images_for(linear(), n=6, shape=(1, 8, 8))
    outcome = evaluate(
        request(probabilities(), data, suite="apgd-ce,fab-t", batch_size=4), tmp_path / "upstream"
    )
    assert outcome.record.identity.versions["autoattack"] == "0.1"
    assert len(sys.modules["autoattack"].made) >= 2, "one instance for each batch of each attack"
    assert checks_of(outcome.record) == {"probabilities"}
    monkeypatch.delitem(sys.modules, "autoattack")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(upstream)])
    fork = evaluate(
        request(probabilities(), data, suite="apgd-ce,fab-t", batch_size=4), tmp_path / "fork"
    )
    assert "pyautoattack" in fork.record.identity.versions
    assert (fork.folder / EXAMPLES).read_text() == (outcome.folder / EXAMPLES).read_text()


def test_a_copy_of_upstream_without_metadata_has_no_version(upstream):
    assert autoattack_version() == {"autoattack": "unknown"}


def test_the_fork_under_upstreams_name_is_not_taken_for_upstream(monkeypatch):
    monkeypatch.setitem(sys.modules, "autoattack", pyautoattack)
    assert autoattack_package() == "pyautoattack"


def test_a_folder_that_is_called_autoattack_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "autoattack").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert autoattack_package() == "pyautoattack"
