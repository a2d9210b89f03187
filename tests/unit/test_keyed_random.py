"""Keyed random numbers, against the published answers of Philox and against its definition in plain
integers."""

import math
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from robustbench_kd.tensors.keyed_random import normal, philox, uniform

EXAMPLES = settings(max_examples=40, deadline=None)
WORD = st.integers(0, 2**32 - 1)
DRAWS = pytest.mark.parametrize("draw", [uniform, normal])

# Counter, key and answer, from the file kat_vectors of Random123.
PUBLISHED = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text):
    return [int(word, 16) for word in text.split()]


def as_tensors(counter):
    return tuple(torch.tensor([word]) for word in counter)


def plain_philox(counter, key):
    """The definition in Python's unbounded integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (right >> 32) ^ b ^ k, right % 2**32, (left >> 32) ^ d ^ m, left % 2**32
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def fnv(text):
    """FNV-1a with 64 bits."""
    return reduce(
        lambda key, byte: (key ^ byte) * 0x100000001B3 % 2**64, text.encode(), 0xCBF29CE484222325
    )


def rows(n, first=0):
    return torch.arange(first, first + n), torch.zeros(n, dtype=torch.int64)


@pytest.mark.parametrize(("counter", "key", "answer"), PUBLISHED)
def test_philox_gives_the_published_answers(counter, key, answer):
    found = philox(as_tensors(words(counter)), tuple(words(key)))
    assert [int(word) for word in found] == words(answer)


@EXAMPLES
@given(st.lists(WORD, min_size=4, max_size=4), st.tuples(WORD, WORD))
def test_philox_agrees_with_unbounded_integers(counter, key):
    assert [int(word) for word in philox(as_tensors(counter), key)] == plain_philox(counter, key)


def test_numbers_are_the_high_bits_of_philox_under_the_hash_of_seed_and_stream():
    """Runs would stop being repeatable between versions if this changed."""
    assert fnv("foobar") == 0x85944171F73967E8  # a published answer
    key = fnv("3/square") % 2**32, fnv("3/square") >> 32
    expected = [word >> 8 for block in range(2) for word in plain_philox((block, 2, 1, 5), key)]
    found = uniform(3, "square", torch.tensor([5]), torch.tensor([1]), 2, 5)
    assert (found[0] * 2**24).tolist() == expected[:5]


@DRAWS
@EXAMPLES
@given(st.permutations(range(7)), st.integers(1, 7))
def test_a_row_does_not_depend_on_its_batch(draw, order, kept):
    ids, job, step = torch.arange(7) * 1000, torch.arange(7) % 3, torch.arange(7) * 11
    chosen = torch.tensor(order[:kept])
    whole = draw(0, "s", ids, job, step, 6)
    assert torch.equal(draw(0, "s", ids[chosen], job[chosen], step[chosen], 6), whole[chosen])


@DRAWS
@EXAMPLES
@given(st.integers(1, 13), st.integers(1, 13))
def test_fewer_numbers_are_a_prefix_of_more(draw, one, other):
    fewer, more = sorted((one, other))
    assert torch.equal(draw(0, "s", *rows(3), 4, fewer), draw(0, "s", *rows(3), 4, more)[:, :fewer])


@DRAWS
def test_one_step_for_all_rows_is_the_same_as_one_each(draw):
    assert torch.equal(draw(0, "s", *rows(3), 9, 5), draw(0, "s", *rows(3), torch.full((3,), 9), 5))


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"stream": "t"},
        {"ids": torch.tensor([8])},
        {"ids": torch.tensor([7 + 2**32])},
        {"restart": torch.tensor([1])},
        {"step": 1},
    ],
    ids=["seed", "stream", "id", "high id", "restart", "step"],
)
def test_every_part_of_the_name_matters(other):
    name = {
        "seed": 0,
        "stream": "s",
        "ids": torch.tensor([7]),
        "restart": torch.tensor([0]),
        "step": 0,
        "size": 8,
    }
    assert not (uniform(**name) == uniform(**(name | other))).any()


def test_an_id_above_one_word_shares_nothing_with_a_later_job():
    far = uniform(0, "s", torch.tensor([2**32]), torch.tensor([0]), 0, 4)
    for job in (1, 2, 2**16 - 1):
        assert not torch.equal(far, uniform(0, "s", torch.tensor([0]), torch.tensor([job]), 0, 4))


def test_uniform_numbers_are_uniform_on_the_half_open_interval():
    numbers = uniform(0, "s", *rows(1000), 0, 50)
    assert numbers.dtype == torch.float32
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers.flatten().double().numpy(), "uniform").pvalue > 0.01


def test_normal_numbers_are_normal():
    numbers = normal(0, "s", *rows(1000), 0, 50)
    assert numbers.dtype == torch.float32
    assert stats.kstest(numbers.flatten().double().numpy(), "norm").pvalue > 0.01


def test_normal_numbers_of_one_pair_are_not_correlated():
    numbers = normal(0, "s", *rows(20000), 0, 2).double()
    assert abs(float(numbers.T.corrcoef()[0, 1])) < 0.03
    assert abs(float(numbers.square().T.corrcoef()[0, 1])) < 0.03


@pytest.mark.parametrize("share", [0.0, 1 - 2**-24], ids=["least", "most"])
def test_normal_numbers_stay_finite_at_the_ends_of_the_interval(monkeypatch, share):
    monkeypatch.setattr(
        "robustbench_kd.tensors.keyed_random.uniform", lambda *_: torch.full((1, 2), share)
    )
    assert normal(0, "s", *rows(1), 0, 2).abs().max() <= 5.8


@pytest.mark.parametrize("across", ["ids", "steps", "coordinates"])
def test_neighbours_are_independent(across):
    many, same = rows(20000)
    numbers = {
        "ids": lambda: uniform(0, "s", many, same, 0, 1),
        "steps": lambda: uniform(0, "s", same, same, many, 1),
        "coordinates": lambda: uniform(0, "s", many[:10000], same[:10000], 0, 2),
    }[across]()
    assert abs(float(numbers.view(-1, 2).T.corrcoef()[0, 1])) < 5 / math.sqrt(10000)


@pytest.mark.slow
def test_a_compiled_function_draws_the_same_numbers():
    def draws(seed):
        return uniform(seed, "s", *rows(3), 4, 5)

    compiled = torch.compile(draws, backend="eager", fullgraph=True)
    assert all(torch.equal(compiled(seed), draws(seed)) for seed in (0, 1, 2**40))


@DRAWS
def test_no_rows_give_no_numbers(draw):
    assert draw(0, "s", *rows(0), 0, 3).shape == (0, 3)


@DRAWS
def test_the_global_generator_is_left_alone(draw):
    before = torch.get_rng_state()
    draw(0, "s", *rows(3), 0, 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits():
    ids, job = rows(1000, first=2**31)
    on_gpu = uniform(0, "s", ids.cuda(), job.cuda(), 5, 9)
    assert torch.equal(on_gpu.cpu(), uniform(0, "s", ids, job, 5, 9))


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same_normal_numbers():
    ids, job = rows(1000)
    assert torch.allclose(
        normal(0, "s", ids.cuda(), job.cuda(), 5, 9).cpu(),
        normal(0, "s", ids, job, 5, 9),
        atol=1e-5,
    )
