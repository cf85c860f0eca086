"""Keyed random generators."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threedgen.run import seeding

PURPOSES = st.sampled_from(["noise", "cameras", "1"])
KEYS = st.tuples(st.integers(0, 5), st.integers(0, 5), PURPOSES, st.integers(0, 3))


def numbers(*key) -> torch.Tensor:
    return torch.randn(16, generator=seeding.generator(*key))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(KEYS, KEYS)
def test_generators_are_equal_only_for_equal_keys(a, b):
    assert torch.equal(numbers(*a), numbers(*b)) == (a == b)
    first, second = (seeding.numpy_generator(*key).normal(size=16) for key in (a, b))
    assert np.array_equal(first, second) == (a == b)


def test_neighbouring_seeds_share_no_numbers():
    streams = {tuple(numbers(seed, step, "noise").tolist()) for seed in range(8) for step in range(8)}
    assert len(streams) == 64


def test_key_separates_its_fields():
    assert seeding.key(1, 11, "x") != seeding.key(11, 1, "x")
    assert seeding.key(1, 1, "x", 12) != seeding.key(1, 1, "x/1", 2)


def test_key_is_the_same_in_all_versions():
    assert seeding.key(0, 0, "noise") == 4580952025995565074
    assert all(0 <= seeding.key(0, step, "noise") < 2**63 for step in range(50))


@pytest.mark.parametrize("seed", [-1, 2**80])
def test_generator_accepts_any_integer_seed(seed):
    assert torch.equal(numbers(seed, 0, "noise"), numbers(seed, 0, "noise"))
