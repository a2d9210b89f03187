"""`rkd eval`: what it writes, where, and how it ends."""

import csv
import json

import pytest
import torch
from oracles import nearest_mean

from robustbench_kd.core.rundir import EXAMPLES, RECORD
from robustbench_kd.core.text import printable
from robustbench_kd.datasets import open_dataset
from robustbench_kd.models import small_cnn

NET = ["--dataset", "digits", "--arch", "small_cnn", "--arch-arg", "width=4"]


def options(results, **changed):
    known = {
        "dataset": "digits",
        "examples": 20,
        "threat": "linf:0.1",
        "suite": "apgd-ce",
        "results": results,
    }
    return [
        part
        for name, value in (known | changed).items()
        for part in (f"--{name.replace('_', '-')}", value)
    ]


def write_net(path, **arguments):
    path.parent.mkdir(exist_ok=True)
    built = small_cnn.build(**{"classes": 10, "channels": 1, "size": 8, "width": 4, **arguments})
    torch.save(built.state_dict(), path)


def test_a_factory_is_evaluated_and_its_run_stored(rkd, digits_net, tmp_path):
    told = rkd("eval", *digits_net)
    assert told.code == 0
    (folder,) = (tmp_path / "results" / "nearest_mean").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == [
        "attacks.csv",
        EXAMPLES,
        "findings.json",
        RECORD,
    ]
    assert len(list(csv.DictReader((folder / EXAMPLES).read_text().splitlines()))) == 20
    assert json.loads((folder / RECORD).read_text())["run_id"] == folder.name


def test_the_table_is_data_and_everything_else_is_not(rkd, digits_net):
    told = rkd("eval", *digits_net)
    heading, line = (row for row in told.stdout.splitlines() if row.strip())
    assert heading.split()[:3] == ["model", "threat", "n"]
    assert line.split()[:3] == ["nearest_mean", "linf:0.1", "20"]
    assert "nearest_mean linf:0.1 apgd-ce" in told.stderr
    assert "done in" in told.stderr


def test_json_is_a_list_of_records_and_nothing_else_is_written_to_standard_output(
    rkd, digits_net, tmp_path
):
    told = rkd("eval", *digits_net, "--json")
    (record,) = json.loads(told.stdout)
    (path,) = tmp_path.glob(f"results/*/*/{RECORD}")
    assert record == json.loads(path.read_text())
    assert record["clean"]["n"] == record["identity"]["examples"] == 20


def test_the_same_command_returns_the_stored_result(rkd, digits_net):
    first, second = (json.loads(rkd("eval", *digits_net, "--json").stdout) for _ in range(2))
    assert first == second
    assert "stored result" in rkd("eval", *digits_net).stderr


def test_fresh_evaluates_again(rkd, digits_net):
    rkd("eval", *digits_net)
    assert "done in" in rkd("eval", *digits_net, "--fresh").stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [("--seed", 1), ("--engine", "autoattack"), ("--examples", 10), ("--name", "x")],
)
def test_another_question_is_another_run(rkd, digits_net, tmp_path, option, value):
    rkd("eval", *digits_net)
    rkd("eval", *digits_net, option, value)
    assert len(list(tmp_path.glob(f"results/*/*/{RECORD}"))) == 2


def test_a_curve_is_one_run_per_radius_and_never_rises(rkd, digits_net):
    records = json.loads(rkd("eval", *digits_net, "--threat", "linf:0.02,0.01", "--json").stdout)
    assert [record["identity"]["eps_text"] for record in records] == ["0.1", "0.01", "0.02"]
    smallest, middle, largest = sorted(records, key=lambda record: record["identity"]["eps"])
    assert smallest["robust"]["value"] >= middle["robust"]["value"] >= largest["robust"]["value"]


def exactly_robust(model, images, labels, eps):
    """Which images of a linear model no point of the box within linf `eps` can break, in closed
    form."""
    low, high = (
        (images - eps).clamp(min=0).flatten(1)[:, None],
        (images + eps).clamp(max=1).flatten(1)[:, None],
    )
    slope = model.weight[labels][:, None] - model.weight[None]
    worst = (
        torch.where(slope > 0, slope * low, slope * high).sum(dim=2)
        + model.bias[labels][:, None]
        - model.bias
    )
    return (worst.scatter(1, labels[:, None], torch.inf) > 0).all(dim=1)


def test_a_linear_model_gets_exactly_the_accuracy_that_it_has(rkd, factories, tmp_path):
    model, data = nearest_mean(), open_dataset("digits", limit=50)
    rkd(
        "eval", f"{factories}:nearest_mean", *options(tmp_path, examples=50, suite="apgd-ce,apgd-t")
    )
    (path,) = tmp_path.glob(f"*/*/{EXAMPLES}")
    found = [row["robust"] == "True" for row in csv.DictReader(path.read_text().splitlines())]
    expected = exactly_robust(model, data.images, data.labels, 0.1).tolist()
    assert found == expected
    assert 10 < sum(expected) < 45


def test_a_card_brings_its_data_and_its_threats(rkd, factories, tmp_path):
    write_net(tmp_path / "net.pt")
    converted = rkd(
        "convert", tmp_path / "net.pt", tmp_path / "nets" / "net", *NET, "--threat", "linf:0.1,0.2"
    )
    assert converted.code == 0, converted.stderr
    told = rkd(
        "eval",
        tmp_path / "nets",
        "--examples",
        10,
        "--suite",
        "apgd-ce",
        "--results",
        tmp_path,
        "--json",
    )
    records = json.loads(told.stdout)
    assert [record["identity"]["eps_text"] for record in records] == ["0.1", "0.2"]
    assert {record["identity"]["dataset"] for record in records} == {"digits"}


