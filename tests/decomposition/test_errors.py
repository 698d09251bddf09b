from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tensorly.backend import backend_context
from tensorly.decomposition import partial_tucker
from tensorly.tenalg import multi_mode_dot
from torch import Tensor

from common.decomposition import DECOMPOSITIONS, HTD, SVD, Decomposition, Ranks, Tucker2
from common.decomposition.cp import CP

weights = st.builds(
    lambda seed, o, i, kh, kw, groups: (
        torch.randn(o * groups, i, kh, kw, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        groups,
    ),
    st.integers(0, 2**31),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([1, 3]),
    st.integers(1, 3),
)


def all_ranks(decomposition: Decomposition) -> list[Ranks]:
    """All valid combinations of ranks."""
    grid = itertools.product(*(range(1, max_rank + 1) for max_rank in decomposition.max_ranks))
    return [ranks for ranks in grid if decomposition.fit(ranks) == ranks]


@settings(max_examples=40, deadline=None)
@given(weights, st.sampled_from(sorted(DECOMPOSITIONS)), st.data())
def test_the_predicted_error_is_the_measured_error(
    drawn: tuple[Tensor, int], method: str, data: st.DataObject
) -> None:
    weight, groups = drawn
    decomposition = DECOMPOSITIONS[method](weight, groups)
    ranks = data.draw(st.sampled_from(all_ranks(decomposition)))
    measured = float((weight - decomposition.reconstruct(ranks)).norm() / weight.norm())
    assert decomposition.relative_error(ranks) == pytest.approx(measured, rel=1e-4, abs=1e-6)


NESTED = sorted(name for name, kind in DECOMPOSITIONS.items() if not kind.interpolates)


@settings(max_examples=25, deadline=None)
@given(weights, st.sampled_from(NESTED))
def test_a_higher_rank_never_has_a_greater_error(drawn: tuple[Tensor, int], method: str) -> None:
    decomposition = DECOMPOSITIONS[method](*drawn)
    errors = {ranks: decomposition.relative_error(ranks) for ranks in all_ranks(decomposition)}
    for ranks, error in errors.items():
        for mode in range(len(ranks)):
            higher = tuple(rank + (position == mode) for position, rank in enumerate(ranks))
            assert errors.get(higher, 0.0) <= error + 1e-7
    assert errors[decomposition.max_ranks] < 1e-7


@settings(max_examples=10, deadline=None)
@given(weights)
@example((torch.randn(8, 8, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), 1))
def test_no_rank_of_cp_has_a_greater_error_than_a_knot_below(drawn: tuple[Tensor, int]) -> None:
    """Each rank continues from the knot below; two ranks between knots may end in different optima."""
    cp = CP(*drawn)
    predicted = cp.error_table()[1]
    assert (predicted[1:] <= predicted[:-1] + 1e-12).all()
    lowest = 1.0
    for (rank,) in all_ranks(cp):
        error = cp.relative_error((rank,))
        assert error <= lowest + 1e-7
        if rank in cp._knots:
            lowest = error
    assert cp.relative_error(cp.max_ranks) < 1e-7


def test_svd_is_the_best_approximation() -> None:
    weight = torch.randn(7, 5, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, s, vt = torch.linalg.svd(weight.flatten(1), full_matrices=False)
    decomposition = SVD(weight)
    torch.testing.assert_close(decomposition.spectrum, s)
    for rank in range(1, 8):
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        torch.testing.assert_close(decomposition.reconstruct((rank,)), best.reshape(weight.shape))


def test_svd_of_each_group_is_the_best_approximation() -> None:
    weight = torch.randn(8, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = SVD(weight, groups=2)
    for part, group in zip(whole.reconstruct((2,)).chunk(2), weight.chunk(2), strict=True):
        torch.testing.assert_close(part, SVD(group).reconstruct((2,)))


def test_tucker_is_within_the_bound_of_the_hosvd() -> None:
    """The squared error is at most the sum of the truncated energies of both unfoldings (De Lathauwer 2000)."""
    weight = torch.randn(9, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    by_output = torch.linalg.svdvals(weight.flatten(1))
    by_input = torch.linalg.svdvals(weight.transpose(0, 1).flatten(1))
    decomposition = Tucker2(weight)
    for r_in, r_out in all_ranks(decomposition):
        error = (decomposition.relative_error((r_in, r_out)) * weight.norm()) ** 2
        best = max(by_input[r_in:].square().sum(), by_output[r_out:].square().sum())
        assert best - 1e-9 <= error <= by_input[r_in:].square().sum() + by_output[r_out:].square().sum() + 1e-9


def tensorly_error(weight: Tensor, ranks: list[int], **settings: Any) -> float:
    """Relative error of TensorLy's Tucker-2 at ``(r_out, r_in)``."""
    with backend_context("pytorch", local_threadsafe=True):
        (core, factors), _ = partial_tucker(weight, ranks, modes=[0, 1], **settings)
        reference = multi_mode_dot(core, factors, modes=[0, 1])
    return float((weight - reference).norm() / weight.norm())


def test_tucker_agrees_with_tensorly() -> None:
    weight = torch.randn(9, 8, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    error = tensorly_error(weight, [4, 3], n_iter_max=1, init="svd")
    assert Tucker2(weight).relative_error((3, 4)) <= 1.05 * error


def test_htd_is_a_tucker_with_a_split_core() -> None:
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tucker, htd = Tucker2(weight), HTD(weight)
    for r_in, r_out in all_ranks(tucker):
        full = min(3 * r_in, 3 * r_out)
        torch.testing.assert_close(htd.reconstruct((r_in, full, r_out)), tucker.reconstruct((r_in, r_out)))


def test_htd_respects_its_dimension_tree() -> None:
    """The unfolding of each node of the tree has the requested rank."""
    weight = torch.randn(8, 7, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    approximation = HTD(weight).reconstruct((3, 4, 5))
    assert torch.linalg.matrix_rank(approximation.transpose(0, 1).flatten(1)) == 3
    assert torch.linalg.matrix_rank(approximation.flatten(1)) == 5
    assert torch.linalg.matrix_rank(approximation.permute(1, 2, 3, 0).reshape(21, 24)) == 4


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_zero_and_rank_one_weights(method: str) -> None:
    zero = DECOMPOSITIONS[method](torch.zeros(6, 5, 3, 3))
    one = tuple(1 for _ in zero.max_ranks)
    assert zero.relative_error(one) == 0
    assert not zero.reconstruct(one).any()
    rank_one = torch.ones(6, 5, 3, 3)
    decomposition = DECOMPOSITIONS[method](rank_one)
    assert decomposition.relative_error(one) < 1e-6
    torch.testing.assert_close(decomposition.reconstruct(one), rank_one)


@pytest.mark.parametrize("method", DECOMPOSITIONS)
@pytest.mark.parametrize("scale", [0.0, 1e-24])
def test_a_wide_weight_with_a_vanishing_group(method: str, scale: float) -> None:
    """The weight is wide enough for the iteration of flat spectra, and the ranks are below the full ones."""
    weight = torch.randn(272, 136, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:136] *= scale
    decomposition = DECOMPOSITIONS[method](weight, 2, None, sweeps=2)
    ranks = tuple(20 for _ in decomposition.max_ranks)
    factors = decomposition.factors(ranks)
    assert all(factor.isfinite().all() for factor in factors)
    assert decomposition.reconstruct(ranks)[:136].abs().max() <= 10 * scale


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_the_weight_is_not_changed_and_shares_no_memory(method: str) -> None:
    weight = torch.randn(6, 5, 3, 3, dtype=torch.float64)
    before = weight.clone()
    decomposition = DECOMPOSITIONS[method](weight)
    for factor in (
        *decomposition.factors(decomposition.max_ranks),
        decomposition.reconstruct(decomposition.max_ranks),
    ):
        factor.zero_()
    assert torch.equal(weight, before)


def test_ranks_outside_the_range_are_refused() -> None:
    decomposition = HTD(torch.randn(6, 5, 3, 3))
    with pytest.raises(ValueError, match=r"r_in=0 .* must be in 1\.\.5"):
        decomposition.check((0, 1, 1))
    with pytest.raises(ValueError, match=r"r_out=7 .* must be in 1\.\.6"):
        decomposition.check((1, 1, 7))
    with pytest.raises(ValueError, match="at most \\(1, 3, 6\\)"):
        decomposition.check((1, 4, 6))
    with pytest.raises(ValueError, match=r"htd takes 3 ranks: r_in, r_mid, r_out$"):
        decomposition.check((1, 1))
    with pytest.raises(ValueError, match="must be \\(O, I\\)"):
        SVD(torch.randn(3))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("method", ["tucker2", "htd"])
def test_sweeps_lower_the_error_and_predict_it(method: str, groups: int) -> None:
    weight = torch.randn(12, 10 // groups, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for share in (0.3, 0.6, 1.0):
        errors = []
        for sweeps in (0, 1, 2, 6):
            decomposition = DECOMPOSITIONS[method](weight, groups, sweeps=sweeps)
            ranks = decomposition.fraction(share)
            measured = float((weight - decomposition.reconstruct(ranks)).norm() / weight.norm())
            assert decomposition.relative_error(ranks) == pytest.approx(measured, abs=1e-7)
            errors.append(measured)
        if method == "tucker2":
            assert errors == sorted(errors, reverse=True) or share == 1.0
        assert errors[-1] <= errors[0] + 1e-9


def test_two_sweeps_are_within_half_a_percent_of_tensorly() -> None:
    weight = torch.randn(48, 40, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert Tucker2(weight, sweeps=2).relative_error((13, 16)) <= 1.005 * tensorly_error(weight, [16, 13])


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("method", ["tucker2", "htd"])
@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (3, 64, 3, 3), (40, 2, 1, 3)])
def test_ranks_that_add_nothing_are_lowered(shape: tuple[int, ...], method: str, sweeps: int) -> None:
    """Three input channels of a 3x3 kernel span 27 directions; one channel spans 9."""
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(7))
    decomposition = DECOMPOSITIONS[method](weight, sweeps=sweeps)
    for share in (0.1, 0.4, 0.7, 1.0):
        ranks = decomposition.fraction(share)
        assert decomposition.check(ranks) == ranks
        measured = float((weight - decomposition.reconstruct(ranks)).norm() / weight.norm())
        assert decomposition.relative_error(ranks) == pytest.approx(measured, abs=1e-5)
        assert [factor.numel() > 0 for factor in decomposition.factors(ranks)]
    table, _ = decomposition.error_table()
    assert all(decomposition.fit(ranks) == ranks for ranks in (tuple(map(int, row)) for row in table))


@pytest.mark.parametrize("method", DECOMPOSITIONS)
def test_rounded_ranks_are_multiples_or_maxima(method: str) -> None:
    decomposition = DECOMPOSITIONS[method](torch.randn(20, 13, 3, 3))
    maxima = decomposition.max_ranks
    for share in (0.1, 0.4, 0.9):
        rounded = decomposition.round_up(decomposition.fraction(share), 4)
        assert all(rank % 4 == 0 or rank == max_rank for rank, max_rank in zip(rounded, maxima, strict=True))
        assert all(new >= old for new, old in zip(rounded, decomposition.fraction(share), strict=True))
