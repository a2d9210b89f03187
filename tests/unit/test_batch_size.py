"""The batch size of a run: a power of two within limits, found by the time per image."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from robustbench_kd.core.errors import IncompleteError, ModelError
from robustbench_kd.engine.passes import batch_size as tuning
from robustbench_kd.engine.passes.batch_size import batch_size

CPU = torch.device("cpu")
IMAGES = torch.rand(3, 1, 2, 2)


class Machine:
    """A model on a machine whose clock only its passes move.

    `seconds` of a batch of n rows, and no more than `room`.
    """

    def __init__(self, patch, seconds, room=10**9):
        self.now, self.tried = 0.0, []
        self._seconds, self._room = seconds, room
        patch.setattr(tuning, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def __call__(self, images):
        self.tried.append(len(images))
        if len(images) > self._room:
            raise torch.OutOfMemoryError("full")
        self.now += self._seconds(len(images))
        return images.flatten(1)


def chosen(seconds, *, most=1024, room=10**9):
    """The size, and the sizes that were tried in order."""
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, seconds, room)
        return batch_size(machine, IMAGES, CPU, most=most), list(dict.fromkeys(machine.tried))


def falling_to(knee):
    """A machine that takes the same time for any batch up to `knee` rows, and a fifth more per
    image beyond."""
    return lambda n: 0.001 * max(n, knee) * (1.2 if n > knee else 1)


def saturating(knee):
    """A machine that takes the same time for any batch up to `knee` rows."""
    return lambda n: 0.001 * max(n, knee)


@given(most=st.integers(1, 5000), knee=st.integers(1, 5000), room=st.integers(1, 5000))
def test_the_size_is_a_power_of_two_that_fits(most, knee, room):
    size, _ = chosen(saturating(knee), most=most, room=room)
    assert size <= min(most, room)
    assert size.bit_count() == 1


def test_the_size_grows_while_the_time_per_image_falls():
    assert chosen(falling_to(128)) == (128, [16, 32, 64, 128, 256, 512])


def test_of_the_nearly_fastest_sizes_the_largest_is_taken():
    assert chosen(saturating(128), most=10**4) == (512, [16, 32, 64, 128, 256, 512])


def test_what_an_attack_computes_beside_its_passes_counts():
    """The passes take the same time per image in every batch, each other operation the same time
    for a whole batch."""

    class Costly(torch.Tensor):
        def __add__(self, other):
            machine.now += 0.001
            return self

    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, lambda n: 0.001 * n)
        assert batch_size(machine, IMAGES.as_subclass(Costly), CPU, most=256) == 256


def test_one_disturbed_doubling_does_not_end_the_search():
    disturbed = {32: 0.4}
    assert chosen(lambda n: disturbed.get(n, falling_to(128)(n)))[0] == 128


def test_larger_batches_that_are_slower_per_image_are_not_chosen():
    assert chosen(lambda n: 0.001 * n * (1 + n / 64)) == (16, [16, 32, 64])


def test_no_larger_batch_is_tried_after_a_slow_one():
    size, tried = chosen(lambda n: 1 + n / 100, most=10**6)
    assert (size, tried[-1]) == (256, 256)


def test_a_slow_first_batch_is_measured_once():
    with pytest.MonkeyPatch.context() as patch:
        machine = Machine(patch, lambda _: 10)
        assert batch_size(machine, IMAGES, CPU, most=99) == 16
        assert machine.tried == [16]


def test_short_steps_are_repeated_after_one_to_warm_up_and_their_mean_counts():
    times = iter([0.1, 0.001, *[0.05] * 4, 0.15, *[0.06] * 4])
    assert chosen(lambda _: next(times), most=32)[0] == 32


def test_out_of_memory_ends_the_doubling():
    assert chosen(saturating(2000), room=100) == (64, [16, 32, 64, 128])


def test_out_of_memory_at_once_halves_the_size():
    size, tried = chosen(saturating(2000), room=5)
    assert size == 4
    assert tried[:3] == [16, 8, 4]


def test_memory_for_not_even_one_image_ends_the_run():
    with pytest.raises(IncompleteError, match="one image"):
        chosen(saturating(1), room=0)


def test_other_errors_of_a_model_are_not_taken_for_missing_memory():
    with pytest.raises(ModelError, match="division by zero"):
        chosen(lambda n: n / 0)


@pytest.mark.parametrize(("free", "crowded"), [(31, False), (29, True)])
def test_a_gpu_keeps_three_tenths_of_its_memory_free(monkeypatch, free, crowded):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free, 100))
    assert tuning._crowded(torch.device("cuda")) is crowded


def test_a_size_that_crowds_the_memory_is_not_taken_but_for_the_first(monkeypatch):
    monkeypatch.setattr(tuning, "_crowded", lambda _device: True)
    assert chosen(saturating(2000)) == (16, [16, 32])


def test_a_model_without_gradients_is_timed_by_its_forward_passes():
    assert batch_size(lambda images: images.detach().flatten(1), IMAGES, CPU, most=16) == 16


def test_a_real_model_is_tuned_on_repeated_images():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    assert batch_size(model, IMAGES, CPU, most=40) in {16, 32}
