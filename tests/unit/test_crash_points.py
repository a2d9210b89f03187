"""Wherever a run is killed, the same command ends with the same files.

The points are every write, fsync, rename and removal. The quick tests take some of them.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from crash_points import kept, marked, points, stopped, without_costs
from oracles import conv, images_for, request
from torch import nn

from robustbench_kd.core.shards import Shard
from robustbench_kd.core.suites import parse_suite
from robustbench_kd.core.threat import Threat
from robustbench_kd.engine.evaluate import evaluate, evaluate_shard
from robustbench_kd.engine.record.merge import merge

_BUDGETS = {"apgd-ce": {"steps": 3}, "apgd-margin": {"steps": 3}, "square": {"queries": 4}}
_QUICK = 6  # points of each kind


class Blurred(nn.Module):
    """A network behind noise that is drawn by key."""

    def __init__(self):
        super().__init__()
        self.network = conv()

    def draw(self, images, key):
        noise = key.normal("noise", images[0].numel()).view_as(images)
        return self.network(images + 0.02 * noise)


class Pair(nn.Module):
    """Two networks that answer by turns; all answers are known."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([conv(), conv(width=5)])
        self.register_buffer("weights", torch.tensor([0.5, 0.5]))

    def members(self):
        return list(self.parts)

    def draw(self, images, key):
        first = key.uniform("member", 1) < 0.5
        return torch.where(first, self.parts[0](images), self.parts[1](images))


def asked(model=None, suite="apgd-ce,square", **options):
    model = model or conv()
    network = getattr(model, "network", None) or (
        model.parts[0] if hasattr(model, "parts") else model
    )
    found = request(model, images_for(network, 8, wrong=1), threat="linf:0.03", **options)
    shorter = replace(parse_suite(suite), budgets=_BUDGETS, norms={})
    return replace(found, suite=shorter, batch_size=3)


def one(results, **options):
    evaluate(asked(**options), results)


def curve(results):
    small = evaluate(replace(asked(), threat=Threat.parse("linf:0.02")), results)
    evaluate(replace(asked(), smaller=small.folder), results)


def fast(results):
    found = asked()
    suite = replace(found.suite, sample={"square": 0.4})
    evaluate(replace(found, suite=suite, threat=Threat.parse("linf:0.002")), results)


def sharded(results):
    folder = evaluate_shard(asked(), results, Shard(1, 2))
    evaluate_shard(asked(), results, Shard(2, 2))
    merge(folder)


KINDS = {
    "standard": partial(one, probes=True),
    "saved images": partial(one, saves=True),
    "curve": curve,
    "ensemble": lambda results: one(results, model=Pair(), suite="apgd-ce"),
    "noise": lambda results: one(results, model=Blurred(), suite="apgd-ce", saves=True),
    "fast": fast,
    "shards": sharded,
    "claim": partial(one, at_least=0.3),
}


def assert_same_wherever_it_stops(run, folder, chosen):
    """Asserts that a run which is stopped at a moment and repeated leaves the same files."""
    undisturbed = folder / "undisturbed"
    run(undisturbed)
    expected = kept(undisturbed)
    for point in chosen:
        results = folder / str(point)
        stopped(partial(run, results), point)
        run(results)
        found = kept(results)
        if found != expected:
            assert without_costs(found) == without_costs(expected), point
            assert marked(results), point


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_some_moment_ends_the_same(tmp_path, kind):
    count = points(partial(KINDS[kind], tmp_path / "counted"))
    assert count > _QUICK
    chosen = [1 + place * (count - 1) // (_QUICK - 1) for place in range(_QUICK)]
    assert_same_wherever_it_stops(KINDS[kind], tmp_path, chosen)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_killed_at_any_moment_ends_the_same(tmp_path, kind):
    count = points(partial(KINDS[kind], tmp_path / "counted"))
    assert_same_wherever_it_stops(KINDS[kind], tmp_path, range(1, count + 1))
