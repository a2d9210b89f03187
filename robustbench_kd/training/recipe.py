"""Recipes: everything that decides how a network is trained, read from TOML."""

import re
import tomllib
from collections.abc import Mapping
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
)
from pydantic_core import ErrorDetails

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import UsageError, unknown_name

METHODS = "training/methods"


class Recipe(BaseModel):
    """How a defence is trained; the threat, the data and what is trained are chosen beside it.

    With 0 `epochs` nothing is optimised: a defence that is composed of parts only fits itself to the data. `schedule` moves the learning rate once per step: `onecycle` rises linearly over the first 30 % of the
    steps and falls linearly to zero, `milestones` multiplies it by `decay` after each epoch of `milestones`.
    `augmentation` pads with black by `padding` pixels and crops at random (`shift`), and also mirrors half of
    the images (`flip_crop`). `validation` examples are held out of the training split; `selection` keeps the
    epoch with the best accuracy on them under PGD of `validation_steps` steps, or the last one. The inner
    attack makes `attack_steps` steps of `step_size` radii, from a `random_start` drawn uniformly from the
    ball or from 0.001 N(0, 1), with batch normalisation in `attack_mode`. `beta` weighs the divergence in
    TRADES; `gradient_clip` bounds the l2 norm of the gradient. `noise_shape` is for denoisers: the standard
    deviation of an image's noise is drawn from a Gamma distribution of that shape around the defence's own,
    which all images have without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    summary: str = ""
    method: str
    epochs: NonNegativeInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    seed: int = Field(default=0, ge=0, lt=2**63)
    optimiser: Literal["sgd", "adam"] = "sgd"
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: NonNegativeFloat = 0.0
    gradient_clip: PositiveFloat | None = None
    schedule: Literal["constant", "cosine", "onecycle", "milestones"] = "cosine"
    milestones: tuple[PositiveInt, ...] = Field(default=(), strict=False)  # TOML has lists, not tuples
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


def load_recipe(name_or_path: str, overrides: Mapping[str, str] | None = None) -> Recipe:
    """Reads a recipe by its name or from a TOML file, and replaces single keys.

    An override is a TOML value, `{"epochs": "5", "milestones": "[3, 4]"}`; a word needs no quotes. Raises
    `UsageError` for a recipe, key or method that does not exist, with the nearest one that does, and for a
    value that cannot be.

    >>> load_recipe("digits-plain", {"epochs": "3"}).epochs
    3
    """
    values = _read(_locate(name_or_path))
    values |= {key: _value(key, text) for key, text in (overrides or {}).items()}
    for key in values:
        if key not in Recipe.model_fields:
            raise unknown_name("recipe key", key, Recipe.model_fields)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"recipe '{name_or_path}': {_sentence(error.errors()[0])}") from None
    plugins.find(METHODS, recipe.method, "training method")
    return recipe


def _locate(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    known = plugins.files("training/recipes", ".toml")
    if name_or_path not in known:
        raise unknown_name("recipe", name_or_path, known)
    return known[name_or_path]


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"recipe '{path}' cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe '{path}' is not a TOML file: {error}") from None


def _value(key: str, text: str) -> Any:
    if re.fullmatch(r"[A-Za-z][\w-]*", text) and text not in {"true", "false", "inf", "nan"}:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    if list(parsed) != ["value"]:
        raise UsageError(f"recipe key '{key}': expected a TOML value such as 5, 0.1, true or [3, 4], got {text!r}")
    return parsed["value"]


def _sentence(detail: ErrorDetails) -> str:
    field = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "missing":
        return f"{field}: expected a value, got none"
    return f"{field}: {detail['msg'].replace('Input should be', 'expected')}, got {detail['input']!r}"
