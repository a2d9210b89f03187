"""State dicts: found inside the wrappers of trainers, renamed, and loaded strictly."""

import copy

import pytest
import torch
from state_dicts import Net, holds, load, prefixed, refusal, weights
from torch import nn

from robustbench_kd.checkpoints.architecture import build_network, nearest_architecture
from robustbench_kd.checkpoints.state import fit
from robustbench_kd.checkpoints.weights import read_weights
from robustbench_kd.core.plugins import components

# Where the state dict is


def test_a_bare_state_dict_loads_without_a_note():
    state = weights()
    network, normalisation, notes = load(state)
    assert holds(network, state)
    assert (normalisation, notes) == (None, [])


@pytest.mark.parametrize(
    "key", ["state_dict", "model_state_dict", "model", "net", "network", "params", "weights"]
)
def test_a_state_dict_is_found_under_the_usual_keys(key):
    state = weights()
    network, _, notes = load({"epoch": 3, key: state})
    assert holds(network, state)
    assert notes == [f"weights found under '{key}'"]


@pytest.mark.parametrize("model", [weights(), "resnet18", {"name": "resnet18"}])
def test_state_dict_goes_before_model(model):
    state = weights()
    assert holds(load({"model": model, "state_dict": state})[0], state)


@pytest.mark.parametrize(
    "content", [lambda s: [s], lambda s: (s,), lambda s: {"model": [{"state_dict": s}]}]
)
def test_lists_of_one_and_nested_dicts_are_opened(content):
    state = weights()
    assert holds(load(content(state))[0], state)


def test_averaged_weights_are_left_and_named_where_there_are_others():
    state = weights()
    network, _, notes = load({"state_dict": state, "state_dict_ema": weights()})
    assert holds(network, state)
    assert "the file also holds averaged weights: --weights-key state_dict_ema takes them" in notes


def test_averaged_weights_are_taken_by_key():
    averaged = weights()
    network, _, notes = load(
        {"state_dict": weights(), "state_dict_ema": averaged}, key="state_dict_ema"
    )
    assert holds(network, averaged)
    assert notes == ["weights found under 'state_dict_ema'"]


def test_averaged_weights_are_taken_where_nothing_else_is_there():
    averaged = weights()
    network, _, notes = load({"model_ema": averaged, "epoch": 3})
    assert holds(network, averaged)
    assert "these are averaged weights" in notes


def test_the_counter_of_averaged_models_is_dropped_with_a_note():
    state = weights()
    network, _, notes = load({"n_averaged": torch.tensor(7), **prefixed("module.", state)})
    assert holds(network, state)
    assert notes == ["dropped the counter of averaged models", "stripped the prefix 'module.'"]


@pytest.mark.parametrize("key", ["nets.student", "ensemble.1", "ensemble.1.model"])
def test_a_dotted_key_leads_through_dicts_and_lists(key):
    state = weights()
    content = {
        "nets": {"student": state, "teacher": weights()},
        "ensemble": [weights(), {"model": state}],
    }
    assert holds(load(content, key=key)[0], state)


def test_entries_that_are_no_tensors_are_left_out_with_a_note():
    state = weights()
    network, _, notes = load({**state, "epoch": 3, "args": {"lr": 0.1}, 7: torch.ones(1)})
    assert holds(network, state)
    assert notes == ["left out 3 entries that are no tensors"]


def test_a_tensor_beside_the_state_dict_does_not_make_its_holder_one():
    content = {"student": weights(), "best": torch.tensor(0.9)}
    assert "the file holds student, best: choose one with --weights-key" in refusal(content)
    assert holds(load(content, key="student")[0], content["student"])


def endless():
    content: list = []
    content.append(content)
    return content


