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
from robustbench_kd.defences._surfaces import ModuleAnswer
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.defence import Adversary, Key, Surface, Surfaced

Rule: TypeAlias = Callable[[Tensor, Tensor], Logits]

_TOLERANCE = 1e-6
_STRAIGHT = "straight-through"


class RandomizedEnsemble(Sampled):
    """One member answers, drawn by the weights.

    The member is drawn for each image, or for a whole batch by the key of its first row.
    """

    weights: Tensor

    def __init__(self, parts: Sequence[nn.Module], weights: Tensor, *, per_batch: bool) -> None:
        super().__init__(parts)
        self.register_buffer("weights", weights, persistent=False)
        self.per_batch = per_batch

    def draw(self, images: Images, key: Key) -> Logits:
        """Returns the logits `(n, classes)`; each member gets its own rows alone."""
        chosen = self._chosen(key)
        order = chosen.argsort(stable=True)
        sizes = torch.bincount(chosen, minlength=len(self.parts))
        groups = torch.split(images[order], sizes.tolist())

        logits = []
        for member, group in zip(self.parts, groups, strict=True):
            if len(group):
                logits.append(member(group))
        return torch.cat(logits)[order.argsort()]

    def members(self) -> Sequence[nn.Module]:
        """Returns the members, in the order of `weights`."""
        return list(self.parts)

    def surfaces(self) -> Sequence[Surface]:
        """Returns each member, all of them at once, and each surface that all members declare.

        Equal surfaces are asked once.
        """
        members = []
        for member in self.parts:
            answer = ModuleAnswer(member)
            members.append(Surface(name="expected", answer=answer, same_outputs=True))
        surfaces = [
            *_common(self.parts, self.weights, _expected),
            *_each(self.parts),
            _stacked("expected", members, self.weights),
        ]
        return _cheapest_first(surfaces)

    def attacks(self) -> dict[str, Callable[..., Adversary]]:
        """Returns ARC, and ARC with straight-through gradients if all members declare them."""
        declared = [_declared(member) for member in self.parts]
        straight = _of_all(declared, _STRAIGHT)
        if not straight:
            return {"arc": Arc}
        stand_ins = [surface.answer for surface in straight]
        return {"arc": Arc, f"arc-{_STRAIGHT}": partial(Arc, stand_ins=stand_ins)}

    def _chosen(self, key: Key) -> Tensor:
        """Returns which member answers each row, int64 `(n,)`."""
        bounds = self.weights.double().cumsum(dim=0)[:-1]
        chosen = torch.bucketize(key.uniform("member", 1)[:, 0].double(), bounds, right=True)
        if self.per_batch:
            return chosen[:1].expand(len(chosen))
        return chosen


