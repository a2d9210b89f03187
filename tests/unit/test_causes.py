"""What is said of a model that fails, by cause; forms of logits that are taken as they are."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from robustbench_kd.checkpoints.architecture import build_network
from robustbench_kd.core.errors import CheckpointError, ModelError
from robustbench_kd.engine.probing.undeclared import first_logits
from robustbench_kd.tensors.causes import advice
from robustbench_kd.tensors.oracle import Oracle

CPU = torch.device("cpu")
IMAGES = torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))


class _Habit(nn.Module):
    """A linear network whose forward does something else to its images or to its logits."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], object] = lambda logits: logits,
        classes: int = 3,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(4, classes)
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> object:
        return self.after(self.linear(self.before(images).flatten(1)))


class _TwoArguments(_Habit):
    def forward(self, images: Tensor, labels: Tensor) -> object:
        return self.linear(images.flatten(1)), labels


FAILURES = {
    "half": (_Habit().half(), "convert the model by .float()"),
    "bfloat16": (_Habit().to(torch.bfloat16), "convert the model by .float()"),
    "integers": (_Habit(lambda images: images.long()), "convert the model by .float()"),
    "device": (_Habit(lambda images: images.to("meta")), "--device"),
    "arguments": (_TwoArguments(), "forward(images)"),
    "layout": (_Habit(lambda images: images.transpose(2, 3).view(4, 4)), ".reshape"),
    "batch": (_Habit(lambda images: images.view(1, 4)), "len(images) for the batch"),
    "features": (nn.Sequential(nn.Flatten(), nn.Linear(9, 3)), "choose the data set"),
    "channels": (nn.Conv2d(3, 1, 1), "choose the data set"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_refusal_names_what_to_do_by_its_cause(name: str) -> None:
    model, expected = FAILURES[name]
    with pytest.raises(ModelError) as caught:
        Oracle(model, CPU).logits(IMAGES)
    assert expected in str(caught.value)
    assert ("data set" in str(caught.value)) == (name in {"batch", "features", "channels"})


def test_a_cause_that_is_not_known_gets_no_advice() -> None:
    assert advice(KeyError("lost")) == ""


def _gradient_error(answer: Callable[[Tensor], Tensor]) -> BaseException:
    points = IMAGES.clone().requires_grad_()
    with pytest.raises(RuntimeError) as caught:
        torch.autograd.grad(answer(points).sum(), points)
    return caught.value


GRADIENTS = {
    "numpy": (lambda x: torch.from_numpy(x.numpy()), "--suite square"),
    "reentrant": (lambda x: checkpoint(torch.sin, x, use_reentrant=True), "use_reentrant=False"),
    "in place": (lambda x: x.exp().add_(1), "out of place"),
    "leaf": (lambda x: x.mul_(2), "out of place"),
    "views": (lambda x: x.unbind()[0].add_(1), "out of place"),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_missing_gradient_is_explained_by_its_cause(name: str) -> None:
    answer, expected = GRADIENTS[name]
    assert expected in advice(_gradient_error(answer))


TAKEN = {
    "squeezed": _Habit(after=lambda logits: logits.squeeze()),
    "spatial": _Habit(after=lambda logits: logits[:, :, None, None]),
    "tuple": _Habit(after=lambda logits: (logits, logits.sum())),
    "dict": _Habit(after=lambda logits: {"logits": logits, "features": logits.repeat(1, 3)}),
}


@pytest.mark.parametrize("name", TAKEN)
def test_logits_are_taken_where_they_are_plain(name: str) -> None:
    habit = TAKEN[name]
    oracle, first = first_logits(Oracle(habit, CPU), IMAGES[:1], classes=3)
    expected = habit.linear(IMAGES.flatten(1))
    assert torch.allclose(first, expected[:1])
    assert torch.allclose(oracle.logits(IMAGES), expected)


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_one_logit_stands_for_two_classes(shape: tuple[int, ...]) -> None:
    habit = _Habit(after=lambda logit: logit.reshape(shape), classes=1)
    oracle, _ = first_logits(Oracle(habit, CPU), IMAGES[:1], classes=2)
    logit = habit.linear(IMAGES.flatten(1))[:, 0]
    assert torch.equal(oracle.logits(IMAGES).argmax(dim=1), (logit > 0).long())


def test_one_logit_for_more_classes_is_refused_with_a_hook_that_works() -> None:
    habit = _Habit(classes=1)
    with pytest.raises(ModelError, match="expected logits of 10 classes, got one number") as caught:
        first_logits(Oracle(habit, CPU), IMAGES[:1], classes=10)
    hook = str(caught.value).partition("register_forward_hook")[2]

    habit.register_forward_hook(eval(hook))  # what a person copies
    assert Oracle(habit, CPU).logits(IMAGES).shape == (4, 2)


def test_a_factory_that_returns_no_module_is_told_what_to_return(tmp_path: Path) -> None:
    source = tmp_path / "forms.py"
    source.write_text(
        "from torch import nn\n"
        "def pair(): return nn.Flatten(), None\n"
        "def function(): return lambda images: images\n"
        "def cls(): return nn.Flatten\n"
    )
    for name, expected in (
        ("pair", "return the model alone"),
        ("function", "return the network itself"),
        ("cls", "not the class"),
    ):
        with pytest.raises(CheckpointError, match=expected):
            build_network(f"{source}:{name}", {}, classes=3, shape=(1, 2, 2))