def test_several_checkpoints_are_evaluated_in_turn(rkd, tmp_path):
    for name in ("epoch-10.pt", "epoch-2.pt"):
        write_net(tmp_path / "run" / name)
    told = rkd(
        "eval",
        tmp_path / "run",
        *options(tmp_path / "results"),
        "--arch",
        "small_cnn",
        "--arch-arg",
        "width=4",
        "--json",
    )
    assert [record["identity"]["model"] for record in json.loads(told.stdout)] == [
        "epoch-2",
        "epoch-10",
    ]


@pytest.mark.parametrize("command", ["eval", "check"])
def test_one_bad_target_does_not_stop_the_others(rkd, tmp_path, command):
    write_net(tmp_path / "run" / "epoch-1.pt")
    (tmp_path / "run" / "epoch-2.pt").write_bytes(b"no weights")
    write_net(tmp_path / "run" / "epoch-3.pt")
    arguments = ["--arch", "small_cnn", "--arch-arg", "width=4", "--json"]
    if command == "eval":
        arguments += options(tmp_path / "results")
    else:
        arguments += ["--dataset", "digits", "--examples", "8"]
    told = rkd(command, tmp_path / "run", *arguments)
    assert told.code == 2
    assert len(json.loads(told.stdout)) == 2
    lines = told.stderr.splitlines()
    name = "epoch-2" if command == "eval" else str(tmp_path / "run" / "epoch-2.pt")
    assert lines[-1] == f"Error: 1 failed: {name}"
    assert any(line.startswith(f"{name}: ") and "neither safetensors" in line for line in lines)


def test_a_card_that_cannot_be_read_does_not_stop_the_others(rkd, tmp_path):
    write_net(tmp_path / "net.pt")
    (tmp_path / "bad.toml").write_text("name = ")
    arguments = ["--arch", "small_cnn", "--arch-arg", "width=4", "--json"]
    told = rkd(
        "eval", tmp_path / "bad.toml", tmp_path / "net.pt", *options(tmp_path / "r"), *arguments
    )
    assert told.code == 2
    assert [one["identity"]["model"] for one in json.loads(told.stdout)] == ["net"]
    assert told.stderr.splitlines()[-1] == f"Error: 1 failed: {tmp_path / 'bad.toml'}"


def test_strict_refuses_an_unreliable_number_after_reporting_it(rkd, factories, tmp_path):
    arguments = [f"{factories}:masked", *options(tmp_path)]
    lenient = rkd("eval", *arguments)
    assert lenient.code == 0
    strict = rkd("eval", *arguments, "--strict", "--json")
    assert "unreliable under --strict: masked; the findings say why" in strict.error(3)
    assert json.loads(strict.stdout)[0]["verdict"] == "unreliable"


def test_strict_accepts_a_consistent_number(rkd, digits_net):
    assert rkd("eval", *digits_net, "--strict").code == 0


@pytest.mark.parametrize(
    "name", ["a:fire:b", "[bold]x[/]", "a\\b", "\u5b66\u751f", "x" * 200, "tab\there"]
)
def test_a_name_is_shown_and_stored_as_it_is(rkd, digits_net, name):
    told = rkd("eval", *digits_net, "--name", name, "--json")
    assert json.loads(told.stdout)[0]["identity"]["model"] == printable(name)


def test_findings_are_said(rkd, factories, tmp_path):
    told = rkd("eval", f"{factories}:dropout", *options(tmp_path))
    assert (
        "info: training-mode: the model was left in training mode; it was put in evaluation mode"
        in told.stderr
    )


def test_probabilities_are_a_finding_and_no_error(rkd, factories, tmp_path):
    told = rkd("eval", f"{factories}:probabilities", *options(tmp_path), "--json")
    assert told.code == 0
    (record,) = json.loads(told.stdout)
    assert record["verdict"] == "unreliable"  # its weights are random: no better than chance
    assert "probabilities" in {finding["check"] for finding in record["findings"]}
    assert "yellow: probabilities:" in told.stderr


def test_what_is_done_is_reported_even_if_the_next_checkpoint_fails(rkd, factories, tmp_path):
    told = rkd(
        "eval", f"{factories}:linear", f"{factories}:nan_logits", *options(tmp_path), "--json"
    )
    assert "NaN or infinite logits" in told.stderr
    assert told.error(2) == "1 failed: nan_logits"
    assert [record["identity"]["model"] for record in json.loads(told.stdout)] == ["linear"]


def test_every_threat_that_is_done_is_reported_even_if_the_next_fails(rkd, factories, tmp_path):
    told = rkd(
        "eval",
        f"{factories}:exhausted",
        *options(tmp_path, threat="linf:0.1"),
        "--threat",
        "linf:0.2",
        "--json",
        "--engine",
        "autoattack",
    )
    assert "out of memory" in told.error(4)
    assert [record["identity"]["eps_text"] for record in json.loads(told.stdout)] == ["0.1"]


def test_a_table_in_a_file_is_not_cut_off(rkd, digits_net):
    told = rkd("eval", *digits_net, "--name", "x" * 200)
    assert "x" * 200 in told.stdout
    assert "\u2026" not in told.stdout
