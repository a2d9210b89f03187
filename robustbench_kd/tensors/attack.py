"""The contract of an attack: it asks for points, somebody else calls the model, it is told what came back.

An attack is a frozen dataclass of hyper-parameters; it holds no model and no state. A *job* is one
restart or one target of one example, and a *slot batch* holds many jobs, one per row, each at its
own iteration. All state is per row, so rows can be retired and refilled at any moment and in any
order without changing what happens to the others.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.contracts import Images, Labels, Logits

State = TypeVar("State")


@dataclass(frozen=True)
class Rows:
    """What jobs start from, one per row, all on one device.

    `logits` `(n, classes)` are those of the clean images; `ids` `(n,)` int64 are the example ids
    that key the randomness; `job` `(n,)` int64 counts restarts or targets from 0.
    """

    images: Images
    labels: Labels
    logits: Logits
    ids: Tensor
    job: Tensor


class Attack(Protocol[State]):
    """What every file of `attacks/` offers; `State` is a dataclass whose tensors all lead with the row.

    The engine repeats: `ask`; call the model; evaluate `objective` and, where `schedule` says so,
    differentiate it; judge the asked points on the true defence; `tell`. Rows that are broken or at
    the end of their schedule leave. Where a defence answers by chance, what is told are means over
    several answers.
    """

    def jobs(self, norm: Norm, classes: int) -> int:
        """Returns how many jobs an example has at most; they run in order and stop at the first success."""
        ...

    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns, for each point that a job asks for, whether it wants a gradient; known without asking the device."""
        ...

    def start(self, rows: Rows, threat: Threat, seed: int) -> State:
        """Returns the state of fresh jobs."""
        ...

    def ask(self, state: State) -> Images:
        """Returns the points `(n, c, h, w)` in [0, 1] to evaluate next."""
        ...

    def objective(self, state: State, logits: Logits) -> Tensor:
        """Returns the values `(k, n)` of one answer, whose gradients at the asked points are wanted; k is mostly 1."""
        ...

    def tell(self, state: State, logits: Logits, values: Tensor, gradient: Tensor | None) -> State:
        """Returns the next state, from the logits `(n, classes)` and the `objective` `(k, n)` of the asked points.

        `gradient` `(k, n, c, h, w)` is that of `values`: zero in rows that wanted none, None where
        no row did.
        """
        ...


def take(state: State, rows: Tensor) -> State:
    """Returns the state of the given rows, int64 or bool."""
    return _map(state, lambda value, _name: value[rows])


def put(state: State, rows: Tensor, fresh: State) -> State:
    """Returns the state with `fresh` in the given rows, int64 `(m,)`."""
    return _map(state, lambda value, name: value.index_copy(0, rows, getattr(fresh, name)))


def join(first: State, second: State) -> State:
    """Returns the rows of both states, one after the other."""
    return _map(first, lambda value, name: torch.cat([value, getattr(second, name)]))


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Returns values `(n,)` shaped `(n, 1, 1, 1)` to broadcast over images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _map(state: State, change: Any) -> State:
    held = {field.name: getattr(state, field.name) for field in fields(state)}  # type: ignore[arg-type]  # a dataclass
    tensors = {
        name: change(value, name) for name, value in held.items() if isinstance(value, Tensor)
    }
    return replace(state, **tensors)  # type: ignore[type-var]  # a dataclass
