"""examples.csv reads back, and nothing it may hold is more than one clear line."""

import pytest
from fake_runs import Planted, rows
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.examples import read_columns, read_examples, to_text
from robustbench_kd.core.rows import ExampleRow
from robustbench_kd.core.rundir import EXAMPLES

HEADER = ",".join(ExampleRow._fields)
LINE = "0,7,7,True,False,apgd-ce,3,0.1,-0.5,12,11"
NUMBERS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**40)
ROWS = st.builds(
    ExampleRow,
    index=COUNTS,
    label=COUNTS,
    clean_prediction=COUNTS,
    adversarial_prediction=st.none() | COUNTS,
    forwards=st.none() | COUNTS,
    backwards=st.none() | COUNTS,
    broken_by=st.text().filter(str.isprintable),
    distance=st.none() | st.floats(min_value=0, allow_nan=False),
    margin=NUMBERS,
)


def written(folder, content):
    path = folder / EXAMPLES
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@given(st.lists(ROWS, max_size=5, unique_by=lambda row: row.index))
def test_what_was_written_reads_back(folder, found):
    assert read_examples(written(folder, to_text(found))) == found


def test_the_planted_runs_read_back(tmp_path):
    planted = rows(Planted(30, wrong=frozenset({1}), broken=frozenset({2, 3})))
    assert read_examples(written(tmp_path, to_text(planted))) == planted


def test_columns_are_found_by_name_and_later_ones_are_passed_over(tmp_path):
    names, cells = HEADER.split(","), LINE.split(",")
    text = f"{','.join(['colour', *reversed(names)])}\n{','.join(['red', *reversed(cells)])}\n\n"
    assert read_examples(written(tmp_path, text)) == read_examples(
        written(tmp_path, f"{HEADER}\n{LINE}\n")
    )


def test_columns_that_are_asked_for_come_with_the_index_and_others_may_be_damaged(tmp_path):
    path = written(tmp_path, f"{HEADER}\n{LINE.replace('-0.5', 'nonsense')}\n")
    assert read_columns(path, "robust", "label") == {"index": [0], "robust": [False], "label": [7]}
    with pytest.raises(RecordError, match="line 2: margin"):
        read_columns(path, "margin")


def test_windows_line_ends_and_a_missing_last_one_do_no_harm(tmp_path):
    (row,) = read_examples(written(tmp_path, f"{HEADER}\r\n{LINE}"))
    assert (row.index, row.broken_by, row.backwards) == (0, "apgd-ce", 11)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "line 1: the header '' lacks index, label, "),
        ("<html>", "line 1: the header '<html>' lacks index"),
        (HEADER.replace("label", "Label"), "line 1: the header 'index,Label,.*' lacks label;"),
        (f"{HEADER}\n0,7\n", "line 2: expected 11 cells, got 2"),
        (f"{HEADER}\n{LINE}\n{LINE},\n", "line 3: expected 11 cells, got 12"),
        (f"{HEADER}\n{LINE}\n\n{LINE}\n", "line 4: example 0 is there a second time"),
        (
            f"{HEADER}\nzero{LINE[1:]}\n",
            "line 2: index: Input should be a valid integer.*, got 'zero'",
        ),
        (
            f"{HEADER}\n{LINE.replace('True', 'perhaps')}\n",
            "line 2: clean_correct: .*, got 'perhaps'",
        ),
        (
            f"{HEADER}\n{LINE.replace('-0.5', '')}\n",
            "line 2: margin: Input should be a valid number, got ''",
        ),
        (f'{HEADER}\n"{LINE}\n', "line 2: unexpected end of data"),
        (
            f"{HEADER}\n{LINE.replace('3', 'x' * 200_000)}\n",
            "line 2: adversarial_prediction: Input should be a valid integer",
        ),
        (f"{HEADER}\n{LINE}\n".encode("utf-16"), "is no text: invalid start byte at byte 0"),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_what_to_do(tmp_path, content, said):
    with pytest.raises(
        RecordError, match=rf"examples\.csv'.* {said}.* restore the file, or delete its folder"
    ) as caught:
        read_examples(written(tmp_path, content))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_a_missing_file_and_a_folder_in_its_place_are_named(tmp_path):
    with pytest.raises(RecordError, match=r"cannot read .*examples\.csv': No such file"):
        read_examples(tmp_path / EXAMPLES)
    (tmp_path / EXAMPLES).mkdir()
    with pytest.raises(RecordError, match="expected a regular file, got a folder"):
        read_examples(tmp_path / EXAMPLES)


def complaint(path):
    """What is wrong with a file; empty where nothing is."""
    try:
        read_examples(path)
    except RecordError as error:
        return str(error)
    return ""


@given(st.text() | st.binary() | st.text().map(lambda text: f"{HEADER}\n{LINE}\n{text}"))
def test_any_text_is_rows_or_a_clear_error(folder, content):
    content = content.encode(errors="surrogatepass") if isinstance(content, str) else content
    assert complaint(written(folder, content)).isprintable()


CELLS = st.sampled_from(
    ["", "0", "-1", "1e999", "nan", "True", "9" * 5000, "\x00", '"', "\u202e", "0x10", " 1 ", "1_0"]
)


@given(st.lists(st.lists(CELLS, min_size=11, max_size=11), max_size=3))
def test_any_cells_are_rows_or_a_clear_error(folder, lines):
    text = "\n".join([HEADER, *map(",".join, lines)])
    assert complaint(written(folder, text)).isprintable()
