"""Names in a state dict: prefixes and normalisations are recognised in any wrapper."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from state_dicts import STATISTICS, Model, Net, Normalised, holds, load, prefixed, refusal, weights
from torch import nn

from robustbench_kd.checkpoints.card import Normalisation


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.backbone.module."]
)
def test_a_prefix_of_all_keys_is_stripped_with_a_note(prefix):
    state = weights()
    network, _, notes = load(prefixed(prefix, state))
    assert holds(network, state)
    assert notes == [f"stripped the prefix '{prefix}'"]


def test_control_characters_of_a_prefix_do_not_reach_the_terminal():
    _, _, notes = load(prefixed("\x1b[2J.", weights()))
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
    network, _, noted = load(prefixed(prefix, state), Model())
    assert holds(network.model, state)
    assert noted == notes


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
def test_a_normalisation_in_the_file_is_taken_with_a_note(mean, std):
    state = weights()
    layer = {mean: STATISTICS["mean"].view(1, 3, 1, 1), std: STATISTICS["std"].view(1, 3, 1, 1)}
    network, normalisation, notes = load(layer | prefixed("1.", state))
    assert holds(network, state)
    assert normalisation == Normalisation(mean=(0.5, 0.25, 0.125), std=(0.25, 0.5, 1.0))
    assert notes == [
        "took the normalisation 0.5,0.25,0.125/0.25,0.5,1 from the file",
        "stripped the prefix '1.'",
    ]


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_normalisation_that_the_network_holds_itself_stays_there(prefix):
    state = weights(Normalised())
    network, normalisation, _ = load(prefixed(prefix, state), Normalised())
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
    content = prefixed("".join(f"{module}." for module in modules), state)
    path = []
    for key in reversed(keys):
        content = {key: [content] if lists else content, "epoch": 3, "best": torch.tensor(0.5)}
        path = [key, "0", *path] if lists else [key, *path]
    before = copy.deepcopy(content)

    network, _, _ = load(content, Model() if wanted else Net(), key=".".join(path))
    assert holds(network.model if wanted else network, state)
    assert str(content) == str(before)
