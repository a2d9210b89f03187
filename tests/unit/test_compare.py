"""Comparisons from files alone.

The right images, only what is comparable, and names and files that mean harm.
"""

import json
import random
from contextlib import suppress

import pytest
from fake_runs import Planted, identity, made, store
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from robustbench_kd.analysis import markdown
from robustbench_kd.analysis.compare import as_json, compare, obstacles, provenance
from robustbench_kd.analysis.paired import change, listed, points
from robustbench_kd.analysis.runs import find_run, read_run, read_runs
from robustbench_kd.core.errors import (
    IncompleteError,
    NotComparableError,
    RecordError,
    RkdError,
    UsageError,
)
from robustbench_kd.core.records import Identity
from robustbench_kd.core.rundir import EXAMPLES, RECORD

HOSTILE = [
    "a|b",
    "<script>alert(1)</script>",
    "two\nlines\r\n| rows |",
    "[link](http://example.com) ![image](x) @everyone #1",
    "`code` ``more`` \\` \\|",
    "[red]rich[/] \x1b[31m \u202e",
    "::error::x ##[error]x %0A",
    " ",
    "`",
    "\\",
]


@pytest.fixture
def pair(tmp_path):
    """Two runs on a hundred images: of 0 to 49, which were robust, ten are lost.

    Of 50 to 79 three are gained.
    """

    def make(**fields):
        old = Planted(wrong=frozenset(range(80, 100)), broken=frozenset(range(50, 80)))
        new = Planted(
            wrong=frozenset(range(81, 100)),
            broken=frozenset({*range(10), *range(53, 81)}),
            by="square",
        )
        return [
            made(tmp_path / "old", old),
            made(tmp_path / "new", new, checkpoint_sha256="1", **fields),
        ]

    return make


def test_lost_and_gained_images_are_named(pair):
    found = compare(*pair()).robust
    assert found.lost == tuple(range(10))
    assert found.gained == (50, 51, 52)
    assert (found.before, found.after, found.difference) == (0.5, 0.43, -0.07)
    assert found.ci_low < -0.07 < found.ci_high


def test_every_attack_but_the_last_stands_between_clean_and_robust(pair):
    stages = {found.name: found for found in compare(*pair()).stages}
    assert list(stages) == ["clean", "after apgd-ce", "robust"]
    assert (stages["clean"].lost, stages["clean"].gained) == ((), (80,))
    assert (stages["after apgd-ce"].before, stages["after apgd-ce"].after) == (0.5, 0.81)


def test_attacks_that_differ_are_not_set_against_each_other(pair):
    old, new = pair()
    stages = [new.record.stages[0], new.record.stages[-1].model_copy(update={"stage": "other"})]
    new = type(new)(new.folder, new.record.model_copy(update={"stages": stages}), new.examples)
    assert [found.name for found in compare(old, new).stages] == ["clean", "robust"]


def test_classes_that_changed_are_listed_with_the_most_lost_first_and_adjusted_p_values(tmp_path):
    lost = frozenset({0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 7, 17})
    old, new = (
        made(tmp_path / name, Planted(200, broken=gone))
        for name, gone in (("a", set()), ("b", lost))
    )
    classes = compare(old, new).classes
    assert [(found.name, len(found.lost), found.n, found.mark) for found in classes] == [
        ("class 0", 12, 20, "-"),
        ("class 7", 2, 20, "~"),
    ]
    assert classes[0].p == pytest.approx(10 * 2 / 2**12)


@pytest.mark.parametrize(
    ("lost", "gained", "mark"),
    [(0, 0, "="), (3, 3, "~"), (5, 0, "~"), (6, 0, "-"), (0, 6, "+"), (20, 4, "-")],
)
def test_a_mark_says_better_worse_unclear_or_equal(lost, gained, mark):
    before = {index: index < 50 for index in range(100)}
    after = before | dict.fromkeys(range(lost), False) | dict.fromkeys(range(50, 50 + gained), True)
    assert change("robust", before, after).mark == mark


def test_no_difference_is_shown_as_minus_zero():
    before = {index: index < 5000 for index in range(10_000)}
    found = change("robust", before, before | dict.fromkeys(range(2), False))
    assert points(found) == "+0.0 [-0.1, +0.0]"


def test_a_run_equals_itself(pair):
    found = compare(pair()[0], pair()[0])
    assert {stage.mark for stage in found.stages} == {"="}
    assert found.classes == ()


OTHER = {
    "model": "b",
    "eps": 0.5,
    "examples": 7,
    "seed": 1,
    "batch_size": 1,
    "attacks": ["apgd-ce"],
    "versions": {"torch": "2.11.0"},
}


