"""Real networks: nothing is found in honest ones, and what masks them is."""

from dataclasses import replace

import pytest
import torch
from maskings import MASKINGS
from oracles import request

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.core.threat import Threat
from robustbench_kd.datasets import open_dataset
from robustbench_kd.engine.evaluate import evaluate
from robustbench_kd.engine.probing.anatomy import examine
from robustbench_kd.tensors.oracle import Oracle

pytestmark = pytest.mark.data
CPU = torch.device("cpu")
NETWORKS = {
    "resnet2b": "resnet2b.pth",
    "cnn_a": "cifar_cnn_a_adv.model",
    "resnet20": "resnet20-12fca82f.th",
}
# What the network computes stays the same, so that what is proved of it holds.
SAME_FUNCTION = ["input detached", "one-hot", "gradient flipped", "numpy on both sides"]


def network(folder, name):
    choices = Choices(architecture=f"{folder / 'real_models.py'}:{name}")
    (target,) = describe(str(folder / "models" / NETWORKS[name]), choices)
    return load(target, classes=10, shape=(3, 32, 32)).model.eval()


@pytest.fixture
def images(test_data):
    return open_dataset(f"npz:{test_data / 'cifar10_test_1000.npz'}", limit=40)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_honest_network_costs_a_look(name, test_data, images):
    anatomy = examine(Oracle(network(test_data, name), CPU), images, Threat.parse("linf:2/255"), 0)
    assert anatomy.own is None
    assert anatomy.passes < 250


@pytest.mark.parametrize("masking", SAME_FUNCTION)
def test_no_proved_image_falls_to_a_found_surface(masking, test_data, tmp_path):
    data = open_dataset(f"npz:{test_data / 'certified_resnet2b.npz'}")
    model = MASKINGS[masking](network(test_data, "resnet2b")).eval()
    asked = request(model, data, threat="linf:2/255", suite="apgd-ce+adaptive")
    brief = {"apgd-margin": {"steps": 20}}
    adaptive = replace(asked.suite.adaptive, attacks=("apgd-margin",), budgets=brief, surfaces={})
    suite = replace(asked.suite, budgets={"apgd-ce": {"steps": 20}}, adaptive=adaptive)
    record = evaluate(replace(asked, suite=suite), tmp_path).record
    assert record.robust.value == 1


@pytest.mark.parametrize("masking", SAME_FUNCTION)
def test_the_network_inside_is_reached(masking, test_data, images):
    threat = Threat.parse("linf:6/255")
    model = MASKINGS[masking](network(test_data, "resnet2b"))
    anatomy = examine(Oracle(model.eval(), CPU), images, threat, 0)
    assert anatomy.found[0].broken > 5 * max(1, anatomy.own.broken)
