"""Published numbers from RobustBench's files."""

import json

import pytest
from fake_boards import AUTOATTACK, HOSTILE, adaptive, leaderboard, run
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.analysis.formats import robustbench
from robustbench_kd.analysis.published import read_published
from robustbench_kd.core.errors import RecordError
from robustbench_kd.core.text import printable

ENTRY = {
    "link": "https://arxiv.org/abs/2402.02263",
    "name": "MixedNUTS",
    "dataset": "cifar10",
    "venue": "arXiv, Feb 2024",
    "architecture": "ResNet-152 + WideResNet-70-16",
    "eps": "8/255",
    "clean_acc": "95.19",
    "reported": "69.71",
    "autoattack_acc": "70.08",
    "additional_data": True,
    "number_forward_passes": 2,
}


def write(folder, place="cifar10/Linf/Bai2024.json", **changes):
    path = folder / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({name: value for name, value in (ENTRY | changes).items() if value is not None})
    )
    return path


def test_a_file_is_read_with_its_norm_from_its_folder(tmp_path):
    ((number,), left_out) = read_published(write(tmp_path))
    assert left_out == ()
    assert (number.model, number.title, number.dataset, number.norm) == (
        "Bai2024",
        "MixedNUTS",
        "cifar10",
        "linf",
    )
    assert (number.clean, number.robust, number.standard) == pytest.approx((0.9519, 0.7008, None))
    assert number.eps == 8 / 255
    assert not number.unreliable


def test_the_result_of_a_stronger_attack_counts(tmp_path):
    ((number,), _) = read_published(write(tmp_path, external="64.20", unreliable=True))
    assert (number.robust, number.standard) == pytest.approx((0.642, 0.7008))
    assert number.unreliable


@pytest.mark.parametrize("eps", ["8/255", 8 / 255, "0.03137254901960784"])
def test_a_radius_may_be_a_fraction_or_a_number(tmp_path, eps):
    ((number,), _) = read_published(write(tmp_path, eps=eps))
    assert number.fits(run(dataset="cifar10", eps=8 / 255, eps_text="8/255").identity)
    assert not number.fits(run(dataset="cifar10", eps=0.031, eps_text="0.031").identity)


@pytest.mark.parametrize(
    "other", [{"dataset": "cifar100"}, {"norm": "l2"}, {"eps": 0.1, "eps_text": "0.1"}]
)
def test_a_number_fits_only_its_own_data_set_and_threat(tmp_path, other):
    ((number,), _) = read_published(write(tmp_path))
    asked = {"dataset": "cifar10", "eps": 8 / 255, "eps_text": "8/255"}
    assert number.fits(run(**asked).identity)
    assert not number.fits(run(**asked | other).identity)


def test_a_folder_gives_what_lies_in_folders_named_after_norms(tmp_path):
    write(tmp_path, "cifar10/L2/B.json", eps="0.5")
    write(tmp_path, "cifar10/Linf/A.json")
    write(tmp_path, "cifar10/corruptions/C.json")
    numbers, left_out = read_published(tmp_path)
    assert [(number.model, str(number.norm)) for number in numbers] == [("B", "l2"), ("A", "linf")]
    assert left_out == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"autoattack_acc": None}, "autoattack_acc: Field required"),
        ({"clean_acc": ""}, "clean_acc: Input should be a valid number"),
        ({"clean_acc": "195"}, "clean_acc: Input should be less than or equal to 100"),
        ({"clean_acc": "nan"}, "clean_acc"),
        ({"eps": "eight"}, "could not convert string to float"),
        ({"eps": "1e999999999"}, "expected a finite number"),
        ({"eps": "8/0"}, "holds no published number"),
        ({"eps": None}, "eps: Field required"),
        ({"threat_model": "corruptions"}, "'corruptions' is not a valid Norm"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_and_the_others_are_read(tmp_path, changes, reason):
    write(tmp_path, "cifar10/Linf/Good.json")
    write(tmp_path, "cifar10/Linf/Bad.json", **changes)
    numbers, (left_out,) = read_published(tmp_path)
    assert [number.model for number in numbers] == ["Good"]
    assert left_out.startswith(f"'{tmp_path}/cifar10/Linf/Bad.json' holds no published number: ")
    assert reason in left_out


def test_a_file_without_a_norm_is_named(tmp_path):
    _, (left_out,) = read_published(write(tmp_path, "somewhere/A.json"))
    assert "'somewhere' is not a valid Norm" in left_out


def test_nothing_there_is_an_error(tmp_path):
    with pytest.raises(
        RecordError, match=r"there is no .*: give a file or folder of RobustBench's model_info"
    ):
        read_published(tmp_path / "nowhere")


@given(
    st.binary(max_size=50)
    | st.sampled_from([b"", b"[]", b"{}", b"[[]]", b"null", b"1e999", b'"\\ud800"'])
)
def test_no_content_whatever_is_more_than_left_out(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("published") / "Linf.json"
    path.write_bytes(content)
    numbers, left_out = read_published(path)
    assert numbers == ()
    assert len(left_out) == (content.strip() != b"[]") or content.strip() == b""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_become_printable(tmp_path, name):
    ((number,), _) = read_published(
        write(tmp_path, name=name, venue=name, link=name, architecture=name)
    )
    assert {number.title, number.venue, number.link, number.architecture} == {printable(name)}


def test_what_is_exported_for_robustbench_reads_back(tmp_path):
    records = [
        adaptive("a", 0.8, 0.2),
        run("b", 0.5, attacks=AUTOATTACK, norm="l2"),
        run("c", attacks=["apgd-ce"]),
    ]
    path = tmp_path / "leaderboard.robustbench.json"
    path.write_text(robustbench.render(leaderboard(*records)))
    numbers, left_out = read_published(path)
    assert numbers == ()
    assert "2.autoattack_acc" in left_out[0] or "autoattack_acc: Field required" in left_out[0]
    path.write_text(robustbench.render(leaderboard(*records[:2])))
    numbers, _ = read_published(path)
    assert {(one.model, str(one.norm), one.robust, one.standard) for one in numbers} == {
        ("a", "linf", 0.2, 0.8),
        ("b", "l2", 0.5, None),
    }
