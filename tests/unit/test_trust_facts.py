"""Checks that review the facts of a finished run."""

import pytest
import torch
from oracles import linear

from robustbench_kd.core.ledger import Decision, Entry
from robustbench_kd.core.records import Severity, Work
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.engine.probing.checkup import facts_of, planned_stage, review
from robustbench_kd.engine.run.ledger_index import LedgerIndex
from robustbench_kd.engine.run.request import Extra
from robustbench_kd.engine.run.stages import plan_stages
from robustbench_kd.tensors.oracle import Oracle
from robustbench_kd.tensors.probe import Facts, FinishedStage
from robustbench_kd.trust import (
    marginal_verdicts,
    non_adaptive,
    square_beats_white_box,
    transfer_beats_white_box,
    transfer_failure,
)

YELLOW, RED = Severity.YELLOW, Severity.RED


def stage(name="apgd-ce", broken=0, start=0, **changes):
    examples = frozenset(range(start, start + broken))
    return FinishedStage(name, examples, **{"guided": name != "square", **changes})


def facts(*stages, n=1000, **known):
    return Facts(n, stages, **known)


def severities(found):
    return [finding.severity for finding in found]


@pytest.mark.parametrize(
    ("n", "broken", "expected"),
    [
        (1000, 0, []),
        (1000, 2, []),
        (1000, 3, [YELLOW]),
        (1000, 21, [RED]),
        (100, 1, []),
        (100, 2, [YELLOW]),
    ],
)
def test_square_is_compared_with_the_gradient_attacks_before_it(n, broken, expected):
    """A single example is no evidence, even if it is one of a hundred."""
    found = square_beats_white_box.review(
        facts(stage(broken=300), stage("square", broken, start=400), n=n)
    )
    assert severities(found) == expected
    assert all(finding.examples == list(range(400, 400 + broken)) for finding in found)


def test_square_without_a_gradient_attack_before_it_is_no_finding():
    assert square_beats_white_box.review(facts(stage("square", 500))) == []
    adaptive = stage("defence:square", 500, start=300, guided=False, adaptive=True)
    assert square_beats_white_box.review(facts(stage(broken=1), adaptive)) == []


@pytest.mark.parametrize(
    ("surface", "expected"), [("backbone", [YELLOW]), ("defence", []), ("expected", [])]
)
def test_adaptive_attacks_on_parts_are_compared_with_the_standard_ones(surface, expected):
    part = stage(f"{surface}:apgd-margin", 30, start=400, surface=surface, adaptive=True)
    found = transfer_beats_white_box.review(facts(stage(broken=300), part))
    assert severities(found) == expected
    for finding in found:
        assert surface in finding.message
        assert "3.0%" in finding.message


@pytest.mark.parametrize(("refused", "expected"), [(0, []), (4, []), (5, [YELLOW])])
def test_points_that_the_defence_refused_are_transfer_failures(refused, expected):
    assert severities(transfer_failure.review(facts(stage(broken=10, refused=refused)))) == expected


def test_few_refused_points_among_many_are_rounding():
    assert transfer_failure.review(facts(stage(broken=100, refused=9))) == []
    assert transfer_failure.review(facts(stage(surface="backbone", refused=90))) == []


@pytest.mark.parametrize(("marginal", "expected"), [(0, []), (10, []), (11, [YELLOW])])
def test_margins_that_rounding_could_change_are_counted(marginal, expected):
    margins = dict.fromkeys(range(500), -0.5) | dict.fromkeys(range(marginal), -0.0009)
    assert severities(marginal_verdicts.review(facts(margins=margins))) == expected


@pytest.mark.parametrize(
    ("composite", "adaptive", "expected"),
    [(False, False, []), (True, True, []), (True, False, [YELLOW])],
)
def test_a_composed_defence_needs_an_adaptive_attack(composite, adaptive, expected):
    found = non_adaptive.review(facts(stage(), stage(adaptive=adaptive), composite=composite))
    assert severities(found) == expected


def test_an_ordinary_run_has_no_finding():
    run = facts(
        stage(broken=300),
        stage("apgd-t", 20, start=300),
        stage("square", 1, start=320),
        margins={1: -0.4},
    )
    assert review(run) == []


def test_findings_of_all_kinds_come_together():
    run = facts(
        stage(broken=300, refused=300),
        stage("square", 50, start=300),
        margins=dict.fromkeys(range(50), 0.0),
        composite=True,
    )
    assert {finding.check for finding in review(run)} == {
        "marginal-verdicts",
        "non-adaptive",
        "square-beats-white-box",
        "transfer-failure",
    }


def test_facts_are_read_from_the_ledger():
    oracle = Oracle(linear(), torch.device("cpu"))
    threat = Threat.parse("linf:0.1")
    stages = plan_stages(parse_suite("apgd-ce,square+adaptive"), oracle, threat, Extra())

    def decision(index, broken, margin):
        return Decision(index=index, broken=broken, prediction=1, margin=margin)

    ledger = [
        Entry(stage="clean", decisions=[decision(1, broken=True, margin=-3)]),
        Entry(
            stage="apgd-ce",
            decisions=[decision(2, broken=True, margin=-0.25)],
            work=Work(disagreements=2),
        ),
        Entry(
            stage="apgd-ce",
            decisions=[decision(3, broken=False, margin=1)],
            work=Work(disagreements=3),
        ),
        Entry(stage="square", decisions=[decision(3, broken=True, margin=-0.5)]),
    ]
    planned = [planned_stage(stage, Norm.LINF) for stage in stages]
    found = facts_of(planned, LedgerIndex(ledger), examples=4, composite=False)
    first, second, *others = found.stages
    assert first == FinishedStage("apgd-ce", frozenset({2}), guided=True, refused=5)
    assert second == FinishedStage("square", frozenset({3}), guided=False)
    assert all(other.adaptive and not other.broken for other in others)
    assert "noisy-copies" in {other.surface for other in others}
    assert found.margins == {2: -0.25, 3: -0.5}
    assert found.examples == 4
