"""A randomized or averaged ensemble.

Sources: one member drawn for each image is the randomized ensemble of Pinot et al. 2020 (arXiv
2002.11565) and of Dbouk and Shanbhag 2022 (ICML, "Adversarial vulnerability of randomized
ensembles"), whose ARC attack showed that attacks must use the exact expectation over members.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from robustbench_kd.core.errors import UsageError
from robustbench_kd.defences._arc import Arc
from robustbench_kd.defences._arguments import require_choice, require_deterministic, require_number
from robustbench_kd.defences._defence import Defence, Sampled
from robustbench_kd.defences._surfaces import Alone
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Adversary, Key, Surface, Surfaced

Rule: TypeAlias = Callable[[Tensor, Tensor], Logits]

_TOLERANCE = 1e-6
_STRAIGHT = "straight-through"


class RandomizedEnsemble(Sampled):
    """One member answers, drawn by the weights: for each image, or for a whole batch by the key of its first row."""

    weights: Tensor

    def __init__(self, parts: Sequence[nn.Module], weights: Tensor, *, per_batch: bool) -> None:
        super().__init__(parts)
        self.register_buffer("weights", weights, persistent=False)
        self.per_batch = per_batch

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes)`; each member sees its own rows alone."""
        chosen = self._chosen(key)
        order = chosen.argsort(stable=True)
        groups = torch.split(
            images[order], torch.bincount(chosen, minlength=len(self.parts)).tolist()
        )
        logits = [
            member(group) for member, group in zip(self.parts, groups, strict=True) if len(group)
        ]
        return torch.cat(logits)[order.argsort()]

    def members(self) -> Sequence[nn.Module]:
        """Returns the members, in the order of `weights`."""
        return list(self.parts)

    def surfaces(self) -> Sequence[Surface]:
        """Returns each member, all of them at once, and each surface that all declare; equal ones are asked once."""
        everyone = [
            Surface(name="expected", answer=Alone(member), same_outputs=True)
            for member in self.parts
        ]
        common = [
            found[0] if len(found) == 1 else _stacked(found, shares, f"expected-{found[0].name}")
            for found, shares in _common(self.parts, self.weights)
        ]
        return _cheapest_first(
            [*common, *_each(self.parts), _stacked(everyone, self.weights, "expected")]
        )

    def attacks(self) -> dict[str, Callable[..., Adversary]]:
        """Returns ARC, and ARC with the gradients of a surface in place of the members' own where all declare it."""
        declared = [_declared(member) for member in self.parts]
        if not all(_STRAIGHT in known for known in declared):
            return {"arc": Arc}
        stand_ins = [known[_STRAIGHT].answer for known in declared]
        return {"arc": Arc, f"arc-{_STRAIGHT}": partial(Arc, stand_ins=stand_ins)}

    def _chosen(self, key: Key) -> Tensor:
        """Returns which member answers each row, int64 `(n,)`."""
        bounds = self.weights.double().cumsum(dim=0)[:-1]
        chosen = torch.bucketize(key.uniform("member", 1)[:, 0].double(), bounds, right=True)
        return chosen[:1].expand(len(chosen)) if self.per_batch else chosen


