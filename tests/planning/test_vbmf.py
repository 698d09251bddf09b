from __future__ import annotations

import math

import pytest
import torch

from common.calibration import calibrate
from common.decomposition import SpatialSVD
from common.planning import VBMF, plan_ranks
from common.planning.decompositions import Decompositions
from common.planning.rules.vbmf import least_outlier, vbmf_rank
from tests.networks import tiny_cnn


def planted(rows: int, columns: int, rank: int, strength: float, seed: int = 0) -> torch.Tensor:
    """Singular values of a matrix with ``rank`` strong directions in Gaussian noise of variance 1."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rank, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, rank, generator=generator, dtype=torch.float64))[0]
    noise = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return torch.linalg.svdvals(strength * math.sqrt(columns) * left @ right.T + noise)


def test_the_threshold_is_that_of_the_paper() -> None:
    """A square matrix has t = 2.5129 (Nakajima et al. 2013), so (1 + t)(1 + 1 / t) = 4.9109."""
    assert least_outlier(1.0) == pytest.approx(3.5129 * (1 + 1 / 2.5129), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.3, 0.7, 1.0])
def test_the_threshold_lies_above_the_edge_of_noise(alpha: float) -> None:
    """The paper's approximation for every shape is t = 2.5129 sqrt(alpha)."""
    t = 2.5129 * math.sqrt(alpha)
    assert least_outlier(alpha) == pytest.approx((1 + t) * (1 + alpha / t), rel=0.03)
    assert least_outlier(alpha) > (1 + math.sqrt(alpha)) ** 2


@pytest.mark.parametrize(("rows", "columns"), [(60, 60), (40, 200), (100, 150)])
@pytest.mark.parametrize("rank", [1, 4, 12])
def test_planted_ranks_are_found(rows: int, columns: int, rank: int) -> None:
    for seed in range(3):
        assert vbmf_rank(planted(rows, columns, rank, strength=6.0, seed=seed), columns) == rank


def test_pure_noise_has_rank_one() -> None:
    noise = torch.linalg.svdvals(torch.randn(80, 120, generator=torch.Generator().manual_seed(1)))
    assert vbmf_rank(noise, 120) == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_rank_does_not_depend_on_the_scale(scale: float) -> None:
    assert vbmf_rank(scale * planted(60, 90, 5, 5.0), 90) == 5


@pytest.mark.parametrize(("spectrum", "rank"), [([0.0, 0.0, 0.0], 1), ([3.0], 1), ([5.0, 4.0, 0.0, 0.0, 0.0, 0.0], 2)])
def test_spectra_without_noise_keep_all_nonzero_values(spectrum: list[float], rank: int) -> None:
    assert vbmf_rank(torch.tensor(spectrum), 10) == rank


def test_a_rule_gets_the_longer_side_of_the_matrix() -> None:
    """The longer side can exceed the number of singular values; the noise model depends on it."""
    longer_sides: list[int] = []

    def select(spectrum: torch.Tensor, columns: int) -> int:
        longer_sides.append(columns)
        return 1

    SpatialSVD(torch.randn(64, 3, 3, 3)).select_ranks(select)
    assert longer_sides == [192]


def test_a_spectrum_longer_than_the_longer_side_is_refused() -> None:
    with pytest.raises(ValueError, match=r"columns=2: it must be \(L,\) with 1 <= L <= columns"):
        vbmf_rank(torch.ones(3), 2)


@pytest.mark.parametrize("method", ["svd", "spatial_svd", "tucker2", "htd", "mixed"])
def test_the_rule_plans_a_network(method: str) -> None:
    model = tiny_cnn()
    with torch.no_grad():  # a matrix of rank 3 plus weak noise
        left, right = torch.randn(32, 3), torch.randn(3, 16 * 9)
        model.conv.weight.copy_((left @ right).reshape(32, 16, 3, 3) + 0.01 * torch.randn(32, 16, 3, 3))
    plan = plan_ranks(model, torch.randn(1, 3, 12, 12), method, VBMF(only_if_smaller=False))
    if method == "svd":
        assert plan.layers["conv"].ranks == (3,)
    if method == "tucker2":
        assert plan.layers["conv"].ranks[1] == 3
    assert all(layer.method for layer in plan.layers.values())


def test_the_weights_are_decomposed_once_beside_those_on_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_cnn()
    kept = Decompositions(model, calibrate(model, [torch.randn(64, 3, 12, 12)]))
    first = plan_ranks(model, torch.randn(1, 3, 12, 12), "svd", VBMF(), decompositions=kept)
    monkeypatch.setattr("common.planning.decompositions.decompose", None)
    assert plan_ranks(model, torch.randn(1, 3, 12, 12), "svd", VBMF(), decompositions=kept) == first