@pytest.mark.parametrize(
    ("content", "key", "expected"),
    [
        ([{}, {}], "", "the file holds a list of 2: choose with --weights-key 0"),
        (
            {"model": [{}, {}]},
            "",
            "the file holds a list of 2 under 'model': choose with --weights-key model.0",
        ),
        (
            {"student": {}, "teacher": {}},
            "",
            "holds student, teacher: choose one with --weights-key",
        ),
        ({"a": {}, "b": {}, "c": {}, "d": {}}, "", "holds a, b, c, ...: choose"),
        ({"epoch": 3}, "epoch", "expected a state dict, the file holds int under 'epoch'"),
        (torch.ones(3), "", "the file holds Tensor"),
        (None, "", "the file holds NoneType"),
        ({}, "", "the file holds an empty dict"),
        ({"model": {}}, "", "the file holds an empty dict under 'model'"),
        (
            {"state_dict": {}},
            "state_dit",
            "unknown weights key 'state_dit': did you mean 'state_dict'?",
        ),
        (
            {"nets": {"teacher": {}}},
            "nets.techer",
            "unknown weights key 'techer': did you mean 'teacher'?",
        ),
        (
            {"nets": weights()},
            "nets.conv",
            "8 missing (conv.weight, conv.bias, bn.weight, ...), 2 unexpected (weight, bias)",
        ),
        ({"nets": [{}, {}]}, "nets.2", "weights key '2' leads nowhere: there is a list of 2"),
        ({"epoch": 3}, "epoch.0", "weights key '0' leads nowhere: there is int"),
        (endless(), "", "nests more than 16 deep"),
        ({"\x1b[2J": {}, "two\nlines": {}}, "", "the file holds [2J, two: choose"),
        (nn.Linear(1, 1), "", "the file holds a whole pickled module, which only code can rebuild"),
    ],
)
def test_content_without_one_state_dict_is_refused_with_what_is_there(content, key, expected):
    assert expected in refusal(content, key=key)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_whole_pickled_module_in_an_archive_is_refused(wrapped, tmp_path):
    torch.save(
        {"model": nn.Sequential(nn.Linear(1, 1))} if wrapped else nn.Linear(1, 1),
        tmp_path / "net.pt",
    )
    assert "save its state_dict() instead" in refusal(read_weights(tmp_path / "net.pt").content)


@pytest.mark.parametrize(
    "change", [torch.Tensor.to_sparse, lambda value: value.to("meta"), lambda value: value + 1j]
)
def test_tensors_that_are_not_plain_numbers_are_refused_by_name(change):
    state = weights()
    changed = {**state, "fc.weight": change(state["fc.weight"])}
    assert "sparse, quantised, complex or empty ones (fc.weight)" in refusal(changed)


# Strictness


def test_counters_of_batch_normalisation_may_be_missing():
    state = weights()
    network, _, notes = load(
        {name: value for name, value in state.items() if "num_batches" not in name}
    )
    assert torch.equal(network.bn.running_var, state["bn.running_var"])
    assert notes == []


@pytest.mark.parametrize(
    ("other", "shape", "cause"),
    [
        (
            {"classes": 7},
            "2 of another shape (fc.weight: file (7, 4), model (5, 4), ",
            "number of classes: the file has 7",
        ),
        (
            {"channels": 1},
            "1 of another shape (conv.weight: file (4, 1, 3, 3), ",
            "number of channels: the file has 1",
        ),
        (
            {"width": 8},
            "(conv.weight: file (8, 3, 3, 3), model (4, 3, 3, 3), ",
            "width, depth or image size: see --arch-arg",
        ),
    ],
)
def test_another_shape_is_refused_with_the_likely_cause(other, shape, cause):
    message = refusal(weights(Net(**other)))
    assert message.startswith("'net.pt' does not fit the architecture: ")
    assert shape in message
    assert f"; likely another {cause}" in message


def test_missing_and_unexpected_keys_are_counted_and_the_first_are_named():
    state = weights()
    aux = {f"aux{index}.weight": torch.ones(1) for index in range(4)}
    message = refusal(
        {name: value for name, value in state.items() if not name.startswith("fc")} | aux
    )
    assert (
        "2 missing (fc.weight, fc.bias), 4 unexpected (aux0.weight, aux1.weight, aux2.weight, ...)"
        in message
    )
    assert message.endswith("likely another architecture or other arguments")


def test_a_refused_file_leaves_the_network_as_it_was():
    network = Net()
    before = copy.deepcopy(network.state_dict())
    refusal(weights(Net(classes=7)), network)
    assert holds(network, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", components("models"))
def test_every_architecture_is_the_nearest_to_its_own_weights(name):
    with torch.device("meta"):
        state = build_network(name, {}, classes=10, shape=(3, 32, 32)).state_dict()
    assert nearest_architecture(state, classes=10, shape=(3, 32, 32)) == f"; nearest: --arch {name}"


def test_weights_fit_their_own_network_and_not_another():
    assert fit(weights(), Net().state_dict()) == 1
    assert fit(weights(), Net(classes=7).state_dict()) == pytest.approx(7 / 9)
    assert fit(weights(), nn.Linear(4, 5).state_dict()) <= 2 / 9  # the last layer alone
    assert fit(weights(), nn.Linear(3, 2).state_dict()) == 0
