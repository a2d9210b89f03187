"""Layouts of files that people really have: each loads the same network, or asks."""

import json

import pytest
import torch
from safetensors.torch import save_file
from state_dicts import Net, Normalised, holds, load, prefixed, refusal, weights
from torch import nn
from torch.nn.utils import parametrizations, prune

from robustbench_kd.checkpoints.listing import name_of, targets_in
from robustbench_kd.checkpoints.state import find_state, load_state
from robustbench_kd.checkpoints.weights import read_weights, sha256
from robustbench_kd.core.errors import CheckpointError

OTHER = {name: value + 1 for name, value in weights().items()}


def layouts(state):
    """Returns files of one network by the kind of code that writes them."""
    ema = prefixed("ema_model.", OTHER)
    return {
        "lightning with a criterion": {
            "state_dict": prefixed("model.", state) | {"criterion.weight": torch.ones(5)}
        },
        "lightning with metrics": {
            "state_dict": prefixed("model.", state) | {"val_acc.correct": torch.tensor(3)}
        },
        "robustness": {
            "model": prefixed("module.model.", state)
            | prefixed("module.attacker.model.", state)
            | {"module.normalizer.new_mean": torch.full((3, 1, 1), 0.5)}
            | {"module.normalizer.new_std": torch.full((3, 1, 1), 0.25)}
        },
        "averaged beside": prefixed("online_model.", state) | ema | {"step": torch.tensor(5)},
        "compiled within DataParallel": prefixed("module._orig_mod.", state),
        "compiled parts": {name.replace(".", "._orig_mod."): v for name, v in state.items()},
        "profiled by thop": state | {"total_ops": torch.zeros(1), "fc.total_params": torch.ones(1)},
        "swa": prefixed("module.", state) | {"n_averaged": torch.tensor(3)},
        "loss beside the network": state | {"criterion.centers": torch.rand(5, 2)},
        "of one part": {"epoch": 3, "net": {"backbone": None} | prefixed("module.", state)},
        "student of a distiller": {
            "model": prefixed("student.", state) | {"connector.weight": torch.rand(4, 4)}
        },
        "parts": {
            "conv": {"weight": state["conv.weight"], "bias": state["conv.bias"]},
            "bn": {n.removeprefix("bn."): v for n, v in state.items() if n.startswith("bn.")},
            "fc": {"weight": state["fc.weight"], "bias": state["fc.bias"]},
        },
        "named parts": {
            "encoder": {n: v for n, v in state.items() if not n.startswith("fc.")},
            "fc": {"weight": state["fc.weight"], "bias": state["fc.bias"]},
        },
    }


@pytest.mark.parametrize("kind", [name for name in layouts(weights()) if name != "named parts"])
def test_a_layout_loads_without_a_flag(kind):
    state = weights()
    network, _, _ = load(layouts(state)[kind])
    assert holds(network, state)


def test_parts_are_joined_under_their_names():
    state = weights()

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Module()
            self.encoder.conv, self.encoder.bn = Net().conv, Net().bn
            self.fc = Net().fc

    network, _, notes = load(layouts(state)["named parts"], Parts())
    assert torch.equal(network.encoder.conv.weight, state["conv.weight"])
    assert notes[0] == "joined the parts encoder, fc"


def test_two_networks_that_fit_are_asked_about():
    file = {"state_dict": prefixed("student.", weights()) | prefixed("teacher.", OTHER)}
    assert "2 networks that fit: student, teacher; choose one with --weights-key" in refusal(file)
    network, _, _ = load(file, key="state_dict.teacher")
    assert holds(network, OTHER)


def test_averaged_weights_under_a_prefix_are_named():
    state = weights()
    file = prefixed("model.", state) | prefixed("ema_model.", OTHER)
    _, _, notes = load(file)
    assert notes[0] == "the file also holds averaged weights: --weights-key ema_model takes them"
    network, _, _ = load(file, key="ema_model")
    assert holds(network, OTHER)


def test_a_network_with_tensors_of_its_own_kind_left_over_is_refused():
    assert "1 unexpected (fc2.weight)" in refusal(weights() | {"fc2.weight": torch.rand(5, 4)})


def test_pruned_weights_are_multiplied_by_their_masks():
    network = Net()
    prune.l1_unstructured(network.fc, "weight", amount=0.5)
    wanted = network.fc.weight.detach().clone()
    loaded, _, notes = load(network.state_dict())
    assert torch.equal(loaded.fc.weight, wanted)
    assert notes == ["multiplied 1 weights by their pruning masks"]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("into", ["old", "new", "plain"])
