"""The two engines by name."""

from robustbench_kd.core.engines import AUTOATTACK, NATIVE, engine_traits
from robustbench_kd.engine.autoattack import cascade as autoattack
from robustbench_kd.engine.native import cascade as native
from robustbench_kd.engine.run.engine import Engine

_ENGINES: dict[str, Engine] = {AUTOATTACK.name: autoattack, NATIVE.name: native}


def open_engine(name: str) -> Engine:
    """Returns an engine; raises `UsageError` for an unknown name."""
    return _ENGINES[engine_traits(name).name]
