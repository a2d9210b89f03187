"""Distillation methods, one file each: what their attack raises, and the loss of a batch.

A method offers `Options`, a `MethodOptions`, and `loss(context, options) -> Terms`; one that trains
on adversarial images also `inner(context, options) -> Objective`, and one that learns or remembers
more than the student `prepare(setup, options)`, a module. An addition offers `Options` and
`term(context, options) -> Terms`, and plugs into any method that attacks.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, TypeVar

from pydantic import ValidationError
from torch import nn

from robustbench_kd.core import plugins
from robustbench_kd.core.errors import UsageError, unknown_name
from robustbench_kd.tensors.distillation import (
    BatchContext,
    Method,
    MethodOptions,
    Objective,
    Setup,
    Terms,
)

_KIND = "distill"
_Given = Mapping[str, Any]
_In = TypeVar("_In")
_Out = TypeVar("_Out")


def open_method(
    name: str, options: _Given | None = None, additions: Mapping[str, _Given] | None = None
) -> Method:
    """Returns a method by its name, with its options and with the additions that plug into it.

    Raises `UsageError` for a name or option that does not exist, with the nearest one that does,
    for an impossible value, and for an addition to a method that has no adversarial images or no
    teacher.

    >>> open_method("rslad", {"scale": 10.0}, {"igdm": {"alpha": 3.0}}).options.teachers()
    ('teacher',)
    """
    component, module = _opened(name, "loss", "distillation method")
    chosen = _options(name, module, {**component.arguments, **(options or {})})
    terms, added = [_bound(module.loss, chosen)], {}
    for addition, given in (additions or {}).items():
        _, part = _opened(addition, "term", "addition")
        _check_host(name, module, chosen, addition)
        added[addition] = _options(addition, part, given)
        terms.append(_bound(part.term, added[addition]))
    return Method(
        name=name,
        options=chosen,
        inner=_bound(getattr(module, "inner", _no_attack), chosen),
        loss=partial(_merged, terms),
        prepare=_bound(getattr(module, "prepare", _nothing), chosen),
        additions=added,
    )


def _opened(name: str, offers: str, singular: str) -> tuple[plugins.Component, ModuleType]:
    known = plugins.components(_KIND)
    if name not in known:
        fit = [
            other
            for other, part in known.items()
            if hasattr(plugins.module(_KIND, part.stem), offers)
        ]
        raise unknown_name(singular, name, fit)
    component = known[name]
    module = plugins.module(_KIND, component.stem)
    if not hasattr(module, offers):
        raise UsageError(
            f"'{name}' is no {singular}: give additions by --with, and methods as the method"
        )
    return component, module


def _options(name: str, module: ModuleType, given: _Given) -> MethodOptions:
    schema: type[MethodOptions] = module.Options
    for key in given:
        if key not in schema.model_fields:
            raise unknown_name(f"option of {name}", key, schema.model_fields)
    try:
        return schema.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"option '{field}' of {name}: {first['msg'].replace('Input should be', 'expected')}, "
            f"got {first['input']!r}"
        ) from None


def _check_host(name: str, module: ModuleType, options: MethodOptions, addition: str) -> None:
    if not hasattr(module, "inner"):
        raise UsageError(
            f"'{addition}' needs adversarial images, which '{name}' does not make: choose another "
            "method"
        )
    if not options.teachers():
        raise UsageError(
            f"'{addition}' needs a teacher, which '{name}' does not have: choose another method"
        )


def _bound(
    function: Callable[[_In, MethodOptions], _Out], options: MethodOptions
) -> Callable[[_In], _Out]:
    return lambda given: function(given, options)


def _merged(terms: list[Callable[[BatchContext], Terms]], context: BatchContext) -> Terms:
    return {name: value for term in terms for name, value in term(context).items()}


def _no_attack(_context: BatchContext, _options: MethodOptions) -> Objective | None:
    return None


def _nothing(_setup: Setup, _options: MethodOptions) -> nn.Module:
    return nn.Module()
