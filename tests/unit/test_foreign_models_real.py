"""A real robust network with habits of published code gets the number of the plain network."""

import pytest
from oracles import request
from torch import nn
from torch.nn import functional

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import evaluate

pytestmark = pytest.mark.data


@pytest.fixture
def network(test_data):
    choices = Choices(architecture=f"{test_data / 'real_models.py'}:resnet2b")
    (target,) = describe(str(test_data / "models" / "resnet2b.pth"), choices)
    return load(target, classes=10, shape=(3, 32, 32)).model.eval()


@pytest.fixture
def images(test_data):
    return open_dataset(f"npz:{test_data / 'cifar10_test_1000.npz'}", limit=12)


class InPlace(nn.Module):
    """Shifts its argument in place: without a copy, every later question asks of other images."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.sub_(0.25).add_(0.25).clamp_(0, 1))


class Shifted(InPlace):
    """Leaves its argument shifted, and computes the plain answer."""

    def forward(self, images):
        return self.network(images.sub_(0.25) + 0.25)


class Dropping(InPlace):
    """Drops pixels in evaluation mode, too."""

    def forward(self, images):
        return self.network(functional.dropout(images, 0.3))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["native", "autoattack"])
@pytest.mark.parametrize("habit", [InPlace, Shifted])
def test_a_model_that_changes_its_argument_gets_the_number_of_the_plain_one(
    engine, habit, network, images, tmp_path
):
    options = {"threat": "linf:4/255", "suite": "square", "engine": engine}
    options |= {"batch_size": 8, "probes": False}
    plain = evaluate(request(network, images, **options), tmp_path / "plain").record
    changing = evaluate(request(habit(network), images, **options), tmp_path / "changing").record

    assert plain.robust.value < plain.clean.value
    assert changing.robust.value == pytest.approx(plain.robust.value, abs=0.09)  # one image rounds
    assert "changes-argument" in {finding.check for finding in changing.findings}


@pytest.mark.parametrize("probes", [True, False])
def test_hidden_chance_shows_where_the_scout_breaks_everything(probes, network, images, tmp_path):
    options = {"threat": "linf:0.00001", "suite": "apgd-ce", "probes": probes}
    record = evaluate(request(Dropping(network), images, **options), tmp_path).record
    assert "hidden-chance" in {finding.check for finding in record.findings}
    assert record.verdict != "consistent"
