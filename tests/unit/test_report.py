"""The report.

What its figures and tables say, that it is one harmless file, and that equal runs give equal bytes.
"""

import re
import shlex
import subprocess
import sys
import warnings
from html import unescape
from html.parser import HTMLParser

import matplotlib as mpl
import pytest
from fake_boards import HOSTILE, accuracy, adaptive, fast, put, run
from fake_runs import Planted, store
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis import figures
from robustbench_kd.analysis.classes import MOST_CLASSES, by_class
from robustbench_kd.analysis.figures import Bar, Curve, Point
from robustbench_kd.analysis.flips import read_flips
from robustbench_kd.analysis.pictures import MOST_ROWS, OTHERS, best, costs, losses
from robustbench_kd.analysis.repeat import CHECKPOINT, repetition
from robustbench_kd.analysis.report import read_report, render
from robustbench_kd.analysis.security import security
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_examples, to_text
from robustbench_kd.core.records import Finding, Severity, StageResult
from robustbench_kd.core.rundir import EXAMPLES, RECORD
from robustbench_kd.core.text import printable

ELEMENTS = {
    *(
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "script",
        "section",
        "nav",
        "div",
        "span",
        "details",
    ),
    *(
        "summary",
        "h1",
        "h2",
        "h3",
        "p",
        "a",
        "b",
        "i",
        "br",
        "small",
        "code",
        "ul",
        "li",
        "figure",
        "figcaption",
    ),
    *("table", "thead", "tbody", "tr", "th", "td", "button"),
    *("svg", "g", "path", "use", "defs", "clippath", "rect", "text"),
}


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(one == tag for one, _ in self.elements)


def rendered(results, **options):
    return render(read_report(results, **options))


def texts(svg):
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


# The page


def planted(folder):
    """Stores two models at two radii, one of them with a name that needs escaping."""
    for eps, text, broken in (
        (8 / 255, "8/255", range(20, 60)),
        (16 / 255, "16/255", range(10, 100)),
    ):
        weak = Planted(wrong=frozenset(range(10)), broken=frozenset(broken))
        store(folder, weak, model="a<b", eps=eps, eps_text=text)
        store(folder, Planted(broken=frozenset(broken)), model="net", eps=eps, eps_text=text)
    return folder


