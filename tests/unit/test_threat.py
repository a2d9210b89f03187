"""Threats: what a person types, and what is refused with which words."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.core.errors import UsageError
from robustbench_kd.core.threat import Norm, Threat, parse_threats


@pytest.mark.parametrize(
    ("text", "norm", "eps", "written"),
    [
        ("linf:8/255", Norm.LINF, 8 / 255, "linf:8/255"),
        ("l2:0.5", Norm.L2, 0.5, "l2:0.5"),
        ("l1:12", Norm.L1, 12.0, "l1:12"),
        (" LINF: 1e-3 ", Norm.LINF, 0.001, "linf:1e-3"),
        ("linf:1", Norm.LINF, 1.0, "linf:1"),
        ("l2:300", Norm.L2, 300.0, "l2:300"),
    ],
)
def test_a_threat_keeps_its_value_and_its_text(text, norm, eps, written):
    threat = Threat.parse(text)
    assert (threat.norm, threat.eps, str(threat)) == (norm, eps, written)


@given(st.sampled_from(Norm), st.fractions(Fraction(1, 10**6), 1))
def test_what_is_written_reads_back_equal(norm, eps):
    threat = Threat.parse(f"{norm}:{eps}")
    assert Threat.parse(str(threat)) == threat
    assert threat.eps == float(eps)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8/255", "expected a threat NORM:EPS such as linf:8/255, got '8/255'"),
        ("", "expected a threat NORM:EPS"),
        ("linff:8/255", "unknown norm 'linff': did you mean 'linf'? Known: l1, l2, linf"),
        ("l3:1", "unknown norm 'l3'"),
        ("linf:", "expected eps as a number or fraction such as 0.5 or 8/255, got ''"),
        ("linf:eight", "expected eps as a number or fraction such as 0.5 or 8/255, got 'eight'"),
        ("linf:nan", "got 'nan'"),
        ("linf:inf", "got 'inf'"),
        ("linf:1/0", "got '1/0'"),
        ("l2:1e999", "got '1e999'"),
        ("linf:8/255/2", "got '8/255/2'"),
        ("linf:-8/255", "expected eps above 0, got '-8/255'"),
        ("linf:0", "expected eps above 0, got '0'"),
        ("l2:1e-999", "expected eps above 0, got '1e-999'"),
        (
            "linf:8",
            "expected a linf eps of at most 1 for images in [0, 1], got '8': did you mean 8/255?",
        ),
        ("linf:3/2", "expected a linf eps of at most 1 for images in [0, 1], got '3/2'"),
    ],
)
def test_what_is_no_threat_is_refused_in_words(text, said):
    with pytest.raises(UsageError) as caught:
        Threat.parse(text)
    assert said in str(caught.value)


@pytest.mark.parametrize("text", ["linf:3/2", "linf:300"])
def test_no_radius_is_suggested_that_would_be_refused_too(text):
    with pytest.raises(UsageError) as caught:
        Threat.parse(text)
    assert "did you mean" not in str(caught.value)


def test_a_curve_runs_in_ascending_order_without_repeats_and_curves_keep_theirs():
    parsed = parse_threats(["linf:4/255,1/255,4/255", "l2:1,0.5"])
    assert [str(threat) for threat in parsed] == ["linf:1/255", "linf:4/255", "l2:0.5", "l2:1"]


def test_no_threats_are_none():
    assert parse_threats([]) == []


@pytest.mark.parametrize("text", ["linf:1/255,", "linf:,", "linf", "linf:1/255,nan"])
def test_every_point_of_a_curve_is_checked(text):
    with pytest.raises(UsageError):
        parse_threats([text])


@pytest.mark.parametrize("text", ["linf:1e999999999", "linf:1/1e999999999", "linf:1e-999999999"])
def test_a_radius_with_a_huge_exponent_is_refused_at_once(text):
    with pytest.raises(UsageError):
        Threat.parse(text)
