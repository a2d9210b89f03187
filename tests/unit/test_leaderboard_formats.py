"""Formats of a leaderboard: known texts, valid syntax, and names that mean harm."""

import csv
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from fake_boards import HOSTILE, adaptive, example, fast, leaderboard, published, run
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis.formats import csv as tidy
from robustbench_kd.analysis.formats import html, huggingface, latex, markdown, robustbench
from robustbench_kd.analysis.formats import json as objects
from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.records import Finding, RunRecord, Severity
from robustbench_kd.core.rows import attack_rows
from robustbench_kd.core.text import printable

FORMATS = sorted(components("analysis/formats"))
names = st.sampled_from(HOSTILE) | st.text(max_size=30)


def hostile(name):
    """A leaderboard that says the same in every place a name can take."""
    fields = {
        "dataset": name,
        "family": name,
        "architecture": name,
        "suite": name,
        "engine": name,
        "eps_text": name,
    }
    numbers = [
        published(
            name, dataset=printable(name), title=name, venue=name, link=name, architecture=name
        )
    ]
    record = adaptive(name, **fields).model_copy(update={"run_id": name})
    return leaderboard(record, numbers=numbers)


def main_of(page):
    return page[page.index("<main>") : page.index("</main>")]


def without_records(text):
    """JSON with a name for each record, whose fields are tested elsewhere."""
    content = json.loads(text)
    for one in (one for board in content["boards"] for one in board["runs"]):
        one["record"] = one["record"]["identity"]["model"]
    return json.dumps(content, indent=2) + "\n"


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_looks_as_it_should(golden, name):
    text = module("analysis/formats", name).render(example())
    stable = {"html": main_of, "json": without_records}.get(name, str)
    golden(f"leaderboard.{module('analysis/formats', name).SUFFIX}", stable(text))


def test_no_two_formats_write_one_file():
    suffixes = [module("analysis/formats", name).SUFFIX for name in FORMATS]
    assert len(set(suffixes)) == len(FORMATS) == 7


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_can_say_that_there_is_nothing(name):
    text = module("analysis/formats", name).render(leaderboard())
    assert text.endswith("\n")
    assert "None" not in text


@pytest.mark.parametrize(
    "name", ["markdown", "html", "latex", "csv", "json", "robustbench", "huggingface"]
)
def test_every_format_labels_a_fast_number(name):
    text = module("analysis/formats", name).render(leaderboard(fast(missed=0.015)))
    assert "fast" in text
    assert re.search(r"1\.5 points|0\.015", text)


# Whose cells are what the record says.
@pytest.mark.parametrize("name", sorted({*FORMATS} - {"csv"}))
@given(text=names)
def test_no_format_writes_a_control_character(name, text):
    written = module("analysis/formats", name).render(hostile(text))
    assert {c for c in written if not c.isprintable()} <= {"\n"}


# Markdown


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_takes_no_name_for_markup(name):
    assert_plain(markdown.render(hostile(name)), rows=2)


@given(names, st.text(max_size=10))
def test_markdown_takes_no_text_whatever_for_markup(name, run_id):
    record = run(name).model_copy(update={"run_id": run_id})
    assert_plain(markdown.render(leaderboard(record)), rows=1)


def assert_plain(text, rows):
    """One table whose rows have as many cells as its heading.

    Nothing unescaped that could be taken for markup.
    """
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + rows
    for line in lines[2:]:
        cells = re.sub(r"\\[!-/:-@\[-`{-~]", "", line)
        assert cells.count("|") == lines[0].count("|") == lines[1].count("|")
        assert not re.search(r"[<>`*_#!~&\\(){}]", cells)
    assert "<" not in re.sub(r"\\<", "", text)


# CSV


def test_csv_is_one_row_per_run_and_stage():
    read = list(csv.DictReader(io.StringIO(tidy.render(example()))))
    assert len(read) == 6 * 4
    assert {row["stage"] for row in read} == {"clean", "apgd-ce", "square", "final"}
    finals = {
        float(row["accuracy"])
        for row in read
        if row["stage"] == "final" and row["model"] == "teacher"
    }
    assert finals == {0.76, 0.6}


def test_csv_tells_fast_rows_from_exact_ones():
    read = list(csv.DictReader(io.StringIO(tidy.render(example()))))
    assert {
        (row["model"], row["mode"], row["missed"]) for row in read if row["mode"] != "exact"
    } == {("hasty", "fast", "0.015")}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_reads_back_from_csv(name):
    record = run(name)
    read = list(csv.DictReader(io.StringIO(tidy.render(leaderboard(record)), newline="")))
    assert [row["model"] for row in read] == [record.identity.model] * len(attack_rows(record))


# HTML


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and the text of the cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.cells = [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in {"td", "th"}:
            self.cells.append("")

    def handle_data(self, data):
        if self.cells:
            self.cells[-1] += data


@given(names.filter(bool))
def test_html_takes_no_name_for_markup(name):
    page, harmless = Page(html.render(hostile(name))), Page(html.render(hostile("name")))
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in harmless.elements]
    assert [list(given) for _, given in page.elements] == [
        list(given) for _, given in harmless.elements
    ]
    assert printable(name) in [cell.strip("\n") for cell in page.cells]


