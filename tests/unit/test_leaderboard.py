"""Leaderboards from files alone.

Order, ties, separate tables, what is shown, and what is left out.
"""

import pytest
from fake_boards import adaptive, fast, leaderboard, published, put, run
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis.formats import csv as tidy
from robustbench_kd.analysis.formats import markdown
from robustbench_kd.analysis.leaderboard import (
    KEYS,
    ORDERS,
    Leaderboard,
    View,
    gap,
    rank,
    read_leaderboard,
    show,
)
from robustbench_kd.analysis.table import Cell, duration, mode, tabulate
from robustbench_kd.core.errors import RecordError, UsageError
from robustbench_kd.core.rundir import RECORD, run_folder, write_interrupted


def models(board):
    return [record.identity.model for record in board.records]


def shown(*records, **view):
    return [models(board) for board in show(records, View(**view))]


def column(board, heading):
    """The texts of one column, ranked rows first."""
    table = tabulate(board)
    place = [one.heading for one in table.columns].index(heading)
    return [row[place].text for row in (*table.rows, *table.references)]


def headings(board):
    return [one.heading for one in tabulate(board).columns]


def test_the_most_robust_stands_first_and_equals_share_a_rank():
    (board,) = rank(
        [run("a", 0.3), run("b", 0.5, clean=0.8), run("c", 0.5, clean=0.9), run("d", 0.1)]
    )
    assert models(board) == ["c", "b", "a", "d"]
    assert board.ranks == (1, 1, 3, 4)


@given(
    st.permutations(
        [
            run("a", 0.3),
            run("b", 0.5),
            run("b", 0.5, seed=1),
            run("c", 0.2),
            run("d", 0.3, norm="l2"),
        ]
    )
)
def test_the_order_in_which_files_are_found_does_not_matter(records):
    assert rank(records) == rank(reversed(records))


@pytest.mark.parametrize(
    "difference",
    [
        {"dataset": "mnist"},
        {"data_fingerprint": "1", "examples": 100},
        {"norm": "l2"},
        {"eps": 0.1, "eps_text": "0.1"},
        {"suite": "plus"},
        {"engine": "cascade"},
        {"mode": "fast"},
        {"precision": "tf32"},
    ],
)
def test_what_must_not_be_ranked_together_stands_in_tables_of_its_own(difference):
    assert len(rank([run("a"), run("b", **difference)])) == 2


def test_seeds_batch_sizes_and_spellings_of_a_radius_are_ranked_together():
    (board,) = rank([run("a", seed=1), run("b", batch_size=10), run("c", eps_text="1/5")])
    assert models(board) == ["a", "b", "c"]


def test_tables_stand_in_the_order_of_data_norm_and_radius():
    boards = rank([run(eps=0.3, eps_text="0.3"), run(), run(norm="l2"), run(dataset="cifar10")])
    assert [board.title.split(",")[0] + board.title.split(",")[2] for board in boards] == [
        "cifar10 linf 0.2",
        "digits l2 0.2",
        "digits linf 0.2",
        "digits linf 0.3",
    ]


def test_tables_that_would_have_one_title_have_two():
    boards = rank([run(), run(data_fingerprint="1")])
    assert len({board.title for board in boards}) == 2
    assert all(f"protocol {board.records[0].protocol_hash}" in board.title for board in boards)


def test_stored_runs_are_found_and_read(tmp_path):
    for record in (run("a", 0.3), run("b/c", 0.5)):
        put(tmp_path, record)
    found = read_leaderboard(tmp_path)
    assert [models(board) for board in found.boards] == [["b/c", "a"]]
    assert found.left_out == ()


