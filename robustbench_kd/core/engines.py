"""The engines that can run an evaluation, and what their numbers depend on."""

from dataclasses import dataclass

from robustbench_kd.core.errors import unknown_name


@dataclass(frozen=True)
class EngineTraits:
    """What sets an engine apart.

    Args:
        name: As --engine and records have it.
        batch_matters: Whether verdicts depend on which images share a batch.
        one_draw_breaks: Whether an example of a randomized defence counts as broken after a single
            wrong draw; otherwise its expected accuracy counts.
        batch_size: Images per batch if nothing else is asked for; 0 is chosen by trial.
    """

    name: str
    batch_matters: bool
    one_draw_breaks: bool
    batch_size: int


NATIVE = EngineTraits("native", batch_matters=False, one_draw_breaks=False, batch_size=0)
AUTOATTACK = EngineTraits("autoattack", batch_matters=True, one_draw_breaks=True, batch_size=250)
ENGINES = {traits.name: traits for traits in (AUTOATTACK, NATIVE)}


def engine_traits(name: str) -> EngineTraits:
    """Returns the traits of an engine; raises `UsageError` for an unknown name.

    >>> engine_traits("native").batch_matters
    False
    """
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    return ENGINES[name]