def test_html_runs_only_its_own_script_and_asks_for_nothing():
    page = html.render(example())
    assert page.count("<script") == 1
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}'", policy)
    assert not re.search(r"https?:", main_of(page).replace("https://example.com", ""))


# LaTeX


def words(text):
    """The text of LaTeX source once every escape is undone.

    What is left of a command shows that it was none.
    """
    known = {"textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~"}
    known |= {"textless": "<", "textgreater": ">", "textbar": "|"}
    undone = re.sub(r"\\(text[a-z]+)\{\}", lambda found: f"\0{known[found[1]]}", text)
    return re.sub(r"\\([{}$&#%_])", r"\0\1", undone).replace("-{}", "-")


@given(names)
def test_latex_takes_no_text_for_a_command(name):
    lines = [line for line in latex.render(hostile(name)).splitlines() if line.endswith(r"\\")]
    heading, *rows = lines
    for line in rows:
        text = words(line.removesuffix(r" \\"))
        assert not re.search(r"(?<!\0)[\\{}$#%_^~<>|]", text)
        assert text.count(" & ") == heading.count(" & ")  # an escaped one is " \0& " here
    folded = " ".join(printable(name).split())
    assert folded in words(rows[0]).replace("\0", "")
    assert "---" not in "".join(rows).replace("-{}", "")


def test_latex_tables_are_closed():
    text = latex.render(example())
    for environment in ("table", "tabular"):
        assert text.count(rf"\begin{{{environment}}}") == text.count(rf"\end{{{environment}}}") == 4
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 4


# JSON, RobustBench, Hugging Face


def test_json_has_every_record_with_its_rank():
    read = json.loads(objects.render(example()))
    runs = [one for board in read["boards"] for one in board["runs"]]
    records = [RunRecord.model_validate(one["record"]) for one in runs]
    assert records == [record for board in example().boards for record in board.records]
    assert [one["rank"] for one in runs] == [
        rank for board in example().boards for rank in board.ranks
    ]
    assert [len(board["published"]) for board in read["boards"]] == [2, 0, 0, 0]


def test_json_stays_json_where_a_number_has_no_end():
    endless = Finding(check="steps", severity=Severity.INFO, message="all", value=math.inf)
    text = objects.render(leaderboard(run().model_copy(update={"findings": [endless]})))
    assert json.loads(text)["boards"][0]["runs"][0]["record"]["findings"][0]["value"] == "Infinity"


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("render", [objects.render, robustbench.render, huggingface.render])
def test_hostile_names_stay_strings(render, name):
    text = render(hostile(name))
    assert json.dumps(printable(name), ensure_ascii=False)[1:-1] in json.dumps(
        json.loads(text), ensure_ascii=False
    )


def test_robustbench_has_percent_as_text():
    (entry,) = json.loads(robustbench.render(leaderboard(adaptive(standard=0.9, robust=0.2))))
    numbers = {
        name: entry[name] for name in ("clean_acc", "autoattack_acc", "external", "reported")
    }
    assert numbers == {
        "clean_acc": "90.00",
        "autoattack_acc": "90.00",
        "external": "20.00",
        "reported": "20.00",
    }
    assert (entry["dataset"], entry["threat_model"], entry["eps"]) == ("digits", "Linf", "0.2")
    assert entry["unreliable"] is True


@pytest.mark.parametrize(
    ("record", "reported"),
    [
        (run(attacks=["apgd-ce"]), "50.00"),
        (fast(attacks=["apgd-ce", "apgd-t", "fab-t", "square"]), "60.00"),
    ],
)
def test_robustbench_calls_nothing_autoattack_that_is_not(record, reported):
    (entry,) = json.loads(robustbench.render(leaderboard(record)))
    assert "autoattack_acc" not in entry
    assert entry["reported"] == reported


def test_huggingface_has_one_entry_per_model_and_one_result_per_run():
    index = json.loads(huggingface.render(example()))["model-index"]
    assert {entry["name"]: len(entry["results"]) for entry in index} == {
        "ensemble": 1,
        "teacher": 2,
        "small|student": 1,
        "plain": 1,
        "hasty": 1,
    }
    metrics = next(entry for entry in index if entry["name"] == "ensemble")["results"][0]["metrics"]
    assert [(metric["type"], metric["value"]) for metric in metrics] == [
        ("accuracy", 0.9),
        ("robust_accuracy", 0.8),
        ("robust_accuracy", 0.2),
    ]


@given(st.integers(0, 50_000))
def test_huggingface_writes_no_number_that_yaml_reads_as_text(successes):
    record = run(robust=successes / 50_000)
    assert not re.search(
        r"\d[eE]", huggingface.render(leaderboard(record)).partition('"metrics"')[2]
    )