@pytest.fixture
def results(tmp_path):
    return planted(tmp_path / "results")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Results that no test changes."""
    return planted(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="module")
def page(kept):
    """Their page, rendered once."""
    return rendered(kept)


def test_a_report_looks_as_it_should(golden, page):
    body = page[page.index("<main>") : page.index("</main>")]
    without_figures = re.sub(r"<svg.*?</svg>", "<svg/>", body, flags=re.DOTALL)
    golden("report.html", re.sub(r"\b[0-9a-f]{16}\b", "0" * 16, without_figures))


def test_it_is_one_file_that_asks_for_nothing(page):
    assert page.count("<script") == 1
    for tag, attributes in Page(page).elements:
        assert tag not in {"link", "img", "iframe", "object", "base", "form", "image"}
        assert not {"src", "srcset", "action", "background"} & set(attributes)
        links = [value for name, value in attributes.items() if name.endswith("href")]
        assert all(link.startswith("#") for link in links)
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"@import|url\((?!#)", page)
    assert set(re.findall(r"https?://[^\"' <]*", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_its_policy_lets_nothing_run_but_its_script(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-inline" not in policy.partition("script-src")[2]


def test_equal_runs_give_equal_bytes(kept, page):
    program = (
        "import sys; from pathlib import Path; from robustbench_kd.analysis.report import "
        "read_report, render\n"
        f"sys.stdout.buffer.write(render(read_report(Path({str(kept)!r}))).encode())"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": ":".join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=True
    )
    assert told.stdout.decode() == page == rendered(kept)


def test_no_date_and_no_place_enters_a_figure(kept, page):
    assert "<metadata" not in page
    assert "<!DOCTYPE svg" not in page
    assert str(kept) not in page


def test_drawing_leaves_the_library_as_it_was():
    before = mpl.rcParams.copy()
    figures.bars([Bar("net", (1.0,))], [0], "")
    assert mpl.rcParams.copy() == before


def hostile_run(name, eps):
    everything = " ".join(HOSTILE)
    shared = dict.fromkeys(("dataset", "suite"), everything)
    own = dict.fromkeys(("family", "architecture", "normalisation", "device"), name)
    finding = Finding(
        check=name, severity=Severity.RED, message=name, advice=name, value=1.0, threshold=2.0
    )
    stages = [("clean", 0.9), (everything, 0.8), (name, 0.5)]
    changes = {
        "findings": [finding],
        "environment": {name: name},
        "robust": accuracy(0.5),
        "stages": [
            StageResult(stage=one, accuracy=accuracy(left), forwards=1, backwards=0, seconds=1)
            for one, left in stages
        ],
    }
    record = adaptive(name, **shared, **own, versions={name: name}, eps=eps, eps_text=str(eps))
    return record.model_copy(update=changes)


def test_no_hostile_name_is_taken_for_markup(tmp_path):
    names = [name for name in HOSTILE if name]
    for name in names:
        for eps in (0.1, 0.2):
            put(tmp_path, hostile_run(name, eps))
    page = Page(rendered(tmp_path))
    assert {tag for tag, _ in page.elements} <= ELEMENTS
    assert page.count("script") == 1
    assert not any(
        attribute.startswith("on") for _, attributes in page.elements for attribute in attributes
    )
    assert {c for c in page.text if not c.isprintable()} <= {"\n"}
    for name in names:
        assert page.text.count(printable(name)) >= 10, name


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_a_figure_shows_a_hostile_name_as_it_is(name):
    shown = printable(name)[:20]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one for each letter that a font lacks
        svg = figures.bars([Bar(printable(name), (1.0,))], [0], "")
    assert any(text.startswith(shown) for text in map(unescape, texts(svg)))


def test_nothing_is_a_report_too(tmp_path):
    page = rendered(tmp_path)
    assert "No finished runs." in page
    assert "<svg" not in page


def test_a_folder_that_is_none_is_an_error(tmp_path):
    with pytest.raises(RecordError, match="there is no results folder"):
        read_report(tmp_path / "nowhere")


def test_what_cannot_be_read_is_named_and_the_rest_is_shown(results):
    folders = sorted(results.glob("net/*"))
    (folders[0] / RECORD).write_text("{")
    (folders[1] / EXAMPLES).write_text("index\n")
    report = read_report(results)
    assert len(report.left_out) == 2
    page = Page(render(report))
    assert "is not a run record" in page.text
    assert f"'{folders[1] / EXAMPLES}', line 1" in page.text
    assert sum(len(section.details) for section in report.sections) == 2


def test_a_record_without_accuracies_is_left_out(tmp_path):
    put(tmp_path, run().model_copy(update={"clean": None, "robust": None, "stages": []}))
    report = read_report(tmp_path)
    assert report.sections == ()
    assert "contradicts itself: its stages is none" in report.left_out[0]


def test_many_runs_make_no_more_figures_and_no_longer_ones(tmp_path):
    for number in range(MOST_ROWS + 5):
        put(tmp_path, run(f"net-{number:02d}", robust=0.3 + 0.01 * number))
    report = read_report(tmp_path)
    page = render(report)
    assert page.count("<svg") == 3
    assert f"The first {MOST_ROWS} of {MOST_ROWS + 5} runs." in page
    (section,) = report.sections
    assert len(section.table.rows) == len(section.details) == MOST_ROWS + 5
    assert [text for text in texts(section.losses.svg) if text.startswith("net")] == [
        f"net-{MOST_ROWS + 4 - number:02d}" for number in range(MOST_ROWS)
    ]


def test_findings_stand_once_with_their_models_and_advice_the_worst_first(tmp_path):
    yellow = Finding(
        check="noise", severity=Severity.YELLOW, message="it varies", advice="run it again"
    )
    noisy = adaptive("b", 0.9, 0.9).model_copy(update={"findings": [yellow]})
    for record in (
        adaptive("a", 0.9, 0.9).model_copy(update={"findings": []}),
        noisy,
        adaptive("c"),
        adaptive("d"),
    ):
        put(tmp_path, record)
    remarks = [remark for section in read_report(tmp_path).sections for remark in section.remarks]
    assert [(remark.finding.check, remark.models) for remark in remarks] == [
        ("adaptive-gap", ("c", "d")),
        ("noise", ("b",)),
    ]
    text = " ".join(Page(rendered(tmp_path)).text.split())
    assert "What to do: trust the lower number." in text
    assert "Value 0.6, threshold 0.05. Images 3, 17." in text
    assert "it varies. What to do: run it again." in text


def test_a_fast_run_is_labelled(tmp_path):
    put(tmp_path, fast(missed=0.015))
    assert Page(rendered(tmp_path)).text.count("fast, may miss up to 1.5 points") == 2


# Figures


def test_no_other_is_better_than_the_best_in_both():
    assert best([(0.9, 0.5), (0.8, 0.6), (0.8, 0.5), (0.7, 0.4)]) == [True, True, False, False]
    assert best([(0.9, 0.5), (0.9, 0.5)]) == [True, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1))
def test_somebody_is_best_and_beats_whoever_is_not(points):
    front = [point for point, first in zip(points, best(points), strict=True) if first]
    assert front
    for x, y in points:
        assert (x, y) in front or any(a >= x and b >= y for a, b in front)
        assert (
            not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points)
            or (x, y) not in front
        )


def parts(picture_of, records, monkeypatch):
    """The rows that a picture hands to the drawing."""
    seen = []
    monkeypatch.setattr(figures, "bars", lambda rows, *_, **__: seen.append(list(rows)) or "<svg/>")
    picture = picture_of(records)
    return picture, seen[0]


def test_what_attacks_took_and_what_stands_is_everything(monkeypatch):
    picture, (row,) = parts(losses, [run(robust=0.5, clean=0.9)], monkeypatch)
    assert row.parts == pytest.approx((50, 0, 40, 10))
    assert [label for _, label in picture.keys] == [
        "survives",
        "apgd-ce",
        "square",
        "wrong before any attack",
    ]


def test_the_expected_accuracy_of_a_randomized_defence_stands(monkeypatch):
    _, (row,) = parts(
        losses, [run(robust=0.5).model_copy(update={"robust": accuracy(0.45)})], monkeypatch
    )
    assert row.parts[0] == pytest.approx(45)
    assert sum(row.parts) == pytest.approx(100)


def test_a_cost_is_in_passes_per_image(monkeypatch):
    picture, (row,) = parts(costs, [run()], monkeypatch)
    assert row.parts == pytest.approx((1, 181.8, 2501))
    assert [label for _, label in picture.keys] == ["clean", "apgd-ce", "square"]


def staged(names, **identity):
    left = [1 - 0.05 * number for number in range(1, len(names) + 1)]
    stages = [
        StageResult(stage=name, accuracy=accuracy(one), forwards=200, backwards=0, seconds=1)
        for name, one in zip(names, left, strict=True)
    ]
    changes = {"clean": accuracy(left[0]), "stages": stages, "robust": accuracy(left[-1])}
    return run(**identity).model_copy(update=changes)


def test_attacks_on_one_surface_are_one_part(monkeypatch):
    record = staged(["clean", "apgd-ce", "bare:apgd-ce", "bare:apgd-t"])
    picture, (row,) = parts(losses, [record], monkeypatch)
    assert [label for _, label in picture.keys] == [
        "survives",
        "apgd-ce",
        "on bare",
        "wrong before any attack",
    ]
    assert row.parts == pytest.approx((80, 10, 5, 5))


@pytest.mark.parametrize("picture_of", [losses, costs])
def test_more_attacks_than_colours_share_one(monkeypatch, picture_of):
    record = staged(["clean", *(f"attack-{number}" for number in range(12))])
    picture, (row,) = parts(picture_of, [record], monkeypatch)
    assert OTHERS in [label for _, label in picture.keys]
    assert len(picture.keys) <= figures.SERIES + 1
    assert sum(row.parts) == pytest.approx(100 if picture_of is losses else 13)


def test_few_points_all_have_names_and_many_only_the_best():
    points = [
        Point(f"net-{n}", accuracy(0.5 + 0.02 * n), accuracy(0.3 + 0.02 * n), best=n == 11)
        for n in range(12)
    ]
    named = [text for text in texts(figures.scatter(points)) if text.startswith("net")]
    assert named == ["net-11"]
    few = [text for text in texts(figures.scatter(points[:4])) if text.startswith("net")]
    assert sorted(few) == ["net-0", "net-1", "net-2", "net-3"]


def test_figures_take_their_colours_from_the_page():
    svg = figures.bars([Bar("net", (10.0, 20.0))], [0, None], "images, %", most=100)
    paints = set(re.findall(r"(?:fill|stroke): ([^;\"]*)", svg)) - {"none"}
    assert {"var(--s0)", "var(--rest)", "currentColor", "var(--muted)"} <= paints
    assert not any(paint.startswith("#") for paint in paints)


def test_a_long_name_is_cut_in_a_figure_only():
    svg = figures.bars([Bar("n" * 300, (1.0,))], [0], "")
    assert "n" * 23 + "\u2026" in texts(svg)
    assert "n" * 24 not in svg


# Security curves


def at(eps, text, robust, model="net", **identity):
    return run(model, robust, eps=eps, eps_text=text, **identity)


def test_models_at_several_radii_have_a_curve_from_their_clean_accuracy(monkeypatch):
    seen = []
    monkeypatch.setattr(
        figures, "curves", lambda shown, norm: seen.append((list(shown), norm)) or "<svg/>"
    )
    records = [at(0.2, "0.2", 0.3), at(0.1, "1/10", 0.6), at(0.1, "1/10", 0.5, model="alone")]
    (found,) = security(records)
    ((curve,), norm) = seen[0]
    assert curve.radii == ((0.0, "0"), (0.1, "1/10"), (0.2, "0.2"))
    assert [one.value for one in curve.accuracies] == [0.9, 0.6, 0.3]
    assert norm == "linf"
    assert found.picture.title == "digits, 200 examples, linf, standard by autoattack"


def test_of_several_seeds_the_lowest_accuracy_counts(monkeypatch):
    seen = []
    monkeypatch.setattr(figures, "curves", lambda shown, _: seen.append(list(shown)) or "<svg/>")
    security(
        [
            at(0.1, "0.1", 0.6),
            at(0.1, "0.1", 0.5, seed=1),
            at(0.1, "0.1", 0.7, seed=2),
            at(0.2, "0.2", 0.3),
        ]
    )
    assert [one.value for one in seen[0][0].accuracies] == [0.9, 0.5, 0.3]


@pytest.mark.parametrize(
    "other", [{"norm": "l2"}, {"suite": "plus"}, {"mode": "fast"}, {"checkpoint_sha256": "1"}]
)
def test_no_curve_joins_what_differs_in_more_than_the_radius(other):
    assert security([at(0.1, "0.1", 0.6), at(0.2, "0.2", 0.3, **other)]) == []


def test_a_curve_that_stays_above_zero_is_a_warning():
    (found,) = security([at(0.1, "0.1", 0.6), at(0.2, "0.2", 0.3)])
    assert found.warning.startswith(
        "net has 30.0 % at 0.2, the largest radius here. A curve has to reach zero"
    )


def test_a_curve_that_reaches_zero_is_none():
    (found,) = security([at(0.1, "0.1", 0.6), at(0.2, "0.2", 0.0)])
    assert found.warning == ""


def test_more_models_than_colours_show_the_best():
    records = [
        at(eps, str(eps), 0.5 - eps, model=f"net-{n:02d}") for n in range(12) for eps in (0.1, 0.2)
    ]
    (found,) = security(records)
    assert len(found.picture.keys) == figures.SERIES
    assert "The 8 best of 12 models." in found.picture.caption


def test_a_curve_is_drawn_with_its_band_and_its_radii_as_written():
    curve = Curve("net", ((0.0, "0"), (8 / 255, "8/255")), (accuracy(0.9), accuracy(0.4)))
    svg = figures.curves([curve], "linf")
    assert "fill-opacity: 0.16" in svg
    assert {"0", "8/255", "radius, linf"} <= set(texts(svg))


# Classes


def test_classes_are_counted_one_by_one():
    heat = by_class([("a", [0, 0, 2], [True, False, True]), ("b", [0], [False]), ("empty", [], [])])
    assert heat.classes == (0, 2)
    assert heat.rows == (("a", ((0.5, 2), (1.0, 1))), ("b", ((0.0, 1), None)))


def test_of_many_classes_the_weakest_are_shown_in_order():
    heat = by_class([("net", range(100), [label % 2 == 0 for label in range(100)])])
    assert heat.classes == tuple(range(1, 2 * MOST_CLASSES, 2))
    assert heat.note == f" The {MOST_CLASSES} weakest of 100 classes."


def test_no_example_is_no_table():
    assert by_class([("net", [], [])]) is None


# Repeating a run


def parsed(command):
    """The options of a command line, as `rkd eval` reads them."""
    from robustbench_kd.cli.eval import command as evaluate

    program, name, *arguments = shlex.split(command)
    assert (program, name) == ("rkd", "eval")
    return evaluate.make_context("eval", arguments).params


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_a_repeated_run_asks_the_same_question(name):
    identity = run(
        name, suite="apgd-ce,square", engine="native", seed=7, device="cuda", batch_size=32
    ).identity
    options = parsed(" ".join(repetition(identity).command))
    assert options["targets"] == (CHECKPOINT,)
    assert options["name"] == identity.model
    assert options["threats"] == ("linf:0.2",)
    known = {
        name: options[name]
        for name in ("dataset", "examples", "suite", "engine", "seed", "device", "batch_size")
    }
    assert known == {
        "dataset": "digits",
        "examples": "200",
        "suite": "apgd-ce,square",
        "engine": "native",
        "seed": 7,
        "device": "cuda",
        "batch_size": "32",
    }


@pytest.mark.parametrize(
    ("engine", "precision", "mode", "said"),
    [
        ("native", "fp32+fold", "exact", []),
        ("native", "fp32", "exact", ["--no-fold"]),
        (
            "native",
            "bf16+fold+channels-last",
            "fast",
            ["--mode fast", "--precision bf16", "--channels-last"],
        ),
        (
            "native",
            "fp32+fold+compile",
            "until robust>=0.45",
            ["--until-decided 'robust>=0.45'", "--compile"],
        ),
        ("autoattack", "fp32", "exact", []),
    ],
)
def test_a_search_that_was_not_asked_as_by_default_is_asked_so_again(engine, precision, mode, said):
    identity = run(engine=engine, precision=precision, mode=mode).identity
    plain = run(engine=engine, precision="fp32+fold" if engine == "native" else "fp32").identity
    assert list(repetition(identity).command) == [*repetition(plain).command, *said]
    parsed(" ".join(repetition(identity).command))


def test_a_batch_size_that_means_nothing_is_left_out():
    assert "--batch-size" not in " ".join(repetition(run(batch_size=0).identity).command)


def test_what_a_record_does_not_know_is_said():
    identity = run(
        architecture="small_cnn classes=10 width=6", checkpoint_sha256="ab" * 32
    ).identity
    hint = repetition(identity).hint
    assert "sha256 abababababababab..." in hint
    assert hint.endswith(
        "--arch small_cnn --arch-arg classes=10 --arch-arg width=6 --normalisation none."
    )


def test_what_a_curve_carried_and_what_an_adaptive_suite_was_given_is_said():
    hint = repetition(run(suite="standard+adaptive", carried="0123456789abcdef").identity).hint
    assert "Add the --surrogate and --adaptive of the run, if it had any." in hint
    assert "What run 0123456789abcdef broke at a smaller radius" in hint
    assert "as --threat linf:SMALLER,0.2." in hint


def test_a_model_of_a_library_is_named():
    again = repetition(run(architecture="timm:resnet18").identity)
    assert again.command[0] == "rkd eval timm:resnet18"
    assert again.hint == ""


# Against a baseline


def test_images_lost_and_gained_are_those_of_the_same_model_and_protocol(tmp_path):
    before, after = tmp_path / "before", tmp_path / "after"
    store(before, Planted(broken=frozenset({1, 2})), model="net")
    store(after, Planted(broken=frozenset({2, 3, 4})), model="net", seed=1)
    (flip,) = read_flips(after, before).changes
    assert (flip.change.lost, flip.change.gained) == ((3, 4), (1,))
    assert (flip.lost, flip.gained) == ("3, 4", "1")
    page = Page(render(read_report(after, read_flips(after, before))))
    assert "Against the baseline" in page.text
    assert "-1.0 [" in page.text


def test_many_lost_images_are_counted(tmp_path):
    store(tmp_path / "before", model="net")
    store(tmp_path / "after", Planted(broken=frozenset(range(40))), model="net")
    (flip,) = read_flips(tmp_path / "after", tmp_path / "before").changes
    assert flip.lost.endswith("28, 29 and 10 more")


@pytest.mark.parametrize(
    "other", [{"eps": 0.1, "eps_text": "0.1"}, {"model": "other"}, {"data_fingerprint": "x"}]
)
def test_what_is_not_comparable_is_named_and_not_compared(tmp_path, other):
    store(tmp_path / "before", **{"model": "net"} | other)
    store(tmp_path / "after", model="net")
    flips = read_flips(tmp_path / "after", tmp_path / "before")
    assert flips.changes == ()
    assert flips.left_out == (
        (
            "net: the baseline has no run of it on digits, 100 examples, linf 8/255, standard by "
            "autoattack"
        ),
    )
    assert flips.left_out[0] in Page(render(read_report(tmp_path / "after", flips))).text


def test_a_baseline_of_other_labels_is_not_compared(tmp_path):
    folder = store(tmp_path / "before", model="net")
    store(tmp_path / "after", model="net")
    rows = read_examples(folder / EXAMPLES)
    (folder / EXAMPLES).write_text(to_text([rows[0]._replace(label=9), *rows[1:]]))
    flips = read_flips(tmp_path / "after", tmp_path / "before")
    assert flips.changes == ()
    assert flips.left_out == (
        "net is not comparable: the same data, but other indices or labels in examples.csv",
    )


def test_a_damaged_baseline_run_is_named(tmp_path):
    folder = store(tmp_path / "before", model="net")
    store(tmp_path / "after", model="net")
    (folder / EXAMPLES).write_text("nonsense\n")
    flips = read_flips(tmp_path / "after", tmp_path / "before")
    assert flips.changes == ()
    assert flips.left_out[0].startswith(f"'{folder / EXAMPLES}', line 1")


def test_a_baseline_that_is_not_there_is_an_error(tmp_path):
    store(tmp_path / "after", model="net")
    with pytest.raises(RecordError, match="there is no results folder"):
        read_flips(tmp_path / "after", tmp_path / "before")


def test_a_record_with_unequal_stages_is_drawn(tmp_path):
    put(tmp_path, staged(["clean", "apgd-ce"]))
    put(
        tmp_path,
        staged(["clean", "apgd-ce", "bare:apgd-t", "square"], seed=1),
    )
    assert Page(rendered(tmp_path)).text.count("on bare") == 2
