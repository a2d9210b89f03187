"""One bad target does not stop the others: it is named at the end, and the exit code is 2."""

import json

import pytest
import torch
from torch import nn

OPTIONS = ["--dataset", "digits", "--examples", 20, "--threat", "linf:0.1", "--suite", "apgd-ce"]
FACTORIES = """
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()

def raises():
    raise RuntimeError("no weights here")

def leaves():
    raise SystemExit(1)

def no_module():
    return 3

def wrong_shape():
    return nn.Sequential(nn.Flatten(), nn.Linear(65, 10))

def undefined():
    net = good()
    net[1].bias.data.fill_(torch.nan)
    return net

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("no way back")

class OneWay(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = good()

    def forward(self, images):
        return self.net(Backward.apply(images))

def one_way():
    return OneWay().eval()
"""


@pytest.fixture
def code(tmp_path):
    path = tmp_path / "code.py"
    path.write_text(FACTORIES)
    return lambda name: f"{path}:{name}"


BAD = {
    "a factory that raises": "raises",
    "a factory that leaves": "leaves",
    "a factory of something else": "no_module",
    "a factory that is not there": "missing",
    "a network for other images": "wrong_shape",
    "a network of undefined answers": "undefined",
    "a network whose backward pass raises": "one_way",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_the_target_after_a_bad_one_is_evaluated(rkd, code, tmp_path, bad):
    told = rkd(
        *("eval", code(bad), code("good"), *OPTIONS, "--json", "--results", tmp_path / "results")
    )
    assert told.error(2).startswith("1 failed: ")
    assert bad in told.error(2)
    assert [record["identity"]["model"] for record in json.loads(told.stdout)] == ["good"]
    assert told.stderr.count(f"{bad}: ") >= 1


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_a_single_bad_target_says_its_own_line_alone(rkd, code, tmp_path, bad):
    told = rkd("eval", code(bad), *OPTIONS, "--results", tmp_path / "results")
    assert "failed: " not in told.error(2).partition(f"{bad}' failed: ")[0]


@pytest.fixture
def files(tmp_path):
    """Good weights in the middle of a folder, with a bad card and bad files around it."""
    folder = tmp_path / "nets"
    folder.mkdir()
    (folder / "a.toml").write_text("name = 1")
    (folder / "b.pt").write_text("no weights")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    torch.save(net.state_dict(), folder / "c.pt")
    torch.save({"other": torch.zeros(3)}, folder / "d.pt")
    return folder


def test_bad_files_of_a_folder_are_named_and_the_good_one_is_evaluated(rkd, files, code, tmp_path):
    told = rkd(
        *("eval", files, "--arch", code("good"), *OPTIONS, "--json"),
        *("--results", tmp_path / "results"),
    )
    assert told.error(2).startswith("3 failed: ")
    assert [record["identity"]["model"] for record in json.loads(told.stdout)] == ["c"]


def test_check_goes_on_too(rkd, files, code):
    told = rkd(
        *("check", files, "--arch", code("good"), "--dataset", "digits", "--examples", 20, "--json")
    )
    assert told.error(2).startswith("3 failed: ")
    assert [fact["model"] for fact in json.loads(told.stdout)] == ["c"]


def test_suite_goes_on_in_a_folder(rkd, files, code, tmp_path):
    sheet = tmp_path / "sheet.toml"
    sheet.write_text(
        f'checkpoints = ["{files}"]\ndatasets = ["digits"]\nthreats = ["linf:0.1"]\n'
        f'suites = ["apgd-ce"]\n[options]\nexamples = 20\narch = "{code("good")}"\n'
    )
    told = rkd("suite", sheet, "--results", tmp_path / "results", "--trust-code", "--json")
    assert told.error(2).startswith("3 failed: ")
    assert len(json.loads(told.stdout)) == 1


def test_what_cannot_be_read_does_not_stop_the_others(rkd, code, tmp_path, monkeypatch):
    from robustbench_kd.checkpoints import target

    describe = target.describe

    def guarded(text, choices):
        if text == "locked.pt":
            raise PermissionError(13, "Permission denied", text)
        return describe(text, choices)

    monkeypatch.setattr(target, "describe", guarded)
    told = rkd(
        *("eval", "locked.pt", code("good"), *OPTIONS, "--json", "--results", tmp_path / "results")
    )
    assert told.error(2) == "1 failed: locked.pt"
    assert "cannot read or write 'locked.pt': Permission denied" in told.stderr
    assert json.loads(told.stdout)


def test_an_interruption_ends_the_command(rkd, code, monkeypatch):
    from robustbench_kd.checkpoints import target

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "load", interrupted)
    assert rkd("eval", code("good"), code("good"), *OPTIONS).code == 130
