"""Stored logits, fixed views and averages of weights."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from robustbench_kd.core.errors import CheckpointError, ModelError, RecordError, UsageError
from robustbench_kd.distill import open_method
from robustbench_kd.models import vit_tiny
from robustbench_kd.tensors import stored_logits
from robustbench_kd.tensors.averaging import average, ema_share, swa_share
from robustbench_kd.tensors.contracts import Dataset
from robustbench_kd.tensors.distillation import BatchContext, CachedNetwork, FrozenTeacher, Progress
from robustbench_kd.tensors.stored_logits import Source, StoredTeacher, Views

CPU = torch.device("cpu")
VIEWS = Views(count=3, padding=1)
SOURCE = Source(teacher="a" * 64, dataset="b" * 64, views=VIEWS)


def dataset():
    images = torch.rand(7, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return Dataset("tiny", images, torch.arange(7) % 3, (12, 3, 40, 7, 99, 0, 5), 3)


def teacher(seed=0, scale=1.0):
    torch.manual_seed(seed)
    built = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.normal_(built[1].weight, std=scale)
    return built


def stored(views=VIEWS, **changed):
    return stored_logits.ask(teacher(**changed), dataset(), views, batch_size=3, device=CPU)


def ids(data):
    return torch.tensor(data.ids)


# Views


def test_view_zero_is_the_image_and_view_one_its_mirror_image():
    data, zero = dataset(), torch.zeros(7, dtype=torch.long)
    assert torch.equal(VIEWS.of(data.images, ids(data), zero), data.images)
    assert torch.equal(VIEWS.of(data.images, ids(data), zero + 1), data.images.flip(-1))


def test_further_views_are_shifted_and_every_second_one_mirrored():
    views = Views(count=6, padding=2)
    image = torch.zeros(200, 1, 5, 5)
    image[:, :, 2, 2] = 1
    many = torch.arange(200)
    seen = set()
    for number in (2, 3):
        moved = views.of(image, many, torch.full((200,), number))
        assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.ones(200))
        seen |= {tuple(place) for place in moved.nonzero()[:, 2:].tolist()}
    assert len(seen) == 25, "every shift of up to two pixels occurs"


def test_views_without_mirrors_are_shifts_only():
    plain, data = Views(count=3, mirror=False), dataset()
    assert torch.equal(plain.of(data.images, ids(data), torch.full((7,), 1)), data.images)


def test_a_view_depends_on_example_and_number_alone():
    data, views = dataset(), torch.tensor([0, 1, 2, 2, 1, 2, 0])
    whole = VIEWS.of(data.images, ids(data), views)
    order = torch.tensor([3, 5, 2])
    part = data.take(order)
    assert torch.equal(VIEWS.of(part.images, ids(part), views[order]), whole[order])


# Stored logits


def test_stored_logits_are_the_teacher_s_answers_to_every_view():
    data, found = dataset(), stored()
    for view in range(3):
        numbers = torch.full((7,), view)
        expected = teacher()(VIEWS.of(data.images, ids(data), numbers))
        torch.testing.assert_close(found.of(ids(data), numbers), expected, rtol=1e-3, atol=1e-3)
    assert found.logits.dtype is torch.float16


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "teacher.safetensors"
    stored_logits.write(path, stored(), SOURCE)
    found = stored_logits.read(path, SOURCE)
    assert torch.equal(found.logits, stored().logits)
    assert torch.equal(found.ids, stored().ids)
    assert [file.name for file in path.parent.iterdir()] == ["teacher.safetensors"]


@pytest.mark.parametrize(
    ("other", "key"),
    [
        (Source("c" * 64, SOURCE.dataset, VIEWS), "teacher"),
        (Source(SOURCE.teacher, "c" * 64, VIEWS), "dataset"),
        (Source(SOURCE.teacher, SOURCE.dataset, Views(count=3, padding=2)), "views"),
        (Source(SOURCE.teacher, SOURCE.dataset, Views(count=3, padding=1, seed=1)), "views"),
    ],
)
def test_logits_of_something_else_are_refused(tmp_path, other, key):
    path = tmp_path / "teacher.safetensors"
    stored_logits.write(path, stored(), SOURCE)
    with pytest.raises(CheckpointError, match=f"expected stored logits of {key}"):
        stored_logits.read(path, other)


def test_a_changed_byte_is_noticed(tmp_path):
    path = tmp_path / "teacher.safetensors"
    stored_logits.write(path, stored(), SOURCE)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged, its sha256 is not the one it names"):
        stored_logits.read(path, SOURCE)


@pytest.mark.parametrize("content", [None, b"", b"no tensors"])
def test_a_file_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "teacher.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        stored_logits.read(path, SOURCE)


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="cannot write"):
        stored_logits.write(tmp_path / "file" / "teacher.safetensors", stored(), SOURCE)


def test_logits_beyond_float16_are_refused():
    with pytest.raises(ModelError, match="do not fit into float16"):
        stored(scale=1e6)


@pytest.mark.parametrize(("example", "view"), [(13, 0), (1000, 0), (12, 3)])
def test_an_example_or_view_that_was_not_stored_is_refused(example, view):
    with pytest.raises(UsageError, match="expected examples and views whose logits were stored"):
        stored().of(torch.tensor([example]), torch.tensor([view]))


def test_a_stored_teacher_answers_for_its_batch_alone():
    images, logits = torch.rand(2, 1, 4, 4), torch.rand(2, 3)
    asked = StoredTeacher(images, logits)
    assert asked(images) is logits
    for ask in (
        lambda: asked(images + 0.1),
        lambda: asked.features(images, ""),
        lambda: asked.through(images),
    ):
        with pytest.raises(
            UsageError, match=r"stored logits cannot give .*: name the teacher itself"
        ):
            ask()


def test_inductive_bias_learns_the_same_from_stored_logits():
    data, numbers = dataset(), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    student = vit_tiny.build(
        classes=3, channels=1, size=4, patch=2, width=6, depth=1, distillation_tokens=2
    )
    images = VIEWS.of(data.images, ids(data), numbers)

    def terms(*teachers):
        context = BatchContext(
            student=CachedNetwork(student),
            teachers=teachers,
            images=images,
            labels=data.labels,
            rows=torch.arange(7),
            progress=Progress(1, 1),
            generator=torch.Generator(),
        )
        return open_method("inductive_bias").loss(context)

    live = terms(FrozenTeacher(teacher(0)), FrozenTeacher(teacher(1)))
    cached = terms(
        *(StoredTeacher(images, stored(seed=seed).of(ids(data), numbers)) for seed in (0, 1))
    )
    for name, value in live.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-3, atol=1e-3)


# Averages

STATES = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=8)


@given(STATES)
def test_an_equal_average_is_the_mean(values):
    found = {"w": torch.tensor([99.0])}
    for number, value in enumerate(values):
        found = average(found, {"w": torch.tensor([value])}, swa_share(number))
    assert found["w"].item() == pytest.approx(sum(values) / len(values), abs=1e-4)


@given(STATES, st.floats(0, 0.999))
def test_an_exponential_average_forgets_at_its_rate(values, decay):
    found, expected = {"w": torch.tensor([99.0])}, values[0]
    for number, value in enumerate(values):
        found = average(found, {"w": torch.tensor([value])}, ema_share(decay, number))
        expected = decay * expected + (1 - decay) * value
    assert found["w"].item() == pytest.approx(expected, abs=1e-4)


def test_counters_are_taken_from_the_new_state_and_nothing_is_shared():
    network = nn.BatchNorm1d(2)
    network(torch.rand(4, 2))
    before = {name: torch.zeros_like(value) for name, value in network.state_dict().items()}
    found = average(before, network.state_dict(), 0.5)
    assert found["num_batches_tracked"] == 1
    torch.testing.assert_close(found["weight"], torch.full((2,), 0.5))
    network.weight.data.fill_(7)
    network.num_batches_tracked.fill_(9)
    assert found["num_batches_tracked"] == 1
    assert not found["weight"].requires_grad
