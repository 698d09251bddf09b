from __future__ import annotations

import pytest
import torch
from torch import Tensor

from common.decomposition import subspace
from common.decomposition.subspace import leading_subspace


def flat(rows: int = 200, columns: int = 900, groups: int = 2) -> Tensor:
    """Random matrices with a flat spectrum, ``(groups, rows, columns)``."""
    return torch.randn(groups, rows, columns, generator=torch.Generator().manual_seed(1))


def leading(matrix: Tensor, rank: int, start: Tensor | None = None) -> Tensor:
    return leading_subspace(matrix, lambda same: same, rank, start)


def captured(matrix: Tensor, basis: Tensor) -> float:
    """Share of the matrices' energy that lies in the basis."""
    return float((basis.mT @ matrix).double().square().sum() / matrix.double().square().sum())


@pytest.mark.parametrize("bfloat16", [False, True])
@pytest.mark.parametrize("rank", [1, 20, 66, 150, 199])
def test_a_flat_spectrum_is_captured_almost_as_well_as_by_singular_vectors(
    rank: int, bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subspace, "has_bfloat16", lambda device: bfloat16)
    matrix = flat()
    basis = leading(matrix, rank)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(rank).expand(2, -1, -1), rtol=0, atol=1e-5)
    best = float(torch.linalg.svdvals(matrix.double())[:, :rank].square().sum() / matrix.double().square().sum())
    assert captured(matrix, basis) == pytest.approx(best, rel=0.05)
    again = leading(matrix, rank, basis)
    assert captured(matrix, again) >= captured(matrix, basis) - 1e-6
    assert captured(matrix, again) <= best + 1e-6


@pytest.mark.parametrize("shape", [(200, 900), (900, 200), (100, 400)])
def test_any_other_spectrum_is_exact(shape: tuple[int, int]) -> None:
    """Single precision must separate the singular values 1, 0.9, 0.81, ... down to the rank."""
    generator = torch.Generator().manual_seed(2)
    q, p = (torch.linalg.qr(torch.randn(side, min(shape), generator=generator)).Q for side in shape)
    matrix = (q * 0.9 ** torch.arange(min(shape))) @ p.mT
    for rank in (5, 40):
        lost = 1 - captured(matrix[None], leading(matrix[None], rank))
        assert lost == pytest.approx(0.81**rank, rel=1e-2)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.05])
@pytest.mark.parametrize("rank", [64, 138, 190])
def test_dead_filters_do_not_make_a_subspace_worse(rank: int, scale: float) -> None:
    """60 of 200 rows are weak, and the spectrum still counts as flat."""
    matrix = flat()
    matrix[:, :60] *= scale
    basis = leading(matrix, rank)
    best = float(torch.linalg.svdvals(matrix.double())[:, :rank].square().sum() / matrix.double().square().sum())
    assert captured(matrix, basis) == pytest.approx(best, rel=0.05)
    assert captured(matrix, leading(matrix, rank, basis)) >= captured(matrix, basis) - 1e-6


def test_double_precision_is_exact() -> None:
    matrix = flat(groups=1).double()
    best = torch.linalg.svd(matrix, full_matrices=False).U[:, :, :30]
    found = leading(matrix, 30)
    torch.testing.assert_close(found @ found.mT, best @ best.mT)


def test_the_same_matrix_gives_the_same_basis() -> None:
    assert torch.equal(leading(flat(), 20), leading(flat(), 20))