class AveragedEnsemble(Defence):
    """All members answer, and a rule averages their logits `(m, n, classes)` by weights `(m,)`."""

    member_weights: Tensor

    def __init__(self, parts: Sequence[nn.Module], weights: Tensor, rule: Rule) -> None:
        super().__init__(parts)
        self.register_buffer("member_weights", weights, persistent=False)
        self.rule = rule

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` in [0, 1] to logits `(n, classes)`."""
        logits = torch.stack([member(images) for member in self.parts])
        return self.rule(logits, self.member_weights)

    def surfaces(self) -> Sequence[Surface]:
        """Returns each member, and each surface that all members declare, combined by the rule.

        Equal surfaces are asked once.
        """
        common = _common(self.parts, self.member_weights, self._combined)
        return _cheapest_first([*common, *_each(self.parts)])

    def _combined(self, surfaces: Sequence[Surface], weights: Tensor) -> Surface:
        stacked = _stacked(surfaces[0].name, surfaces, weights)
        return replace(
            stacked,
            answer=lambda images, key: self.rule(stacked.answer(images, key), weights),
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
        per: What a randomized ensemble draws a member for: each `image`, or a `batch`. The other
            modes ignore it.
        weights: The weight of each member, above 0; they sum to 1. Equal if empty.

    Raises:
        UsageError: If an argument is impossible, or a part is randomized itself.
    """
    if len(parts) < 2:
        raise UsageError(f"expected at least two parts for the family 'ensemble', got {len(parts)}")
    require_deterministic(parts, "ensemble")
    require_choice("mode of an ensemble", mode, ("randomized", *_RULES))
    require_choice("unit of an ensemble's draw", per, ("image", "batch"))
    checked = _checked_weights(weights, len(parts))

    if mode == "randomized":
        return RandomizedEnsemble(parts, checked, per_batch=per == "batch")
    return AveragedEnsemble(parts, checked, _RULES[mode])


def _checked_weights(weights: Sequence[float], members: int) -> Tensor:
    """Returns the weights of members, equal if none are given."""
    if not weights:
        return torch.full((members,), 1 / members, dtype=torch.float32)

    for weight in weights:
        require_number("each weight of an ensemble", weight, 0, 1)
    if len(weights) != members or min(weights) == 0 or abs(sum(weights) - 1) > _TOLERANCE:
        raise UsageError(
            f"expected {members} weights above 0 that sum to 1, one for each part, "
            f"got {list(weights)}"
        )
    return torch.tensor(tuple(weights), dtype=torch.float32)


def _mean_logits(logits: Tensor, weights: Tensor) -> Logits:
    return torch.einsum("m,mnk->nk", weights, logits)


def _mean_probabilities(logits: Tensor, weights: Tensor) -> Logits:
    return (logits.log_softmax(dim=2) + weights.log()[:, None, None]).logsumexp(dim=0)


_RULES: dict[str, Rule] = {"logits": _mean_logits, "probabilities": _mean_probabilities}


def _each(members: Iterable[nn.Module]) -> Iterator[Surface]:
    """Yields each member alone."""
    for index, member in enumerate(members):
        yield Surface(name=f"member-{index}", answer=ModuleAnswer(member))


def _common(
    members: Iterable[nn.Module],
    weights: Tensor,
    combine: Callable[[Sequence[Surface], Tensor], Surface],
) -> Iterator[Surface]:
    """Yields one surface for each name that all members declare.

    It combines the different surfaces of that name, whose weights are sums over the members. Each
    gives one answer, because members are deterministic.
    """
    declared = [_declared(member) for member in members]
    for name in declared[0]:
        surfaces = _of_all(declared, name)
        if not surfaces:
            continue
        different, sums = _different(surfaces, weights)
        yield combine(different, sums) if len(different) > 1 else different[0]


def _declared(member: nn.Module) -> dict[str, Surface]:
    """Returns the surfaces that a member declares, by name."""
    if not isinstance(member, Surfaced):
        return {}
    return {surface.name: surface for surface in member.surfaces()}


def _of_all(declared: Sequence[dict[str, Surface]], name: str) -> list[Surface]:
    """Returns the surface of this name of each member, none if a member does not declare it."""
    surfaces = [by_name[name] for by_name in declared if name in by_name]
    return surfaces if len(surfaces) == len(declared) else []


def _different(surfaces: Sequence[Surface], weights: Tensor) -> tuple[list[Surface], Tensor]:
    """Returns the surfaces with different answers, and the sum of the weights of each."""
    answers = [surface.answer for surface in surfaces]
    first = [answers.index(answer) for answer in answers]
    indices = sorted(set(first))
    belongs = torch.tensor(indices)[:, None] == torch.tensor(first)
    return [surfaces[index] for index in indices], belongs.to(weights) @ weights


def _expected(surfaces: Sequence[Surface], weights: Tensor) -> Surface:
    return _stacked(f"expected-{surfaces[0].name}", surfaces, weights)


def _stacked(name: str, surfaces: Sequence[Surface], weights: Tensor) -> Surface:
    """Returns a surface with one answer of each surface, `(k, n, classes)`."""

    def answer(images: Images, key: Key) -> Logits:
        return torch.stack([surface.answer(images, key) for surface in surfaces])

    return Surface(
        name=name,
        answer=answer,
        weights=weights,
        passes=sum(surface.passes for surface in surfaces),
        same_outputs=all(surface.same_outputs for surface in surfaces),
    )


def _cheapest_first(surfaces: Iterable[Surface]) -> list[Surface]:
    return sorted(surfaces, key=lambda surface: surface.passes)