def test_what_cannot_be_ranked_is_left_out_and_named(tmp_path):
    broken = put(tmp_path, run("broken"))
    (broken / RECORD).write_text("{")
    unfinished = run("unfinished").model_copy(update={"status": "interrupted", "robust": None})
    write_interrupted(run_folder(tmp_path, "unfinished", unfinished.run_id), unfinished)
    put(tmp_path, run("good"))
    found = read_leaderboard(tmp_path)
    assert [models(board) for board in found.boards] == [["good"]]
    assert len(found.left_out) == 2
    assert "is not a run record" in found.left_out[0]
    assert "is unfinished: run the same 'rkd eval' again to resume it" in found.left_out[1]


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_results_folder_that_is_none_is_an_error(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match=r"there is no results folder .*: run 'rkd eval' first"):
        read_leaderboard(tmp_path / name)


def test_an_empty_folder_is_an_empty_leaderboard(tmp_path):
    found = read_leaderboard(tmp_path)
    assert found == Leaderboard((), ())
    assert "No finished runs." in markdown.render(found)
    assert tidy.render(found).count("\n") == 1


@pytest.mark.parametrize("key", KEYS)
def test_runs_can_be_chosen_by_every_key(key):
    values = {"norm": "l2", "threat": "l2:1/2", "verdict": "unreliable", "mode": "fast"}
    value = values.get(key, "wanted")
    fields = {
        "threat": {"norm": "l2", "eps": 0.5, "eps_text": "0.5"},
        "verdict": {},
        "model": {},
    }.get(key, {key: value})
    wanted = run("wanted", **fields).model_copy(update={"verdict": "unreliable"})
    assert shown(wanted, run("other"), where={key: {value}}) == [["wanted"]]


def test_values_of_one_key_are_alternatives_and_different_keys_must_all_hold():
    runs = [
        run("a", 0.3),
        run("b", 0.2, family="ensemble"),
        run("c", 0.1, family="ensemble"),
        run("d", dataset="mnist"),
    ]
    assert shown(*runs, where={"model": {"a", "b", "d"}, "dataset": {"digits"}}) == [["a", "b"]]
    assert shown(*runs, where={"family": {"nothing"}}) == []


def test_ranks_count_among_the_chosen_runs():
    (board,) = show(
        [run("a", 0.3), run("b", 0.2, family="ensemble")], View({"family": {"ensemble"}})
    )
    assert board.ranks == (1,)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"modl": {"a"}}, "unknown key of --where 'modl': did you mean 'model'"),
        ({"threat": {"8/255"}}, "expected a threat NORM:EPS"),
    ],
)
def test_a_condition_that_makes_no_sense_is_an_error(where, message):
    with pytest.raises(UsageError, match=message):
        show([run()], View(where))


def of_all_kinds():
    """Three runs whose order by any two of `ORDERS` differs."""
    values = {
        "b": (0.5, 0.7, 0.1, 3.0, 50),
        "c": (0.4, 0.9, 0.0, 1.0, 90),
        "a": (0.3, 0.8, 0.5, 9.0, 10),
    }
    return [
        adaptive(name, robust + gap, robust).model_copy(
            update={
                "clean": run(clean=clean).clean,
                "seconds": seconds,
                "forwards": passes,
                "backwards": 0,
            }
        )
        for name, (robust, clean, gap, seconds, passes) in values.items()
    ]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("robust", "bca"),
        ("clean", "cab"),
        ("gap", "abc"),
        ("model", "abc"),
        ("time", "cba"),
        ("passes", "abc"),
    ],
)
def test_runs_are_shown_in_any_order_and_keep_their_ranks(order, expected):
    (board,) = show(of_all_kinds(), View(sort=order))
    assert "".join(models(board)) == expected
    assert dict(zip(models(board), board.ranks, strict=True)) == {"b": 1, "c": 2, "a": 3}


def test_every_order_is_tried():
    assert set(ORDERS) == {"robust", "clean", "gap", "model", "time", "passes"}


def test_the_first_of_each_table_can_be_shown_alone():
    runs = [*of_all_kinds(), run("other", dataset="mnist")]
    assert shown(*runs, sort="time", top=2) == [["c", "b"], ["other"]]


