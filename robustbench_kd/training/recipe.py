"""Recipes: everything that decides how a network is trained, read from TOML."""

import re
import tomllib
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails
from torch import nn

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.core.received import read_toml
from robustbench_kd.distill import open_method
from robustbench_kd.tensors.distillation import BatchContext, Method, MethodOptions, Objective

METHODS = "training/methods"
DISTILLATION = "distill"


class Recipe(BaseModel):
    """How a defence is trained; the threat, the data and what is trained are chosen beside it.

    With 0 `epochs` nothing is optimised: a defence that is composed of parts only fits itself to
    the data. `schedule` moves the learning rate once per step: `onecycle` rises linearly over the
    first 30 % of the steps and falls linearly to zero, `milestones` multiplies it by `decay` after
    each epoch of `milestones`. `augmentation` pads with black by `padding` pixels and crops at
    random (`shift`), and also mirrors half of the images (`flip_crop`). `validation` examples are
    held out of the training split; `selection` keeps the epoch with the best accuracy on them under
    PGD of `validation_steps` steps, or the last one. The inner attack makes `attack_steps` steps of
    `step_size` radii, from a `random_start` drawn uniformly from the ball or from 0.001 N(0, 1),
    with batch normalisation in `attack_mode`. `beta` weighs the divergence in TRADES;
    `gradient_clip` bounds the l2 norm of the gradient. `noise_shape` is for denoisers: the standard
    deviation of an image's noise is drawn from a Gamma distribution of that shape around the
    defence's own, which all images have without it.

    `options` are those of a distillation method, `additions` what plugs into it, each with options
    of its own. The rate rises linearly over the first `warmup` epochs, before the schedule takes
    over where it then is. From epoch `averaging_start` on, `weight_averaging` measures and keeps an
    average of the weights in their place: `swa`, the mean over ends of epochs with statistics of
    batch normalisation estimated anew, or `ema`, which forgets by `averaging_decay` with each step.
    With `stored_views` the teachers are asked once about so many fixed views of each image, which
    take the place of augmentation. `precision` is that of the student's passes while it learns.
    What is left out is not used.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    summary: str = ""
    method: str
    epochs: NonNegativeInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    seed: int = Field(default=0, ge=0, lt=2**63)
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat | None = None
    schedule: Literal["constant", "cosine", "onecycle", "milestones"] = "cosine"
    # TOML has lists, not tuples.
    milestones: tuple[PositiveInt, ...] = Field(default=(), strict=False)
    decay: PositiveFloat = 0.1
    augmentation: Literal["none", "shift", "flip_crop"] = "none"
    padding: PositiveInt = 1
    validation: PositiveInt
    validation_steps: PositiveInt = 20
    selection: Literal["robust", "last"] = "robust"
    attack_steps: PositiveInt = 10
    step_size: PositiveFloat = 0.25
    random_start: Literal["none", "uniform", "gaussian"] = "uniform"
    attack_mode: Literal["train", "eval"] = "eval"
    beta: NonNegativeFloat = 6.0
    noise_shape: PositiveInt | None = None
    options: dict[str, object] | None = None
    additions: dict[str, dict[str, object]] | None = None
    warmup: PositiveInt | None = None
    weight_averaging: Literal["swa", "ema"] | None = None
    averaging_start: PositiveInt | None = None
    averaging_decay: float | None = Field(default=None, ge=0, lt=1)
    stored_views: PositiveInt | None = None
    precision: Literal["bf16"] | None = None

    @field_validator("weight_averaging", mode="before")
    @classmethod
    def _none_is_nothing(cls, value: object) -> object:
        return None if value == "none" else value

    @model_validator(mode="after")
    def _goes_together(self) -> "Recipe":
        if self.weight_averaging and self.averaging_start is None:
            raise ValueError(
                "expected averaging_start, the first epoch that is averaged, beside "
                "weight_averaging"
            )
        if self.weight_averaging == "ema" and self.averaging_decay is None:
            raise ValueError(
                'expected averaging_decay, such as 0.999, beside weight_averaging = "ema"'
            )
        if self.stored_views and self.augmentation != "none":
            raise ValueError(
                'expected augmentation = "none" beside stored_views, which take its place'
            )
        return self

    def opened(self) -> Method:
        """Returns the training or distillation method that it names, with its options.

        Raises `UsageError` for a method or an option that does not exist, with the nearest one that
        does.
        """
        if self.method in plugins.components(DISTILLATION):
            return open_method(self.method, self.options, self.additions)
        component = plugins.find(METHODS, self.method, "training method")
        if self.options or self.additions:
            raise UsageError(
                f"'{self.method}' takes no options and no additions: only distillation methods do"
            )
        module = plugins.module(METHODS, component.stem)
        return Method(
            name=self.method,
            options=_Alone(),
            inner=partial(getattr(module, "inner", _no_attack), recipe=self),
            loss=partial(module.loss, recipe=self),
            prepare=lambda _: nn.Module(),
        )


class _Alone(MethodOptions):
    """The options of a method that has no teacher and takes everything from the recipe."""

    def teachers(self) -> tuple[str, ...]:
        """Returns none."""
        return ()


def load_recipe(
    name_or_path: str,
    overrides: Mapping[str, str] | None = None,
    *,
    additions: Collection[str] = (),
) -> Recipe:
    """Reads a recipe by its name or from a TOML file, and replaces single keys.

    An override is a TOML value, `{"epochs": "5", "options.temperature": "4.0"}`; a word needs no
    quotes. What a recipe says of an addition only holds where it is among `additions`, each of
    which has its defaults where the recipe says nothing. Raises `UsageError` for a recipe, key or
    method that does not exist, with the nearest one that does, and for a value that cannot be.

    >>> load_recipe("digits-plain", {"epochs": "3"}).epochs
    3
    """
    values = read_toml(_locate(name_or_path), "recipe", UsageError)
    for key, text in (overrides or {}).items():
        _place(values, key, _value(key, text))
    for key in values:
        if key not in Recipe.model_fields:
            raise unknown_name("recipe key", key, Recipe.model_fields)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"recipe '{name_or_path}': {_sentence(error.errors()[0])}") from None
    known = recipe.additions or {}
    return _spelled(
        recipe.model_copy(
            update={"additions": {name: known.get(name, {}) for name in additions} or None}
        )
    )


def _spelled(recipe: Recipe) -> Recipe:
    """Returns the recipe with every option of its method.

    Raises `UsageError` for a recipe that cannot train.
    """
    method = recipe.opened()
    options = method.options.model_dump(mode="json")
    additions = {name: chosen.model_dump(mode="json") for name, chosen in method.additions.items()}
    return recipe.model_copy(update={"options": options or None, "additions": additions or None})


def _locate(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    known = plugins.files("training/recipes", ".toml") | plugins.files("distill/recipes", ".toml")
    if name_or_path not in known:
        raise unknown_name("recipe", name_or_path, known)
    return known[name_or_path]


def _place(values: dict[str, object], key: str, value: Any) -> None:
    """Sets what a dotted key such as `additions.igdm.alpha` leads to."""
    *tables, last = key.split(".")
    for table in tables:
        inner = values.setdefault(table, {})
        if not isinstance(inner, dict):
            raise UsageError(f"recipe key '{key}': '{table}' holds no further keys")
        values = inner
    values[last] = value


def _value(key: str, text: str) -> Any:
    if re.fullmatch(r"[A-Za-z][\w-]*", text) and text not in {"true", "false", "inf", "nan"}:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        parsed = {}
    if list(parsed) != ["value"]:
        raise UsageError(
            f"recipe key '{key}': expected a TOML value such as 5, 0.1, true or [3, 4], got "
            f"{text!r}"
        )
    return parsed["value"]


def _sentence(detail: ErrorDetails) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{field}: expected a value, got none"
    said = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if field:
        return f"{field}: {said}, got {detail['input']!r}"
    return said


def _no_attack(_context: BatchContext, recipe: Recipe) -> Objective | None:
    return None
