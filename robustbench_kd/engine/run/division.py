"""Which plans can be carried out in parts: example by example, or by several processes."""

from robustbench_kd.core.engines import engine_traits
from robustbench_kd.core.errors import UsageError
from robustbench_kd.engine.run.plan import Plan
from robustbench_kd.tensors.defence import Batched


def require_sequential(plan: Plan) -> None:
    """Raises `UsageError` where a claim cannot be settled example by example."""
    if plan.request.at_least is None:
        return
    if plan.oracle.randomized:
        raise UsageError(
            "--until-decided counts examples, but the defence is randomized: evaluate all of them"
        )
    if plan.request.smaller:
        raise UsageError(
            "--until-decided is for one radius, not for a curve: give each radius by a --threat of "
            "its own"
        )
    if plan.suite.mode == "fast":
        raise UsageError("--until-decided and --mode fast both take samples: use one of them")


def require_divisible(plan: Plan) -> None:
    """Raises `UsageError` where the verdict on an example depends on the others of its run."""
    if engine_traits(plan.request.engine).batch_matters:
        raise UsageError(
            "the AutoAttack package's verdicts depend on which images share a batch: use "
            "--engine native"
        )
    if plan.suite.mode == "fast":
        raise UsageError(
            "--mode fast samples among all survivors, which no shard knows: use --mode exact"
        )
    if isinstance(plan.oracle.model, Batched):
        raise UsageError(
            "the defence draws random numbers without a key, so that a search depends on the rest "
            "of its batch: use one worker, or offer draw(images, key)"
        )
    if plan.request.at_least is not None:
        raise UsageError(
            "--until-decided stops as soon as examples in their order settle the claim: use one "
            "worker"
        )
