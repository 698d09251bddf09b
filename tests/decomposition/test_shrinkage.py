from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.decomposition import LayerMoments
from common.decomposition.moments import FEWEST_HELD_OUT, FEWEST_PATCHES, RIDGE


def moments(covariance: Tensor, patches: int | None) -> LayerMoments:
    size = covariance.shape[-1]
    return LayerMoments(
        torch.eye(size).double()[None], torch.zeros(1, size, 3, 3).double(), covariance[None], patches=patches
    )


def sampled(true: Tensor, count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, len(true), generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(true).T
    return torch.cov(rows.T, correction=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 24), st.sampled_from([4, 8, 16, 32]), st.floats(0, 1), st.integers(0, 1000))
def test_shrinkage_brings_the_covariance_of_few_patches_nearer_to_the_true_one(
    size: int, count: int, decay: float, seed: int
) -> None:
    true = torch.diag(torch.logspace(0, -decay, size, dtype=torch.float64))
    errors = []
    for draw in range(20):
        sample = sampled(true, count, 20 * seed + draw)
        share = moments(sample, count).shrinkage
        assert RIDGE <= share <= 1
        shrunk = (1 - share) * sample + share * torch.eye(size).double() * sample.trace() / size
        errors.append([float((covariance - true).square().sum()) for covariance in (shrunk, sample)])
    shrunk_error, sample_error = torch.tensor(errors).mean(0).tolist()
    assert shrunk_error < sample_error


@pytest.mark.parametrize("groups", [1, 3])
def test_shrinkage_falls_as_the_number_of_patches_grows(groups: int) -> None:
    true = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.1], dtype=torch.float64))
    shares = []
    for count in (2, 10, 100, 1000, 100_000):
        covariance = torch.stack([sampled(true, count, seed) for seed in range(groups)])
        shares.append(replace(moments(true, count), input_covariance=covariance).shrinkage)
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[-1] < 1e-4


def test_shrinkage_is_full_for_equal_variances_and_least_for_uncounted_patches() -> None:
    assert moments(torch.eye(5).double(), 1000).shrinkage == 1
    assert moments(torch.zeros(5, 5).double(), 1000).shrinkage == 1
    assert moments(torch.eye(5).double(), None).shrinkage == RIDGE


def test_shrinkage_follows_the_output_covariance_without_an_input_covariance() -> None:
    covariance = sampled(torch.diag(torch.tensor([3.0, 1.0, 0.1], dtype=torch.float64)), 20, 0)
    layer = LayerMoments(covariance[None], torch.zeros(1, 7, 1, 1), patches=20)
    assert layer.shrinkage == moments(covariance, 20).shrinkage


@pytest.mark.parametrize(
    ("outputs", "inputs", "kernel", "needed"),
    [(100, 100, 3, FEWEST_PATCHES), (10, 500, 1, 10), (500, 3, 3, 27), (500, 3, 1, 3), (1, 64, 3, 1)],
)
def test_patches_are_too_few_below_what_a_layer_needs(outputs: int, inputs: int, kernel: int, needed: int) -> None:
    held_out = torch.zeros(FEWEST_HELD_OUT, inputs, kernel, kernel)
    layer = LayerMoments(torch.eye(outputs)[None], torch.zeros(1, inputs, kernel, kernel), held_out=held_out)
    assert layer.needed == needed
    assert not layer.too_few  # its patches were not counted
    assert not replace(layer, patches=needed).too_few
    assert replace(layer, patches=needed - 1).too_few
    assert replace(layer, patches=needed, held_out=held_out[1:]).too_few
    assert replace(layer, patches=needed, held_out=None).too_few


def test_moments_move_to_a_device_with_all_their_tensors() -> None:
    layer = moments(torch.eye(4).double(), 30)
    moved = replace(layer, held_out=torch.ones(9, 4, 3, 3)).to(torch.device("meta"))
    assert moved.held_out is not None
    assert moved.held_out.device.type == moved.patch_mean.device.type == "meta"
    assert (moved.patches, moved.height_covariance) == (30, None)
