"""What a gate writes for others to read: valid, complete, and not to be fooled by any name."""

import json
from xml.etree import ElementTree as ET

import pytest
from fake_runs import made, planted
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from robustbench_kd.analysis import annotations, badge, junit, markdown
from robustbench_kd.analysis.gate import Limits, as_json, gate_runs
from robustbench_kd.core.text import printable

HOSTILE = [
    "a|b",
    "]]><x/>&",
    "\x00\x1b[31m",
    "::error::x\n::stop-commands::x",
    "100%,:\r\n",
    "@everyone `",
    "\ud7ff\ufffe",
]


def everything(tmp_path, name="net"):
    """A gate with a regression, an unchanged accuracy, a new run, a missing run and an unreadable
    one, all of one name."""
    fields = {"model": name, "suite": name, "dataset": name, "eps_text": name}
    plan, worse = planted(100, 50, 10), planted(100, 50, 10, range(30))
    old, gone = (made(tmp_path / "old", plan, norm=norm, **fields) for norm in ("linf", "l2"))
    new, added = (
        made(tmp_path / "new", worse, seed=1, **fields),
        made(tmp_path / "new", plan, norm="l1", **fields),
    )
    known = {run.key: run for run in (old, gone)}
    return gate_runs([new, added], [f"'{name}' is unfinished"], known, Limits(hard_limit=0.02))


def test_junit_counts_what_it_holds(tmp_path):
    root = ET.fromstring(junit.render(everything(tmp_path)).encode())
    (suite,) = root
    assert root.tag == "testsuites"
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5",
        "failures": "1",
        "errors": "2",
        "skipped": "1",
    }
    assert [len(suite.findall(f"testcase/{tag}")) for tag in ("failure", "error", "skipped")] == [
        1,
        2,
        1,
    ]
    assert all(case.get("classname") and case.get("name") for case in suite)
    assert len({(case.get("classname"), case.get("name")) for case in suite}) == 5


@settings(max_examples=40)
@given(st.sampled_from(HOSTILE) | st.text(max_size=30))
def test_junit_is_valid_xml_whatever_names_hold(tmp_path_factory, name):
    found = everything(tmp_path_factory.mktemp("xml"), name)
    text = junit.render(found)
    cases = list(ET.fromstring(text.encode()).iter("testcase"))
    assert {case.get("classname") for case in cases} == {printable(name), "rkd"}


UNESCAPE = [("%25", "%"), ("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")]


ESCAPED = (
    st.lists(st.sampled_from(["%", "%0A", "%25", "%3A", ":", ",", "\r", "\n", "a"])).map("".join)
    | st.text()
)


@given(ESCAPED, ESCAPED)
def test_an_annotation_is_one_line_from_which_title_and_text_read_back(title, text):
    line = annotations.command("error", title, text)
    assert len(line.split("\n")) == len(line.split("\r")) == 1
    empty, head, body = line.split("::", 2)
    assert (empty, head[:12]) == ("", "error title=")
    assert unescaped(head[12:], UNESCAPE) == title
    assert unescaped(body, UNESCAPE[:3]) == text
    assert not {":", ","} & set(head[12:])


def unescaped(text, escapes):
    """The text as GitHub's runner reads it: the percent sign last."""
    for escaped, plain in reversed(escapes):
        text = text.replace(escaped, plain)
    return text


@pytest.mark.parametrize("name", HOSTILE)
def test_annotations_name_every_regression_and_gap(tmp_path, name):
    lines = annotations.render(everything(tmp_path, name))
    assert [line[:7] for line in lines] == ["::error"] * 3
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_of_a_gate_takes_no_name_for_markup(tmp_path, name):
    html = MarkdownIt("gfm-like", {"linkify": False}).render(
        markdown.gate(everything(tmp_path, name))
    )
    assert not any(f"<{tag}" in html for tag in ("a ", "img", "script", "em>", "x"))
    assert html.count("<tr>") == 1 + 2
    assert html.count("<li>") == 1 + 2 + 1
    assert "Robustness gate failed: 1 regression, 2 runs not judged" in html


@pytest.mark.parametrize(
    ("lost", "problems", "message", "colour"),
    [
        ((), [], "passed", "brightgreen"),
        (range(30), ["x"], "failed: 1 regression, 1 run not judged", "red"),
        ((), ["x", "y"], "incomplete: 2 runs not judged", "orange"),
    ],
)
def test_a_badge_says_how_it_went(tmp_path, lost, problems, message, colour):
    old, new = (made(tmp_path / name, planted(lost=ids)) for name, ids in (("a", ()), ("b", lost)))
    found = json.loads(badge.render(gate_runs([new], problems, {old.key: old}, Limits())))
    assert found == {"schemaVersion": 1, "label": "robustness", "message": message, "color": colour}


def test_json_says_all_and_is_strict(tmp_path):
    found = json.loads(json.dumps(as_json(everything(tmp_path)), allow_nan=False))
    assert [(cell["name"], cell["mark"], len(cell["lost"])) for cell in found["cells"]] == [
        ("robust", "!", 30),
        ("clean", "=", 0),
    ]
    assert [len(found[key]) for key in ("new", "not_judged", "notes")] == [1, 2, 0]
