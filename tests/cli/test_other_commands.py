"""Help for every command, and what `list`, `leaderboard`, `convert` and `train` write."""

import csv
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_kd.core.plugins import components

ROOT = Path(__file__).parents[2]
COMMANDS = sorted(components("cli"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(rkd, command):
    told = rkd(command, "--help")
    assert told.code == 0
    assert re.search(rf"Examples?:\n +rkd {command}", told.stdout)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_says_what_it_does(command):
    from importlib import import_module

    made = import_module(f"robustbench_kd.cli.{command}").command
    options = [parameter for parameter in made.params if parameter.param_type_name == "option"]
    assert all(option.help for option in options)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    assert any(f"rkd {command}" in page.read_text(encoding="utf-8") for page in pages)


def test_the_list_of_commands_is_the_first_line_of_each_file(rkd):
    text = " ".join(rkd("--help").stdout.split())
    for name, component in components("cli").items():
        assert f"{name} {component.summary}" in text


def test_no_arguments_are_a_question_for_help(rkd):
    told = rkd()
    assert told.code == 2
    assert "Commands:" in told.stdout + told.stderr


def test_the_version_is_that_of_the_package(rkd):
    from importlib.metadata import version

    assert rkd("--version").stdout == f"rkd, version {version('robustbench-kd')}\n"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["eval", "--help"], ["list"], ["evl"], ["--version"]]
)
def test_what_needs_no_model_loads_no_torch(arguments):
    program = (
        "import sys\nfrom robustbench_kd.cli import main\n"
        f"try:\n    main({arguments})\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'scipy', 'pandas')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode
        == 0
    )


def cpu_seconds(*arguments, attempts=5):
    """The least processor time of several attempts, which does not depend on what else the machine
    does."""

    def attempt():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return min(attempt() for _ in range(attempts))


def test_help_answers_within_a_third_of_a_second_of_an_empty_python():
    assert cpu_seconds("-m", "robustbench_kd", "--help") < cpu_seconds("-c", "") + 0.3


def test_list_names_every_component_with_its_summary(rkd):
    found = json.loads(rkd("list", "--json").stdout)
    assert {"architectures", "data sets", "suites", "families"} <= set(found)
    assert found["suites"].keys() >= {"standard", "plus", "rand"}
    assert all(summary for summaries in found.values() for summary in summaries.values())
    table = rkd("list").stdout
    assert all(name in table for summaries in found.values() for name in summaries)


def test_a_leaderboard_is_printed_and_written_in_two_forms(rkd, digits_net, tmp_path):
    rkd("eval", *digits_net, "--name", "one|two")
    rkd("eval", *digits_net, "--name", "other", "--threat", "linf:0.2")
    results = tmp_path / "results"
    told = rkd("leaderboard", results)
    assert told.code == 0
    assert "digits, 20 examples, linf 0.1, apgd-ce by native" in told.stdout
    assert "one|two" in told.stdout
    assert "one\\|two" in (results / "leaderboard.md").read_text()
    rows = list(csv.DictReader((results / "leaderboard.csv").read_text().splitlines()))
    assert [row["stage"] for row in rows] == ["clean", "apgd-ce", "final"] * 3
    assert {row["model"] for row in rows} == {"one|two", "other"}


def test_a_leaderboard_in_json_is_its_records(rkd, digits_net, tmp_path):
    (record,) = json.loads(rkd("eval", *digits_net, "--json").stdout)
    assert json.loads(rkd("leaderboard", tmp_path / "results", "--json").stdout) == [record]


def test_what_a_leaderboard_leaves_out_is_said(rkd, digits_net, tmp_path):
    rkd("eval", *digits_net)
    (path,) = tmp_path.glob("results/*/*/run.json")
    path.write_text(path.read_text().replace('"status": "complete"', '"status": "interrupted"'))
    told = rkd("leaderboard", tmp_path / "results")
    assert told.code == 0
    assert "left out:" in told.stderr
    assert "is unfinished" in told.stderr


def test_a_leaderboard_of_nothing_is_empty(rkd, tmp_path):
    told = rkd("leaderboard", tmp_path)
    assert (told.code, told.stdout) == (0, "")
    assert "No finished runs." in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.parametrize("place", ["leaderboard.csv", "leaderboard.md"])
def test_a_leaderboard_that_cannot_be_written_is_an_error(rkd, tmp_path, place):
    (tmp_path / place).mkdir()
    assert f"cannot write '{tmp_path / place}'" in rkd("leaderboard", tmp_path).error(2)


def test_a_network_is_trained_converted_and_evaluated(rkd, tmp_path):
    quick = ["--set", "epochs=1", "--set", "validation=50", "--set", "validation_steps=1"]
    net = ["--arch", "small_cnn", "--arch-arg", "width=4"]
    trained = rkd(
        "train",
        "digits-plain",
        "--name",
        "net",
        "--out",
        tmp_path,
        "--threat",
        "linf:0.1",
        *net,
        *quick,
    )
    assert trained.code == 0, trained.stderr
    assert trained.stdout == f"{tmp_path / 'net.toml'}\n"
    assert "epoch 1 of 1" in trained.stderr
    assert not list(tmp_path.glob("*.tmp"))
    converted = rkd(
        "convert", tmp_path / "net.safetensors", tmp_path / "copy", "--dataset", "digits", *net
    )
    assert converted.stdout == f"{tmp_path / 'copy.toml'}\n"
    cards = [tmp_path / "net.toml", tmp_path / "copy.toml"]
    few = [
        "--examples",
        10,
        "--suite",
        "apgd-ce",
        "--threat",
        "linf:0.05",
        "--results",
        tmp_path / "results",
        "--json",
    ]
    first, second = json.loads(rkd("eval", *cards, *few).stdout)
    assert first["robust"] == second["robust"]
    assert first["identity"]["checkpoint_sha256"] == second["identity"]["checkpoint_sha256"]
