"""Suites: names, lists, budgets, and what few classes leave of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.plugins import components, files
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Norm
from robustbench_kd.engine.run.few_classes import for_classes

PUBLISHED = ["standard", "plus", "rand"]
ATTACKS = sorted(components("attacks"))
attack_lists = st.lists(st.sampled_from(ATTACKS), min_size=1, unique=True)


@pytest.mark.parametrize(
    ("name", "attacks"),
    [
        ("standard", "apgd-ce,apgd-t,fab-t,square"),
        ("plus", "apgd-ce,apgd-dlr,fab,square,apgd-t,fab-t"),
        ("rand", "apgd-ce,apgd-dlr"),
    ],
)
def test_the_published_suites_run_the_published_attacks_in_order(name, attacks):
    suite = parse_suite(name)
    assert (suite.name, suite.settings, suite.attacks) == (name, name, tuple(attacks.split(",")))


@pytest.mark.parametrize("name", sorted(files("suites", ".toml")))
def test_every_suite_file_is_a_suite_with_a_summary(name):
    suite = parse_suite(name)
    assert suite.summary
    attacks = suite.adaptive.attacks if suite.adaptive else suite.attacks
    assert attacks
    assert set(attacks) <= set(ATTACKS)
    assert suite.settings in {*PUBLISHED, "quick", "adaptive", "fast"}


@given(attack_lists)
def test_a_typed_list_runs_as_typed_with_the_budgets_of_standard(attacks):
    suite = parse_suite(" , ".join(attacks))
    assert suite.attacks == tuple(attacks)
    assert suite.name == ",".join(attacks)
    assert suite.settings == "standard"


def test_budgets_are_the_published_ones_and_l1_has_its_own():
    suite = parse_suite("standard")
    assert suite.budget("apgd-ce", Norm.LINF)["restarts"] == 1
    assert suite.budget("apgd-ce", Norm.L1)["restarts"] == 5
    assert (
        suite.budget("apgd-t", Norm.L2)["targets"],
        suite.budget("apgd-t", Norm.L1)["targets"],
    ) == (9, 5)
    assert suite.budget("square", Norm.LINF)["queries"] == 5000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("standart", "unknown suite or attack 'standart': did you mean 'standard'?"),
        ("apgd_ce", "unknown suite or attack 'apgd_ce': did you mean 'apgd-ce'?"),
        ("apgd-ce,sqare", "unknown attack 'sqare': did you mean 'square'?"),
        ("apgd-ce,", "unknown attack ''"),
        ("", "unknown suite or attack ''"),
        ("square,square", "expected every attack once, got 'square,square'"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(text, said):
    with pytest.raises(UsageError) as caught:
        parse_suite(text)
    assert said in str(caught.value)


def test_a_suite_within_a_list_is_not_suggested_to_itself():
    with pytest.raises(UsageError) as caught:
        parse_suite("standard,square")
    assert "did you mean 'standard'" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "left"),
    [
        (2, "apgd-ce,fab,square,fab-t"),
        (3, "apgd-ce,apgd-dlr,fab,square,fab-t"),
        (4, "apgd-ce,apgd-dlr,fab,square,apgd-t,fab-t"),
        (1000, "apgd-ce,apgd-dlr,fab,square,apgd-t,fab-t"),
    ],
)
def test_few_classes_leave_what_is_defined_for_them(classes, left):
    suite, changes = for_classes(parse_suite("plus"), classes, Norm.LINF)
    assert ",".join(suite.attacks) == left
    assert len(changes) == {2: 2, 3: 1}.get(classes, 0)


@given(attack_lists, st.integers(2, 6))
def test_what_is_left_is_defined_ordered_and_never_empty(attacks, classes):
    try:
        suite, changes = for_classes(parse_suite(",".join(attacks)), classes, Norm.LINF)
    except UsageError:
        assert classes == 2
        assert set(attacks) <= {"apgd-t", "apgd-dlr"}
        return
    assert len(set(suite.attacks)) == len(suite.attacks) > 0
    assert ("apgd-t" in suite.attacks) <= (classes >= 4)
    assert ("apgd-dlr" in suite.attacks) <= (classes >= 3)
    assert bool(changes) == (suite.attacks != tuple(attacks))


def test_an_adaptive_suite_follows_another_one():
    suite = parse_suite("standard+adaptive")
    assert (suite.name, suite.attacks) == ("standard+adaptive", parse_suite("standard").attacks)
    assert suite.adaptive.attacks
    assert parse_suite("adaptive").attacks == ()
    assert parse_suite("apgd-ce,square + adaptive").attacks == ("apgd-ce", "square")


@pytest.mark.parametrize(
    "text",
    ["standard+quick", "adaptive+standard", "adaptive+adaptive", "standard+adaptive+adaptive"],
)
def test_only_the_adaptive_suite_can_follow(text):
    with pytest.raises(UsageError, match="such as standard\\+adaptive"):
        parse_suite(text)


def test_few_classes_change_the_adaptive_attacks_too():
    suite, changes = for_classes(parse_suite("standard+adaptive"), 2, Norm.LINF)
    assert "apgd-t" not in {*suite.attacks, *suite.adaptive.attacks}
    assert len(changes) == len(set(changes))
