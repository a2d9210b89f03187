"""Converted checkpoints: the same network, in files that hold no code."""

import os
import stat

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from targets import open_one
from torch import nn

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.checkpoints.card import Weights, read_card
from robustbench_kd.checkpoints.convert import write_weights
from robustbench_kd.checkpoints.weights import sha256
from robustbench_kd.cli import main
from robustbench_kd.core.errors import RecordError, UsageError


def test_written_weights_are_the_network_and_carry_their_sha256(tmp_path):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    network[1].weight = network[1].bias  # shared memory, which safetensors alone refuses
    folder = tmp_path / "new" / "folder"
    described = write_weights(network, folder, "net")
    state = load_file(folder / described.file)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert [path.name for path in folder.iterdir()] == ["net.safetensors"]
    assert described.sha256 == sha256(folder / described.file)
    assert Weights.model_validate(described.model_dump()) == described


def test_the_umask_decides_who_can_read_written_weights(tmp_path):
    before = os.umask(0o027)
    try:
        write_weights(nn.Linear(1, 1), tmp_path, "net")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "net.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("name", ["", "a/b", "..\\up", "two\nlines", "nul\0"])
def test_a_name_that_cannot_be_a_file_name_is_refused(name, tmp_path):
    with pytest.raises(UsageError, match="expected a name that can be a file name, got '"):
        write_weights(nn.Linear(1, 1), tmp_path, name)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        RecordError,
        match=r"cannot write '.*net.safetensors': .*; free space or choose another folder",
    ):
        write_weights(nn.Linear(1, 1), tmp_path / "file", "net")


# Command line


class Hostile:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


NETWORK = ["--arch", "small_cnn", "--arch-arg", "width=2", "--dataset", "digits"]


@pytest.mark.parametrize(
    ("command", "rest"), [("eval", ["--threat", "linf:0.1", "--results"]), ("convert", [])]
)
def test_the_command_line_refuses_a_hostile_file_in_one_line(command, rest, tmp_path):
    path = tmp_path / "net.pt"
    torch.save(
        {"state_dict": nn.Linear(1, 1).state_dict(), "extra": Hostile(tmp_path / "marker")}, path
    )
    result = CliRunner().invoke(main, [command, str(path), *rest, str(tmp_path / "new"), *NETWORK])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(
        f"Error: '{path}' wants to run posix.mkdir when loaded: refused, nothing was executed"
    )
    assert result.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["net.pt"]


def test_a_converted_checkpoint_is_the_same_network(tmp_path):
    network = build_network("small_cnn", {"width": 2}, classes=10, shape=(1, 8, 8)).eval()
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save(
        {"net": state | {"mean": torch.tensor([0.5]), "std": torch.tensor([0.25])}},
        tmp_path / "old.pth",
    )
    result = CliRunner().invoke(
        main, ["convert", str(tmp_path / "old.pth"), str(tmp_path / "new" / "net"), *NETWORK]
    )
    assert (result.exit_code, result.stdout) == (0, f"{tmp_path / 'new' / 'net.toml'}\n")
    assert "old: took the normalisation 0.5/0.25 from the file" in result.stderr
    subject = open_one(tmp_path / "new" / "net.toml")
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(subject.model(images), network((images - 0.5) / 0.25))
    assert subject.notes == ()
    made = read_card(tmp_path / "new" / "net.toml").made
    assert made == {"converted_from": "old.pth", "original_sha256": sha256(tmp_path / "old.pth")}
