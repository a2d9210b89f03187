"""The contract of an attack: it asks for points and is told what the model answers.

An attack is a frozen dataclass of hyper-parameters; it holds no model. A *restart* is one search of
one example, from one start point or towards one target. `begin` gives the state of a batch of
restarts, one per row, each at its own iteration. A state never changes: `tell` returns the next
one. Rows are independent, so the engine may remove, reorder and add rows at any moment without any
change for the others.

    state = begin_at_random(attack, rows, threat, seed)

    for wants_gradient in attack.schedule(threat.norm):
        points = state.ask()
        logits = model(points)
        values = state.objective(logits)
        gradient = ...  # of `values` at the points, where `wants_gradient`
        state = state.tell(logits, values, gradient)
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import (
    Annotated,
    Any,
    ClassVar,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
    cast,
    runtime_checkable,
)

import torch
from torch import Tensor

from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.contracts import Images, Labels, Logits

T = TypeVar("T")
State = TypeVar("State", bound="AttackState")

_SHARED = "shared by all rows"
_LEAST = "the least of all rows"

# A field of a state is a tensor that leads with the row, unless it is marked by one of these. A
# shared value holds for all rows; where states are joined, they must agree on it. A shared least
# value is a number of steps; where states are joined, the least one counts.
Shared: TypeAlias = Annotated[T, _SHARED]
SharedLeast: TypeAlias = Annotated[T, _LEAST]


@dataclass(frozen=True)
class Rows:
    """What restarts begin from, one per row, all on one device.

    `logits` `(n, classes)` are those of the clean images, `ids` `(n,)` int64 the example ids that
    key the randomness. `restart` `(n,)` int64 counts the restarts or targets of an example from 0.
    """

    images: Images
    labels: Labels
    logits: Logits
    ids: Tensor
    restart: Tensor


class AttackState(Protocol):
    """Where each row of a batch stands; a frozen dataclass whose fields are per row or `Shared`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def labels(self) -> Labels:
        """The true classes `(n,)`."""
        ...

    def ask(self) -> Images:
        """Returns the points `(n, c, h, w)` in [0, 1] to evaluate next."""
        ...

    def objective(self, logits: Logits) -> Tensor:
        """Returns the values `(k, n)` to differentiate at the asked points; often k = 1."""
        ...

    def tell(self, logits: Logits, values: Tensor, gradient: Tensor | None) -> Self:
        """Returns the next state from the answers to the asked points.

        `logits` `(n, classes)` and `values` `(k, n)`, the `objective`, are means over several
        answers where a defence is randomized. `gradient` `(k, n, c, h, w)` is that of `values`:
        zero in rows that wanted none, None where no row wanted one.
        """
        ...


@runtime_checkable
class Attack(Protocol):
    """What the `component` of every file of `attacks/` makes; each derives from this class.

    The engine removes a row when the true defence misclassifies one of its points inside the ball,
    or at the end of the schedule. Then the next restart of the example may begin.
    """

    @abstractmethod
    def restart_count(self, norm: Norm, classes: int) -> int:
        """Returns the restarts of an example; they run in order and end at the first success."""

    @abstractmethod
    def schedule(self, norm: Norm) -> tuple[bool, ...]:
        """Returns for each point of a restart whether it wants a gradient."""

    @abstractmethod
    def start_points(self, rows: Rows, threat: Threat, seed: int) -> Images:
        """Returns where the restarts begin by themselves, keyed by seed, example and restart."""

    @abstractmethod
    def begin(self, rows: Rows, threat: Threat, points: Images, seed: int) -> AttackState:
        """Returns the state of restarts that begin at the given points `(n, c, h, w)`.

        Raises `UsageError` where the attack is not defined for the norm or the classes.
        """

    def stays_in_ball(self, norm: Norm) -> bool:
        """Returns whether all asked points lie in the ball, not only in the box."""
        return True

    def least_classes(self) -> int:
        """Returns the number of classes that the attack needs."""
        return 2

    def substitute(self) -> str:
        """Returns the name of the attack that runs instead for fewer classes; empty for none."""
        return ""


def begin_at_random(attack: Attack, rows: Rows, threat: Threat, seed: int) -> AttackState:
    """Returns the state of restarts that begin at the attack's own start points."""
    points = attack.start_points(rows, threat, seed)
    return attack.begin(rows, threat, points, seed)


def take(state: State, rows: Tensor) -> State:
    """Returns the state of the given rows, int64 or bool."""
    return _changed(state, lambda value, _: value[rows])


def put(state: State, rows: Tensor, other: State) -> State:
    """Returns the state with the rows of another one in the given rows, int64 `(m,)`."""
    placed = _changed(state, lambda value, name: value.index_copy(0, rows, getattr(other, name)))
    return _with_least(placed, other)


def join(first: State, second: State) -> State:
    """Returns the rows of both states, one after the other."""
    joined = _changed(first, lambda value, name: torch.cat([value, getattr(second, name)]))
    return _with_least(joined, second)


def row_fields(state: AttackState) -> list[str]:
    """Returns the names of the fields that hold one entry per row."""
    return [field.name for field in fields(state) if not {_SHARED, _LEAST} & _marks(field)]


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Returns values `(n,)` shaped `(n, 1, 1, 1)` to broadcast over images."""
    return values.view(-1, *[1] * (like.ndim - 1))


def weighted_mean(parts: Tensor, weights: Tensor | None) -> Tensor:
    """Returns the mean over the first dimension, under weights `(m,)` with sum 1 where given."""
    if weights is None:
        return parts.mean(dim=0)
    return (per_row(weights, parts) * parts).sum(dim=0)


def _marks(field: Field[Any]) -> set[str]:
    return set(getattr(field.type, "__metadata__", ()))


def _changed(state: State, change: Callable[[Tensor, str], Tensor]) -> State:
    return _replaced(
        state, {name: change(getattr(state, name), name) for name in row_fields(state)}
    )


def _with_least(state: State, other: State) -> State:
    least = [field.name for field in fields(state) if _LEAST in _marks(field)]
    if not least:
        return state
    return _replaced(
        state, {name: min(getattr(state, name), getattr(other, name)) for name in least}
    )


def _replaced(state: State, changes: Mapping[str, object]) -> State:
    # mypy has no name for the dataclasses among the states.
    changed = replace(cast("Any", state), **changes)
    return cast("State", changed)
