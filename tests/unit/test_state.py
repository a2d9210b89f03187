"""State dicts.

Found inside whatever trainers wrap around them, renamed where the prefix differs, loaded strictly.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_kd.checkpoints.architecture import build_network, nearest_architecture
from robustbench_kd.checkpoints.card import Normalisation
from robustbench_kd.checkpoints.state import find_state, fit, load_state
from robustbench_kd.checkpoints.weights import read_weights
from robustbench_kd.core.errors import CheckpointError
from robustbench_kd.core.plugins import components

STATISTICS = {"mean": torch.tensor([0.5, 0.25, 0.125]), "std": torch.tensor([0.25, 0.5, 1.0])}


class Net(nn.Module):
    """A convolution, batch normalisation and a linear layer."""

    def __init__(self, *, channels=3, width=4, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, classes)


class Model(nn.Module):
    def __init__(self, network=None):
        super().__init__()
        self.model = network or Net()


class Normalised(Net):
    """A network that holds its statistics itself."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))


def weights(network=None, prefix=""):
    """A state dict of random numbers, in which no two tensors of a shape are the same."""
    expected = (network or Net()).state_dict()
    return {
        prefix + name: torch.rand(value.shape).to(value.dtype) for name, value in expected.items()
    }


def find(content, key=""):
    return find_state(content, key, source="net.pt")


def load(content, network=None, key=""):
    """Loads a file's content into a network.

    Returns the network, the normalisation and the notes.
    """
    network = network or Net()
    normalisation, notes = load_state(network, find(content, key))
    return network, normalisation, notes


def holds(network, state):
    own = network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def refusal(content, network=None, key=""):
    """The message with which a content is refused: one line that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load(content, network, key)
    message = str(caught.value)
    assert message.startswith("'net.pt'")
    assert message.isprintable()
    return message


# Where the state dict lies


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


def test_the_counter_of_averaged_models_is_dropped_and_said():
    state = weights()
    network, _, notes = load(
        {"n_averaged": torch.tensor(7), **{f"module.{name}": state[name] for name in state}}
    )
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


def test_entries_that_are_no_tensors_are_left_out_and_said():
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
            "weights key 'conv' leads into a state dict: leave that part out",
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


# Names


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.backbone.module."]
)
def test_a_prefix_of_all_keys_is_stripped_and_said(prefix):
    state = weights()
    network, _, notes = load({prefix + name: value for name, value in state.items()})
    assert holds(network, state)
    assert notes == [f"stripped the prefix '{prefix}'"]


def test_control_characters_of_a_prefix_do_not_reach_the_terminal():
    _, _, notes = load({f"\x1b[2J.{name}": value for name, value in weights().items()})
    assert notes == ["stripped the prefix '[2J.'"]


@pytest.mark.parametrize(
    ("prefix", "notes"),
    [
        ("model.", []),
        ("", ["added the prefix 'model.'"]),
        ("module.model.", ["stripped the prefix 'module.'"]),
        ("net.", ["replaced the prefix 'net.' by 'model.'"]),
    ],
)
def test_a_prefix_that_the_network_expects_is_kept_or_added(prefix, notes):
    state = weights()
    network, _, said = load({prefix + name: value for name, value in state.items()}, Model())
    assert holds(network.model, state)
    assert said == notes


def test_a_prefix_that_belongs_to_the_network_is_not_taken_for_one_of_the_file():
    """All keys of this network lie in `layers`, with and without the wrapper."""

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))

    state = weights(Layers())
    assert holds(load(state, Model(Layers()))[0].model, state)


@pytest.mark.parametrize(
    ("mean", "std"), [("normalize.mean", "normalize.std"), ("mu", "sigma"), ("0.mean", "0.std")]
)
def test_a_normalisation_in_the_file_is_taken_and_said(mean, std):
    state = weights()
    layer = {mean: STATISTICS["mean"].view(1, 3, 1, 1), std: STATISTICS["std"].view(1, 3, 1, 1)}
    network, normalisation, notes = load(
        layer | {f"1.{name}": value for name, value in state.items()}
    )
    assert holds(network, state)
    assert normalisation == Normalisation(mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 1.0))
    assert notes == [
        "took the normalisation 0.5,0.25,0.125/0.25,0.5,1 from the file",
        "stripped the prefix '1.'",
    ]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_normalisation_that_the_network_holds_itself_stays_there(prefix):
    state = weights(Normalised())
    network, normalisation, _ = load(
        {prefix + name: value for name, value in state.items()}, Normalised()
    )
    assert holds(network, state)
    assert normalisation is None


@pytest.mark.parametrize("std", [torch.ones(1), torch.zeros(3), torch.full((3,), torch.nan)])
def test_statistics_that_cannot_normalise_are_unexpected_keys(std):
    assert "2 unexpected (mean, std)" in refusal(
        {**weights(), "mean": STATISTICS["mean"], "std": std}
    )


MODULES = st.sampled_from(["module", "_orig_mod", "model", "net", "backbone", "encoder_q", "0"])
KEYS = st.sampled_from(["state_dict", "model", "net", "params", "student", "my weights"])


@settings(max_examples=60)
@given(
    modules=st.lists(MODULES, max_size=4),
    keys=st.lists(KEYS, max_size=4),
    lists=st.booleans(),
    wanted=st.booleans(),
)
def test_any_prefix_in_any_wrapping_gives_the_same_weights(modules, keys, lists, wanted):
    state = weights()
    content = {
        "".join(f"{module}." for module in modules) + name: value for name, value in state.items()
    }
    for key in reversed(keys):
        content = {key: [content] if lists else content, "epoch": 3, "best": torch.tensor(0.5)}
    before = copy.deepcopy(content)
    network, _, _ = load(
        content,
        Model() if wanted else Net(),
        key=".".join(f"{key}.0" if lists else key for key in keys),
    )
    assert holds(network.model if wanted else network, state)
    assert str(content) == str(before)


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
    assert fit(weights(), nn.Linear(4, 5).state_dict()) == 0