@pytest.mark.parametrize("written", ["old", "new"])
def test_weight_norm_of_either_kind_loads_into_any(written, into):
    kinds = {
        "old": torch.nn.utils.weight_norm,
        "new": parametrizations.weight_norm,
        "plain": lambda layer: layer,
    }
    source, target = kinds[written](nn.Linear(4, 5)), kinds[into](nn.Linear(4, 5))
    images = torch.rand(3, 4)
    loaded, _, _ = load(source.state_dict(), target)
    torch.testing.assert_close(loaded(images), source(images))


def test_a_lazy_network_takes_its_shape_from_the_file():
    state = nn.Linear(7, 5).state_dict()
    loaded, _, _ = load(state, nn.LazyLinear(5))
    assert torch.equal(loaded.weight, state["weight"])


class Named(nn.Linear):
    """A layer that keeps names beside its tensors."""

    names: object = None

    def get_extra_state(self):
        return {"names": self.names}

    def set_extra_state(self, state):
        self.names = state["names"]


def test_what_a_module_keeps_beside_its_tensors_is_given_back():
    source = Named(4, 5)
    source.names = ["plane", "car"]
    loaded, _, _ = load(source.state_dict(), Named(4, 5))
    assert loaded.names == ["plane", "car"]


SPELLINGS = [
    ("means", "sds"), ("normalizer.new_mean", "normalizer.new_std"), ("_mean", "_std"),
    ("pixel_mean", "pixel_std"), ("image_mean", "image_std"), ("mu", "std"), ("0.mean", "0.sigma"),
]  # fmt: skip


@pytest.mark.parametrize(("mean", "std"), SPELLINGS)
def test_a_normalisation_is_found_under_many_names(mean, std):
    shape = (1, 3, 1, 1)
    file = weights() | {mean: torch.full(shape, 0.5), std: torch.full(shape, 0.25)}
    _, normalisation, _ = load(file)
    assert str(normalisation) == "0.5,0.5,0.5/0.25,0.25,0.25"


def test_a_variance_becomes_a_deviation_and_bytes_become_fractions():
    variance = {"mean": torch.full((3,), 0.5), "var": torch.full((3,), 0.0625)}
    assert load(weights() | variance)[1].std == (0.25,) * 3
    in_bytes = {"pixel_mean": torch.full((3,), 127.5), "pixel_std": torch.full((3,), 51.0)}
    assert str(load(weights() | in_bytes)[1]) == "0.5,0.5,0.5/0.2,0.2,0.2"


def test_a_network_keeps_its_own_normalisation_where_the_file_lacks_it():
    state = weights()
    network, normalisation, notes = load(state, Normalised())
    assert normalisation is None
    assert network.std.tolist() == [1, 1, 1]
    assert torch.equal(network.fc.weight, state["fc.weight"])
    assert notes == ["kept the network's own mean, std, which the file lacks"]


def shard(folder, state):
    names = list(state)
    parts = {"a.safetensors": names[:4], "b.safetensors": names[4:]}
    for file, some in parts.items():
        save_file({name: state[name] for name in some}, folder / file)
    weight_map = {name: file for file, some in parts.items() for name in some}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_shards_are_one_target_with_a_digest_of_all(tmp_path):
    state = weights()
    index = shard(tmp_path, state)
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    assert targets_in(tmp_path) == [index]

    network = Net()
    load_state(network, find_state(read_weights(index).content, source="index"))
    assert holds(network, state)

    before = sha256(index)
    shard(tmp_path, OTHER)
    assert sha256(index) != before


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"weight_map": {}}',
        '{"weight_map": {"w": "../x.pt"}}',
        '{"weight_map": {"w": "missing.pt"}}',
    ],
)
def test_an_index_that_leads_nowhere_is_refused_in_one_line(content, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(CheckpointError) as caught:
        read_weights(index)
    assert str(caught.value).isprintable()


def test_files_with_a_common_name_are_told_apart_by_their_folders(tmp_path):
    for run in ("seed-1", "seed-2"):
        (tmp_path / run).mkdir()
    assert [name_of(tmp_path / run / "best.pt") for run in ("seed-1", "seed-2")] == [
        "seed-1-best",
        "seed-2-best",
    ]
    assert name_of(tmp_path / "seed-1" / "resnet.pt") == "resnet"


def test_a_key_may_leave_out_the_usual_wrapper():
    file = {"state_dict": prefixed("student.", weights()) | prefixed("teacher.", OTHER)}
    network, _, notes = load(file, key="teacher")
    assert holds(network, OTHER)
    assert notes[0] == "weights found under 'state_dict.teacher'"