def test_an_unknown_order_comes_with_the_nearest():
    with pytest.raises(UsageError, match="unknown order 'robst': did you mean 'robust'"):
        show([run()], View(sort="robst"))


def test_columns_are_there_only_where_a_row_fills_them():
    assert headings(rank([run()])[0]) == [
        *(
            "#",
            "model",
            "family",
            "n",
            "clean %",
            "robust %",
            "verdict",
            "parameters",
            "passes",
            "time",
            "run",
        )
    ]
    without = run().model_copy(update={"verdict": None})
    assert "verdict" not in headings(rank([without])[0])


def test_adaptive_attacks_show_both_numbers_and_the_gap():
    (board,) = rank([adaptive(standard=0.908, robust=0.182)])
    assert column(board, "AutoAttack %")[0].startswith("90.8 [")
    assert column(board, "adaptive %")[0].startswith("18.2 [")
    assert column(board, "gap") == ["72.6"]
    assert "robust %" not in headings(board)
    assert gap(run()) is None


def test_only_all_attacks_of_autoattack_are_called_so():
    (board,) = rank([adaptive(attacks=["apgd-ce"])])
    assert "AutoAttack %" not in headings(board)
    assert "before adaptive %" in headings(board)


def test_a_run_without_adaptive_attacks_beside_one_with_has_one_number():
    (board,) = rank(
        [adaptive("a"), adaptive("b", robust=0.1).model_copy(update={"standard": None})]
    )
    assert [bool(text) for text in column(board, "adaptive %")] == [True, False]
    assert column(board, "AutoAttack %")[1].startswith("10.0 [")


def test_a_randomized_defence_shows_what_all_draws_get_right():
    (board,) = rank([adaptive(robust=0.2)])
    assert column(board, "all draws %")[0].startswith("10.0 [")


def test_fast_numbers_say_so_and_how_much_they_may_miss():
    (board,) = rank([fast(missed=0.0151)])
    assert board.title.endswith(", fast")
    assert column(board, "mode") == ["fast, may miss up to 1.5 points"]
    assert rank([fast(suite="fast")])[0].title.endswith(" 0.2, fast by autoattack")
    assert mode(fast(missed=None)) == "fast, may miss some"
    assert mode(run()) == ""


def test_published_numbers_stand_beneath_without_a_rank():
    numbers = [
        published("weak", 0.1),
        published("strong", 0.9, unreliable=True),
        published("other", norm="l2"),
    ]
    (board,) = leaderboard(run("ours", 0.5), numbers=numbers).boards
    assert column(board, "model") == ["ours", "strong", "weak"]
    assert column(board, "#") == ["1", "", ""]
    assert column(board, "robust %")[1:] == ["90.0", "10.0"]
    assert column(board, "verdict")[1:] == [
        "published, not run here, called unreliable there",
        "published, not run here",
    ]


def test_a_published_stronger_attack_is_an_adaptive_one():
    (board,) = leaderboard(
        run("ours", 0.5), numbers=[published("theirs", 0.64, standard=0.71)]
    ).boards
    assert column(board, "before adaptive %")[1] == "71.0"
    assert column(board, "adaptive %") == ["", "64.0"]
    assert column(board, "gap") == ["", "7.0"]


def test_a_published_number_of_zero_is_a_number():
    numbers = [published("theirs", 0.0, standard=0.0)]
    (board,) = leaderboard(run("ours", 0.5), numbers=numbers).boards
    assert column(board, "before adaptive %")[1] == "0.0"
    assert column(board, "adaptive %") == ["", "0.0"]


def test_cells_sort_by_their_numbers():
    (board,) = rank([run(robust=0.5)])
    assert tabulate(board).rows[0][5] == Cell("50.0 [43.1, 56.9]", 0.5)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.7, "1h00m"),
        (7800, "2h10m"),
    ],
)
def test_durations_are_short(seconds, text):
    assert duration(seconds) == text
