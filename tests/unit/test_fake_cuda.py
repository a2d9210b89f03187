"""Attacks on tensors that claim to lie on a GPU: a mismatch of devices or a question raises."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from robustbench_kd.core.plugins import components, module
from robustbench_kd.core.threat import Norm, Threat
from robustbench_kd.tensors.attack import Rows, begin_at_random, join, take

THREATS = {Norm.LINF: "linf:0.1", Norm.L2: "l2:0.7", Norm.L1: "l1:3"}
N, CLASSES, SHAPE = 6, 5, (3, 8, 8)


def cases():
    for name, component in components("attacks").items():
        for norm in THREATS:
            attack = module("attacks", component.stem).component(**component.arguments)
            if (name, norm) == ("pgd", Norm.L1):  # which it refuses
                continue
            yield pytest.param(attack, norm, id=f"{name}-{norm.value}")


def rows():
    cuda = torch.device("cuda", 0)
    return Rows(
        images=torch.rand(N, *SHAPE, device=cuda),
        labels=torch.zeros(N, dtype=torch.long, device=cuda),
        logits=torch.randn(N, CLASSES, device=cuda),
        ids=torch.arange(N, device=cuda),
        restart=torch.zeros(N, dtype=torch.long, device=cuda),
    )


def step(state, weight):
    """Asks for points, evaluates a linear model and tells the attack.

    The backward pass of fake tensors needs a real device, so the gradients have only its shape.
    """
    points = state.ask()
    logits = points.flatten(1) @ weight
    values = state.objective(logits)
    return state.tell(logits, values, torch.randn(len(values), *points.shape, device=points.device))


@pytest.mark.parametrize(("attack", "norm"), list(cases()))
def test_restarts_begin_step_and_join_without_a_question_to_the_device(attack, norm):
    with FakeTensorMode():
        weight = torch.randn(torch.Size(SHAPE).numel(), CLASSES, device="cuda:0")
        begun = begin_at_random(attack, rows(), Threat.parse(THREATS[norm]), 0)
        state = step(step(begun, weight), weight)

        left = take(state, torch.arange(2, device="cuda:0"))
        joined = step(join(left, begun), weight)
        assert joined.ask().shape == (N + 2, *SHAPE)
        assert joined.ask().device == torch.device("cuda", 0)
