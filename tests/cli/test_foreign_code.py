"""Code of other people: it prints where it likes, and imports as a script of its folder would."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONS = ["--dataset", "digits", "--examples", "20", "--threat", "linf:0.1", "--suite", "apgd-ce"]

PRINTS = """
import os, subprocess, sys
import torch
from torch import nn

print("import")

class Loud(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x):
        print("forward", tuple(x.shape))
        sys.__stdout__.write("around\\n")
        os.write(1, b"below\\n")
        return self.body(x)

def make():
    torch.manual_seed(0)
    print("make")
    subprocess.run([sys.executable, "-c", "print('other process')"], check=True)
    return Loud().eval()
"""


@pytest.fixture
def repository(tmp_path):
    package = tmp_path / "first" / "models"
    package.mkdir(parents=True)
    (package / "small.py").write_text(SIBLING)
    (tmp_path / "first" / "script.py").write_text("from models.small import make\n")
    return tmp_path


SIBLING = """
import torch
from torch import nn

def make(classes=10):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, classes)).eval()
"""


def started(folder, *arguments):
    """What the command says that is installed, whose import path lacks the working directory."""
    starter = "import sys; sys.path.remove(''); from robustbench_kd.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", starter, *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("command", ["eval", "check"])
def test_what_foreign_code_prints_leaves_standard_output_to_the_data(tmp_path, command):
    (tmp_path / "loud.py").write_text(PRINTS)
    options = OPTIONS if command == "eval" else OPTIONS[:-2]
    told = started(tmp_path, command, "loud.py:make", *options, "--json")
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)
    for line in ("import", "make", "forward (", "around", "below", "other process"):
        assert line in told.stderr


def test_in_this_process_it_does_so_too_and_standard_output_comes_back(rkd, tmp_path):
    (tmp_path / "loud.py").write_text(PRINTS.partition("        sys.__stdout__")[0] + MAKE)
    before = sys.stdout
    told = rkd(
        "eval", f"{tmp_path}/loud.py:make", *OPTIONS, "--results", tmp_path / "out", "--json"
    )
    assert json.loads(told.stdout)
    assert "forward (" in told.stderr
    assert sys.stdout is before
    assert rkd("list").stdout


MAKE = """        return self.body(x)

def make():
    return Loud().eval()
"""


def test_a_script_and_a_module_of_a_repository_are_the_same_network(repository):
    digests = []
    for target in ("script.py:make", "models.small:make"):
        told = started(repository / "first", "eval", target, *OPTIONS, "--json")
        assert told.returncode == 0, told.stderr
        digests.append(json.loads(told.stdout)[0]["identity"]["checkpoint_sha256"])
    assert digests[0] == digests[1]


@pytest.mark.data
def test_a_real_network_whose_head_reads_what_a_hook_keeps(rkd, test_data, tmp_path):
    """A copy of it reads the features of images that the original was asked about before."""
    (tmp_path / "hooked.py").write_text(HOOKED.format(data=str(test_data)))
    told = rkd(
        *("eval", f"{tmp_path / 'hooked.py'}:make", "--results", tmp_path / "out", "--json"),
        *("--dataset", f"npz:{test_data / 'cifar10_test_1000.npz'}", "--examples", 16),
        *("--threat", "linf:8/255", "--suite", "apgd-ce", "--no-probes", "--batch-size", 16),
    )
    (record,) = json.loads(told.stdout)
    assert (record["clean"]["value"], record["robust"]["value"]) == (1, 0)
    assert "fold was left out of the search" in told.stderr


HOOKED = """
import sys
sys.path.insert(0, {data!r})
import torch
from torch import nn
from real_models import resnet20

class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = resnet20()
        self.last = [part for part in self.net.modules() if isinstance(part, nn.Linear)][-1]
        self.last.register_forward_pre_hook(lambda _, inputs: setattr(self, "kept", inputs[0]))

    def forward(self, x):
        self.net(x)
        return self.last(self.kept)

def make():
    net = Hooked()
    file = {data!r} + "/models/resnet20-12fca82f.th"
    stored = torch.load(file, weights_only=True, map_location="cpu")
    state = {{key.removeprefix("module."): value for key, value in stored["state_dict"].items()}}
    net.net.load_state_dict(state)
    return net.eval()
"""
