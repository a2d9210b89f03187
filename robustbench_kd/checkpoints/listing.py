"""Which weights files and cards lie in a folder, and what a file is called."""

import re
from contextlib import suppress
from pathlib import Path

from robustbench_kd.checkpoints.card import read_card
from robustbench_kd.checkpoints.sharded import INDEX, is_index, shards
from robustbench_kd.core.errors import RkdError, UsageError

WEIGHTS_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".bin", ".model", ".tar")
# What training code calls its files in every folder.
_COMMON = re.compile(
    r"model|checkpoint|ckpt|weights|state|state_dict|pytorch_model|student|"
    r"(model|checkpoint|ckpt|weights)?[-_]?(best|last|latest|final)[-_]?(model|checkpoint|ckpt)?"
)
_OF_TRAINER = ("optimizer", "scheduler", "scaler", "rng_state", "training_args", "trainer_state")


def weights_of(card: Path) -> str:
    """Returns the name of the weights file that a card describes, or nothing."""
    weights = read_card(card).weights
    return weights.file if weights else ""


def name_of(weights: Path) -> str:
    """Returns the name of a weights file, with its folder where many files have this name.

    >>> name_of(Path("runs/seed-1/best.pt")), name_of(Path("runs/resnet.pt"))
    ('seed-1-best', 'resnet')
    """
    stem = weights.name.removesuffix(INDEX) if is_index(weights) else weights.name
    stem = Path(stem).stem
    folder = weights.resolve().parent.name
    return f"{folder}-{stem}" if folder and _COMMON.fullmatch(stem.lower()) else stem


def expanded(target: str) -> list[str]:
    """Returns what lies in a folder, and any other target, or an empty folder, as it is."""
    folder = Path(target)
    if not folder.is_dir():
        return [target]
    with suppress(RkdError):  # whoever describes the folder says that it holds none
        return [str(path) for path in targets_in(folder)]
    return [target]


def targets_in(folder: Path) -> list[Path]:
    """Returns the cards of a folder, and the weights files that none of them describes.

    Raises `UsageError` where there are none.
    What a trainer keeps beside the weights is left out; shards are read through their index.
    """
    cards = sorted(folder.glob("*.toml"), key=_natural)
    described: set[str] = set()
    for card in cards:
        described.add(card.stem)
        with suppress(RkdError):  # whoever describes the card says why it cannot be read
            described.add(Path(weights_of(card)).stem)

    files = sorted(folder.iterdir(), key=_natural)
    indices = [path for path in files if is_index(path)]
    parts = {shard for index in indices for shard in shards(index)}
    weights = [
        path
        for path in files
        if path.suffix in WEIGHTS_SUFFIXES and path not in parts and not _is_of_trainer(path)
    ]
    weights += indices
    found = cards + [path for path in weights if path.stem not in described]
    if not found:
        suffixes = ", ".join(WEIGHTS_SUFFIXES)
        raise UsageError(f"folder '{folder}' holds no card (.toml) and no weights ({suffixes})")
    return found


def _is_of_trainer(path: Path) -> bool:
    return path.stem.startswith(_OF_TRAINER)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Returns a sort key by which `epoch-2` comes before `epoch-10`."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts]
