"""The accuracies of a network on held-out examples during its training."""

from functools import partial

import torch
from torch import Tensor, nn

from robustbench_kd.core.threat import Threat
from robustbench_kd.tensors.contracts import Dataset, Images, Labels, Logits
from robustbench_kd.tensors.defence import Key, is_randomized
from robustbench_kd.tensors.distillation import labelled
from robustbench_kd.tensors.oracle import mode
from robustbench_kd.training import distributed
from robustbench_kd.training.batches import batches, fetch
from robustbench_kd.training.events import Accuracies
from robustbench_kd.training.inner import pgd
from robustbench_kd.training.recipe import Recipe

_REACH = 2.5  # length of all steps together, in radii: enough to cross the ball


def evaluate(network: nn.Module, dataset: Dataset, threat: Threat, recipe: Recipe) -> Accuracies:
    """Returns clean accuracy and accuracy under PGD from fixed start points."""
    generator = torch.Generator().manual_seed(recipe.seed)
    steps, chance = recipe.validation_steps, is_randomized(network)
    ascend = partial(
        pgd, steps=steps, step_size=_REACH / steps, start="uniform", generator=generator
    )
    clean = robust = 0
    with mode(network, training=False):
        for rows in batches(distributed.mine(torch.arange(len(dataset))), recipe.batch_size):
            images, labels = fetch(dataset, rows, network)
            key = _key(dataset, rows, recipe.seed, images.device)
            correct = _predict(network, images, key) == labels
            clean += int(correct.sum())
            if not chance:
                points = ascend(network, images, partial(labelled, labels), threat)
                robust += int((correct & (_predict(network, points, key) == labels)).sum())
    counts = torch.tensor([clean, robust], device=next(network.parameters()).device)
    clean, robust = distributed.summed(counts).tolist()
    return Accuracies(clean / len(dataset), None if chance else robust / len(dataset))


def _key(dataset: Dataset, rows: Tensor, seed: int, device: torch.device) -> Key:
    ids = torch.tensor(dataset.ids)[rows].to(device)
    return Key(seed, "validation", ids=ids, draw=torch.zeros_like(ids))


@torch.no_grad()
def _predict(network: nn.Module, images: Images, key: Key) -> Labels:
    logits: Logits = network.draw(images, key) if is_randomized(network) else network(images)
    return logits.argmax(dim=1)
