"""Cards with their weights, and cards of parts."""

import tomli_w
from hostile import CARD, TOMLS
from mutations import EDGES, changed, with_other_values
from safetensors.torch import save_file

from robustbench_kd.checkpoints.subject import Choices
from robustbench_kd.checkpoints.target import describe, load
from robustbench_kd.checkpoints.weights import sha256
from robustbench_kd.core.plugins import components
from robustbench_kd.models.small_cnn import build

SHARE = 4
_STATE = build(classes=10, channels=1, size=8, width=2).state_dict()
_ARGUMENTS = ("width", "depth", "classes", "channels", "size", "patch", "heads", "items", "mean")
_FAMILIES = sorted(components("defences"))


def _full(folder):
    save_file(_STATE, folder / "net.safetensors")
    return {
        **CARD,
        "architecture": {"name": "small_cnn", "arguments": {"width": 2}},
        "normalisation": {"mean": [0.5], "std": [0.5]},
        "weights": {"file": "net.safetensors", "sha256": sha256(folder / "net.safetensors")},
        "threats": ["linf:8/255"],
        "teachers": [{"name": "t", "sha256": "0" * 64}],
        "claims": [{"metric": "robust", "value": 0.5, "source": "paper"}],
        "made": {"seed": 1},
    }


def _arguments(random):
    large = (*EDGES, 10**4, 10**5, 10**6, 10**9, 0.5, "x", [1] * 1000)
    chosen = random.sample(_ARGUMENTS, random.randint(1, 2))
    return {name: random.choice(large) for name in chosen}


def _composed(random, folder, card):
    (folder / "part.toml").write_text(tomli_w.dumps(card), encoding="utf-8")
    known = {key: card[key] for key in ("classes", "image_shape", "dataset")}
    parts = ["part.toml"] * random.choice([1, 2, 3, 1000])
    if random.random() < 0.1:
        parts.append("net.toml")
    made = {"name": "net", **known, "family": random.choice(_FAMILIES), "parts": parts}
    return {**made, "arguments": _arguments(random)} if random.random() < 0.7 else made


def _text(random, folder):
    kind = random.random()
    if kind < 0.1:
        return random.choice(list(TOMLS.values())).encode()
    card = _full(folder)
    if kind < 0.3:
        names = sorted(components("models"))
        card["architecture"] = {"name": random.choice(names), "arguments": _arguments(random)}
    elif kind < 0.5:
        card = _composed(random, folder, card)
    if random.random() < 0.5:
        card = with_other_values(random, card)
    text = tomli_w.dumps(card).encode("utf-8", "replace")
    return changed(random, text) if random.random() < 0.4 else text


def attempt(random, folder):
    content = _text(random, folder)
    (folder / "net.toml").write_bytes(content)
    for target in describe(str(folder / "net.toml"), Choices()):
        load(target, classes=10, shape=(1, 8, 8))
