"""Takes a model as people write it: logits in other forms, chance that no key decides."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from robustbench_kd.core.errors import ModelError
from robustbench_kd.core.records import Finding, Severity
from robustbench_kd.engine.anatomy.chance import Chance, Unkeyed, find_chance, finding
from robustbench_kd.engine.passes.batching import with_fewer
from robustbench_kd.tensors.contracts import Images, Logits
from robustbench_kd.tensors.oracle import Oracle, changes_argument, guarded, is_out_of_memory

_IMAGES = 16
_NAMES = ("logits", "output", "outputs", "preds", "predictions")

_WRITES = Finding(
    check="changes-argument",
    severity=Severity.INFO,
    message="the model writes into the images that it is given; it is given a copy every time",
    advice="compute out of place: tools that keep their images measure a wrong number",
)

_TWO = 2
_WRAPPER = "in its factory, say model.register_forward_hook(lambda model, images, z: {})"

Place: TypeAlias = str | int


class _Around(nn.Module):
    """Another form of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


class Picked(_Around):
    """A model whose output holds its logits at a place: a key, an attribute or a number."""

    def __init__(self, model: nn.Module, place: Place) -> None:
        super().__init__(model)
        self.place = place

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        logits: Logits = _at(self.model(images), self.place)
        return logits


class Fresh(_Around):
    """A model that writes into its argument, and is given a copy of the images every time."""

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        logits: Logits = self.model(images.clone())
        return logits


class Rows(_Around):
    """A model whose logits lack the batch axis for one image, or have more axes of length one."""

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` to logits `(n, classes)`."""
        logits: Logits = self.model(images)
        return logits.unsqueeze(0) if logits.ndim == 1 else logits.flatten(1)


class TwoClasses(_Around):
    """A model of two classes whose one logit is positive for class 1."""

    def forward(self, images: Images) -> Logits:
        """Maps images `(n, c, h, w)` to logits `(n, 2)`."""
        return pad(self.model(images).reshape(len(images), 1), (1, 0))


def first_logits(oracle: Oracle, image: Images, classes: int) -> tuple[Oracle, Logits]:
    """Returns the logits of an image `(1, c, h, w)`, and the oracle that gives them.

    It picks them from a model's output that holds more: the one matrix in it, the one with so many
    columns as there are classes, or the one of a usual name. Axes of length one are taken away, and
    one logit stands for two classes. Raises `ModelError` where there are none, or where it is not
    plain which part of the output they are.
    """
    try:
        return oracle, oracle.logits(image)
    except ModelError:
        wrapped = _with_logits(oracle.model, image.to(oracle.device), classes)
        if wrapped is None:
            raise
    taken = oracle.around(wrapped)
    return taken, taken.logits(image)


def with_chance(oracle: Oracle, images: Images) -> tuple[Oracle, tuple[Finding, ...]]:
    """Returns the oracle that an evaluation asks, and what a reader must know of it.

    A model that answers at random is asked as the randomized defence it is. Raises `ModelError`
    where it does not give finite logits for a few of the images `(n, c, h, w)`.
    """
    if oracle.randomized:
        return oracle, ()

    def look(size: int) -> tuple[bool, Chance | None]:
        few = images[:size].to(oracle.device)
        oracle.logits(few)
        with guarded("the model answered a few images, and failed on the same ones again"):
            return changes_argument(oracle.model, few), find_chance(Fresh(oracle.model), few)

    writes, chance = with_fewer(min(_IMAGES, len(images)), look)
    found: tuple[Finding, ...] = ()
    if writes:
        oracle, found = oracle.around(Fresh(oracle.model)), (_WRITES,)
    if chance is None:
        return oracle, found
    return oracle.around(Unkeyed(oracle.model, chance)), (*found, finding(chance))


@torch.no_grad()
def _with_logits(model: nn.Module, image: Images, classes: int) -> nn.Module | None:
    """Returns a module that gives the logits of a model, None where its output says nothing.

    Raises `ModelError` where it is not plain which numbers they are.
    """
    try:
        output = model(image.clone())
    except (Exception, SystemExit) as error:
        if is_out_of_memory(error):
            raise
        return None  # the oracle says what is wrong
    if isinstance(output, Tensor):
        return _with_rows(model, output, classes)
    return Picked(model, _place_of_logits(output, classes))


def _with_rows(model: nn.Module, output: Tensor, classes: int) -> nn.Module | None:
    """Returns a module that gives logits `(n, classes)` where a tensor has another shape."""
    if output.numel() == 1 and classes == _TWO:
        return TwoClasses(model)
    if output.numel() == 1:
        hook = _WRAPPER.format("torch.nn.functional.pad(z.reshape(-1, 1), (1, 0))")
        raise ModelError(
            f"expected logits of {classes} classes, got one number for an image; if it decides "
            f"between two, {hook}"
        )
    if output.numel() in (output.shape[0], output.shape[:2].numel()):
        return Rows(model)
    return None


def _place_of_logits(output: Any, classes: int) -> Place:
    """Returns where the logits are in an output that is no tensor.

    Raises `ModelError` where that is not plain.
    """
    rows = {place: value for place, value in _parts(output).items() if _is_row(value)}
    fitting = [place for place, value in rows.items() if value.shape[1] == classes]
    named = [place for place in rows if place in _NAMES]
    for found in (list(rows), fitting, named):
        if len(found) == 1:
            return found[0]
    raise ModelError(
        f"expected the model to return a tensor of logits, got {type(output).__name__}"
        f"{_described(rows)}; {_WRAPPER.format('z[0]')}, with the place of the logits for 0"
    )


def _parts(output: Any) -> dict[Place, Any]:
    """Returns the parts of an output by their place: a key, the name of an attribute, a number."""
    if isinstance(output, Mapping):
        return dict(output)
    if isinstance(output, tuple) and hasattr(output, "_asdict"):
        return dict(output._asdict())
    if isinstance(output, tuple | list):
        return dict(enumerate(output))
    return dict(vars(output)) if hasattr(output, "__dict__") else {}


def _is_row(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and len(value) == 1 and value.shape[1] > 1


def _at(output: Any, place: Place) -> Any:
    return _parts(output)[place]


def _described(rows: Mapping[Place, Any]) -> str:
    parts = [f"{place} {tuple(value.shape)}" for place, value in rows.items()]
    return f" with {', '.join(parts)}" if parts else ""