class AveragedEnsemble(Defence):
    """All members answer, and a rule averages their logits `(m, n, classes)` by their shares `(m,)`."""

    shares: Tensor

    def __init__(self, parts: Sequence[nn.Module], shares: Tensor, rule: Rule) -> None:
        super().__init__(parts)
        self.register_buffer("shares", shares, persistent=False)
        self.rule = rule

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to logits `(n, classes)`."""
        return self.rule(torch.stack([member(images) for member in self.parts]), self.shares)

    def surfaces(self) -> Sequence[Surface]:
        """Returns each member, and each surface that all declare, combined by the rule; equal ones are asked once."""
        common = [
            found[0]
            if len(found) == 1
            else self._combined(_stacked(found, shares, found[0].name), shares)
            for found, shares in _common(self.parts, self.shares)
        ]
        return _cheapest_first([*common, *_each(self.parts)])

    def _combined(self, stacked: Surface, shares: Tensor) -> Surface:
        return replace(
            stacked,
            answer=lambda images, key: self.rule(stacked.answer(images, key), shares),
            weights=None,
        )


def assemble(
    parts: Sequence[nn.Module],
    *,
    mode: str = "randomized",
    per: str = "image",
    weights: Sequence[float] = (),
) -> nn.Module:
    """Returns an ensemble of at least two deterministic parts.

    Args:
        parts: The members.
        mode: `randomized` draws one member; `logits` averages logits, `probabilities` averages
            probabilities and answers with their logarithm.
        per: What a randomized ensemble draws a member for: each `image`, or a `batch`. The others
            take no notice.
        weights: What each member counts, above 0 and 1 together; equal if empty.

    Raises:
        UsageError: If an argument is impossible, or a part answers by chance itself.
    """
    if len(parts) < 2:
        raise UsageError(f"expected at least two parts for the family 'ensemble', got {len(parts)}")
    require_deterministic(parts, "ensemble")
    require_choice("mode of an ensemble", mode, ("randomized", *_RULES))
    require_choice("unit of an ensemble's draw", per, ("image", "batch"))
    shares = _shares(weights, len(parts))
    if mode == "randomized":
        return RandomizedEnsemble(parts, shares, per_batch=per == "batch")
    return AveragedEnsemble(parts, shares, _RULES[mode])


def _shares(weights: Sequence[float], members: int) -> Tensor:
    for weight in weights:
        require_number("each weight of an ensemble", weight, 0, 1)
    if weights and (
        len(weights) != members or min(weights) == 0 or abs(sum(weights) - 1) > _TOLERANCE
    ):
        raise UsageError(
            f"expected {members} weights above 0 that sum to 1, one for each part, got {list(weights)}"
        )
    return torch.tensor(tuple(weights) or (1 / members,) * members, dtype=torch.float32)


def _mean_logits(logits: Tensor, shares: Tensor) -> Logits:
    return torch.einsum("m,mnk->nk", shares, logits)


def _mean_probabilities(logits: Tensor, shares: Tensor) -> Logits:
    return (logits.log_softmax(dim=2) + shares.log()[:, None, None]).logsumexp(dim=0)


_RULES: dict[str, Rule] = {"logits": _mean_logits, "probabilities": _mean_probabilities}


def _each(members: Iterable[nn.Module]) -> list[Surface]:
    return [
        Surface(name=f"member-{index}", answer=Alone(member))
        for index, member in enumerate(members)
    ]


def _common(members: Iterable[nn.Module], shares: Tensor) -> Iterator[tuple[list[Surface], Tensor]]:
    """Yields each surface that all members declare under one name: the different ones, and what each counts.

    Members are deterministic, so each of their surfaces gives one answer.
    """
    declared = [_declared(member) for member in members]
    for name in declared[0]:
        if all(name in known for known in declared):
            yield _different([known[name] for known in declared], shares)


def _declared(member: nn.Module) -> dict[str, Surface]:
    return (
        {surface.name: surface for surface in member.surfaces()}
        if isinstance(member, Surfaced)
        else {}
    )


def _different(surfaces: Sequence[Surface], shares: Tensor) -> tuple[list[Surface], Tensor]:
    answers = [surface.answer for surface in surfaces]
    first = [answers.index(answer) for answer in answers]
    places = sorted(set(first))
    belongs = torch.tensor(
        [[place == one for one in first] for place in places], device=shares.device
    )
    return [surfaces[place] for place in places], belongs.to(shares.dtype) @ shares


def _stacked(surfaces: Sequence[Surface], shares: Tensor, name: str) -> Surface:
    """Returns a surface with one answer of each, `(k, n, classes)`."""
    return Surface(
        name=name,
        answer=lambda images, key: torch.stack(
            [surface.answer(images, key) for surface in surfaces]
        ),
        weights=shares,
        passes=sum(surface.passes for surface in surfaces),
        same_outputs=all(surface.same_outputs for surface in surfaces),
    )


def _cheapest_first(surfaces: Iterable[Surface]) -> list[Surface]:
    return sorted(surfaces, key=lambda surface: surface.passes)
