"""Two answers to the same images differ, or a forward pass draws random numbers in secret."""

import torch
from torch import Tensor

from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.tensors.contracts import Logits
from robustbench_kd.tensors.probe import Probe
from robustbench_kd.trust._logits import changed, difference

_CHECK = "randomness"
_UNDECLARED = (
    "offer draw(images, key), so that attacks average over draws and scores use fresh draws"
)
_KEYED = (
    "draw all random numbers from the key: draw(images, key) must give the same answer for the "
    "same key"
)
_LIMIT = 1e-4  # of normalised logits: AutoAttack, `checks.py`; rounding on a GPU stays below 1e-5
# Further answers. Where random numbers are drawn these are many: a defence that draws a member for
# a whole batch may draw the same member several times.
_FEW, _MANY = 3, 20


def probe(sample: Probe) -> list[Finding]:
    """Returns a red finding if a defence is randomized without a key, or not by its key alone.

    It is yellow if a forward pass changes the global random state but all answers are equal. A
    hidden seed is no secret from an attacker (Carlini et al. 2019, arXiv 1902.06705), and attacks
    that use the same generator lose their randomness.
    """
    again, drew = _watched(sample)
    for _ in range(_MANY if drew else _FEW):
        if bool(changed(sample.logits, again, _LIMIT).any()):
            break
        again = sample.ask(sample.images)

    differs = changed(sample.logits, again, _LIMIT)
    if bool(differs.any()):
        return [_random(sample, differs, float(difference(sample.logits, again).max()))]
    return [_hidden(sample)] if drew else []


def _random(sample: Probe, differs: Tensor, distance: float) -> Finding:
    return Finding(
        check=_CHECK,
        severity=Severity.RED,
        message=f"two answers to the same image differ on {int(differs.sum())} of {len(sample)} "
        f"images, normalised logits by up to {distance:.2g}",
        advice=_KEYED if sample.randomized else _UNDECLARED,
        value=distance,
        threshold=_LIMIT,
        examples=sample.examples(differs),
    )


def _hidden(sample: Probe) -> Finding:
    return Finding(
        check=_CHECK,
        severity=Severity.YELLOW,
        message="a forward pass changes the global random state, but each of "
        f"{len(sample)} images got the same answer every time",
        advice="give the defence a generator of its own, or offer draw(images, key): a hidden seed "
        "protects nothing",
    )


def _watched(sample: Probe) -> tuple[Logits, bool]:
    """Returns a second answer, and whether giving it changed the global random state."""
    devices = [sample.images.device] if sample.images.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.rand(1)  # a model that has set a seed before would set the same state again
        for device in devices:
            torch.rand(1, device=device)
        before = _state(devices)
        answer = sample.ask(sample.images)
        return answer, not torch.equal(_state(devices), before)


def _state(devices: list[torch.device]) -> Tensor:
    """Returns the state of the global generators of the CPU and of devices."""
    states = [torch.random.get_rng_state()]
    states += [torch.cuda.get_rng_state(device) for device in devices]
    return torch.cat(states)