@pytest.mark.parametrize("field", Identity.model_fields)
def test_runs_are_comparable_where_their_protocols_are(pair, field):
    old, new = pair()
    asked = new.identity.model_copy(update={field: OTHER.get(field, "other")})
    new = type(new)(new.folder, new.record.model_copy(update={"identity": asked}), new.examples)
    same = asked.protocol_hash() == old.identity.protocol_hash() and field != "examples"
    assert (obstacles(old, new) == []) is same


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"eps": 4 / 255, "eps_text": "4/255"}, "eps 8/255 against 4/255"),
        ({"suite": "plus"}, "suite standard against plus"),
        (
            {"engine": "native", "mode": "fast"},
            "engine autoattack against native; mode exact against fast",
        ),
        ({"data_fingerprint": "f" * 64}, rf"data fingerprint 100 against {'f' * 37}\.\.\."),
    ],
)
def test_what_is_not_comparable_is_refused_with_the_reason(pair, fields, said):
    with pytest.raises(
        NotComparableError, match=rf"are not comparable: {said}\. Evaluate both with the same"
    ) as caught:
        compare(*pair(**fields))
    assert caught.value.exit_code == 4


def test_other_labels_under_the_same_fingerprint_are_refused(pair):
    old, new = pair()
    changed = new.examples | {3: new.examples[3]._replace(label=9)}
    with pytest.raises(NotComparableError, match=r"the same data, but other indices or labels"):
        compare(old, type(new)(new.folder, new.record, changed))


def test_a_reader_is_told_what_else_differs_and_what_not_to_trust(tmp_path):
    old = made(tmp_path / "old")
    new = made(tmp_path / "new", seed=3, versions={"torch": "2.11.0"}, verdict="unreliable")
    assert provenance(old, new) == ["seed 0 against 3", "torch 2.10.0 against 2.11.0"]
    (note,) = compare(old, new).notes
    assert note.endswith("the robust accuracy is unreliable; its findings say why")


def test_of_a_randomized_defence_the_rule_is_said_and_no_stage_is_shown(pair):
    old, new = pair()
    mean = new.record.robust
    draws = {"exact": False, "draws": 8, "mean": mean, "all_correct": mean, "majority": mean}
    record = type(new.record).model_validate(new.record.model_dump() | {"robust_draws": draws})
    found = compare(old, type(new)(new.folder, record, new.examples))
    assert [stage.name for stage in found.stages] == ["clean", "robust"]
    assert "where its most frequent answer is right" in found.notes[0]


def test_json_holds_every_id_and_is_strict(pair):
    text = json.dumps(as_json(compare(*pair())), allow_nan=False)
    assert json.loads(text)["stages"][-1]["lost"] == list(range(10))


def test_many_ids_are_counted_not_listed():
    assert listed(range(100), most=3) == "0, 1, 2 and 97 more"


def test_a_stored_run_reads_back(tmp_path):
    planted = Planted(30, frozenset({1}), frozenset({2}))
    assert read_run(store(tmp_path, planted)) == made(tmp_path, planted)


def test_a_run_is_found_by_each_of_its_names(tmp_path, monkeypatch):
    folder = store(tmp_path / "results", model="teacher")
    monkeypatch.chdir(tmp_path)
    for name in (
        folder,
        folder / RECORD,
        folder.parent,
        "teacher",
        folder.name,
        folder.name[:5],
        f"teacher/{folder.name}",
    ):
        assert find_run(str(name), tmp_path / "results").model == "teacher"
    monkeypatch.chdir(tmp_path / "results")
    assert find_run("teacher", tmp_path / "results").model == "teacher"


def test_a_name_that_means_several_runs_or_none_is_refused(tmp_path):
    ids = sorted(store(tmp_path, eps_text=text).name for text in ("1/255", "2/255"))
    with pytest.raises(
        UsageError, match=rf"'net' holds 2 runs: name one of {ids[0]} \(linf:./255\), {ids[1]}"
    ):
        find_run("net", tmp_path)
    for name in ("", "nothing", "*", "../net/nothing"):
        with pytest.raises(
            UsageError, match=r"there is no run '.*': expected a run directory, its run\.json"
        ):
            find_run(name, tmp_path)


