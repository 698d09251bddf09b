"""CP against TensorLy's parafac, its own bounds, and the other methods at equal cost."""

from __future__ import annotations

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac
from torch import Tensor

from common.decomposition import DECOMPOSITIONS
from common.decomposition.cp import CP, _solved
from common.network.shapes import LayerShape


def correlated(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    """A weight whose channels are correlated and whose kernel is smooth, as in trained networks."""
    generator = torch.Generator().manual_seed(seed)
    rank = min(outputs, inputs)
    left, right = (torch.randn(size, rank, generator=generator) for size in (outputs, inputs))
    kernels = torch.randn(rank, 3, 3, generator=generator) + 1
    return torch.einsum("or,ir,rhw,r->oihw", left, right, kernels, 0.8 ** torch.arange(rank))


def relative_error(weight: Tensor, found: Tensor) -> float:
    return float((weight - found).norm() / weight.norm())


@pytest.mark.parametrize("rank", [4, 12, 30])
def test_it_fits_as_well_as_parafac(rank: int) -> None:
    weight = correlated(24, 16)
    with tensorly.backend_context("pytorch"):
        reference = parafac(weight, rank, n_iter_max=60, init="random", random_state=0)
        error = relative_error(weight, tensorly.cp_to_tensor(reference))
    assert CP(weight).relative_error((rank,)) <= 1.05 * error


@pytest.mark.parametrize("groups", [1, 2])
def test_a_sum_of_rank_one_tensors_is_found(groups: int) -> None:
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(groups, size, 4, generator=generator) for size in (10, 8, 3, 3)]
    weight = torch.einsum("gor,gir,ghr,gwr->goihw", *factors).flatten(0, 1)
    assert CP(weight, groups).relative_error((6,)) < 1e-2


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 100))
def test_predicted_errors_are_those_of_the_factors_and_fall_from_knot_to_knot(
    outputs: int, inputs: int, seed: int
) -> None:
    weight = torch.randn(outputs, inputs, 3, 2, generator=torch.Generator().manual_seed(seed))
    decomposition = CP(weight)
    ranks, errors = decomposition.error_table()
    assert np.all(np.diff(errors) <= 1e-9)
    known = [decomposition.relative_error((rank,)) for rank in decomposition._knots]
    assert known == sorted(known, reverse=True)
    for rank, error in zip(decomposition._knots, known, strict=True):
        assert errors[ranks[:, 0] == rank] == pytest.approx(error, abs=1e-6)
        assert relative_error(weight, decomposition.reconstruct((rank,))) == pytest.approx(error, abs=1e-5)
    assert relative_error(weight, decomposition.reconstruct(decomposition.max_ranks)) < 1e-6


def test_comparing_variants_decomposes_at_no_rank_besides_the_knots() -> None:
    weight = torch.randn(12, 10, 3, 3, generator=torch.Generator().manual_seed(0))
    decomposition = CP(weight)
    assert decomposition.near(0.0) == (decomposition._knots[0],)
    assert decomposition.near(1.0) == (decomposition._knots[-1],)
    for share in (0.25, 0.75):
        (rank,), (wanted,) = decomposition.near(share), decomposition.fraction(share)
        assert abs(rank - wanted) == min(abs(knot - wanted) for knot in decomposition._knots)


@pytest.mark.parametrize("definite", [True, False])
def test_a_gram_matrix_that_rounding_made_indefinite_is_solved_as_well(definite: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([3.0, 2.0, 1.0 if definite else -1.0])
    basis = torch.linalg.qr(torch.randn(1, 3, 3, generator=generator)).Q
    gram, target = (basis * values) @ basis.mT, torch.randn(1, 5, 3, generator=generator)
    given = gram.clone()
    found = _solved(target, gram, 0.5)
    torch.testing.assert_close(found @ (gram + 0.5 * torch.eye(3)), target, rtol=1e-4, atol=1e-4)
    assert torch.equal(gram, given)


def test_its_components_do_not_diverge() -> None:
    """Without a ridge, components of opposite signs grow while their sum hardly changes (degeneracy)."""
    weight = torch.randn(16, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    found = CP(weight)._components(40)
    sizes = torch.stack([factor.norm(dim=1) for factor in found]).prod(0)
    assert float(sizes.square().sum()) < 20 * float(weight.square().sum())


def test_it_errs_less_than_other_methods_of_its_size_on_a_weight_without_structure() -> None:
    weight = torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    shape = LayerShape((32, 32), (3, 3), 1, False, False, (((8, 8), (8, 8)),))
    least = {}
    for method, kind in DECOMPOSITIONS.items():
        ranks, errors = kind(weight).error_table()
        params, _ = shape.costs(method, ranks, shift=False)
        least[method] = errors[params <= 0.4 * shape.dense_cost[0]].min()
    assert min(least, key=lambda method: least[method]) == "cp"