def test_an_unfinished_run_is_to_be_resumed(tmp_path):
    folder = store(tmp_path)
    (folder / RECORD).write_text(
        (folder / RECORD).read_text().replace('"complete"', '"interrupted"')
    )
    with pytest.raises(IncompleteError, match=r"is unfinished: run the same 'rkd eval' again"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change_files", "said"),
    [
        (
            lambda record, lines: (record | {"robust": None}, lines),
            "its robust accuracy is None",
        ),
        (
            lambda record, lines: (record, lines[:-1]),
            "expected 100 examples as in run.json, got 99",
        ),
        (
            lambda record, lines: (
                record,
                [line.replace("True,True,", "True,True,apgd") for line in lines],
            ),
            "'apgd'",
        ),
        (
            lambda record, lines: (
                record,
                [lines[0], *lines[2:], lines[1].replace("True,True", "True,False")],
            ),
            "''",
        ),
        (
            lambda record, lines: (record | {"clean": record["clean"] | {"value": 0.5}}, lines),
            "its clean accuracy is 0.5, by the rest of it 1",
        ),
        (
            lambda record, lines: (record | {"robust": record["robust"] | {"value": "NaN"}}, lines),
            "robust.value: Input should be less than or equal to 1",
        ),
    ],
)
def test_files_that_contradict_each_other_are_no_run(tmp_path, change_files, said):
    folder = store(tmp_path)
    record, lines = (
        json.loads((folder / RECORD).read_text()),
        (folder / EXAMPLES).read_text().splitlines(),
    )
    record, lines = change_files(record, lines)
    (folder / RECORD).write_text(json.dumps(record))
    (folder / EXAMPLES).write_text("\n".join(lines))
    with pytest.raises(RecordError, match=said):
        read_run(folder)


def test_runs_that_cannot_be_read_are_told_apart(tmp_path):
    store(tmp_path, model="good")
    (store(tmp_path, model="bad") / EXAMPLES).unlink()
    (store(tmp_path, model="worse") / RECORD).write_text("{")
    runs, problems = read_runs(tmp_path)
    assert [run.model for run in runs] == ["good"]
    assert ["examples.csv" in problem for problem in problems] == [True, False]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=5,
)
PATHS = [
    *(
        (field,)
        for field in (
            "status",
            "clean",
            "robust",
            "robust_draws",
            "stages",
            "verdict",
            "run_id",
            "identity",
        )
    ),
    *(("identity", field) for field in Identity.model_fields),
    ("clean", "value"),
    ("robust", "n"),
]


@pytest.fixture(scope="session")
def victim(tmp_path_factory):
    """A stored run whose files a test may overwrite, and the text of its record."""
    folder = store(tmp_path_factory.mktemp("runs"), Planted(4))
    return folder, (folder / RECORD).read_text()


@given(st.sampled_from(PATHS), JSON)
def test_a_record_with_anything_in_it_is_read_and_shown_or_a_clear_error(victim, path, value):
    folder, text = victim
    record = json.loads(text)
    place = record if len(path) == 1 else record[path[0]]
    place[path[-1]] = value
    (folder / RECORD).write_text(json.dumps(record))
    with suppress(RkdError):
        found = compare(made(folder, Planted(4)), read_run(folder))
        assert markdown.comparison(found)
        assert json.dumps(as_json(found), allow_nan=False)


@given(st.text() | st.binary())
def test_any_text_is_a_record_or_a_clear_error(victim, content):
    folder, _ = victim
    (folder / RECORD).write_bytes(
        content.encode(errors="surrogatepass") if isinstance(content, str) else content
    )
    with pytest.raises(RecordError):
        read_run(folder)


def rendered(text):
    return MarkdownIt("gfm-like", {"linkify": False}).render(text)


def assert_nothing_acts(text):
    """As GitHub's Markdown renders it, names are code and nothing else is but headings, lists and
    tables."""
    html = rendered(text)
    assert not any(f"<{tag}" in html for tag in ("a ", "img", "script", "em>", "s>"))
    return html


@given(st.sampled_from(HOSTILE) | st.text(max_size=30))
def test_a_name_in_a_table_is_one_cell_of_code_whatever_it_holds(name):
    html = assert_nothing_acts(
        f"| a | b |\n| :-- | :-- |\n| {markdown.code(name)} | {markdown.code(name)} |\n"
    )
    assert html.count("<td") == 2
    assert html.count("<code>") == 2


@pytest.mark.parametrize("name", HOSTILE)
def test_a_comparison_in_markdown_takes_no_name_for_markup(tmp_path, name):
    old = made(tmp_path / "old", model=name, dataset=name, suite=name, eps_text=name)
    new = made(
        tmp_path / "new", Planted(broken=frozenset({3})), model=name, dataset=name, suite=name
    )
    html = assert_nothing_acts(markdown.comparison(compare(old, new)))
    assert html.count("<tr>") == 2 + 3 + 1


def test_long_lists_are_cut_in_markdown(tmp_path):
    broken = frozenset(random.Random(0).sample(range(100), 40))
    old, new = (
        made(tmp_path / name, Planted(broken=gone)) for name, gone in (("a", set()), ("b", broken))
    )
    assert "and 20 more" in markdown.comparison(compare(old, new))


def test_the_identity_of_a_planted_run_is_complete():
    assert (
        identity().protocol_hash()
        == identity(seed=4).protocol_hash()
        != identity(eps=0.1).protocol_hash()
    )
