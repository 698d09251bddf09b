"""A user's decomposition, in one file outside ``common``: it is planned, compressed, searched and reported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import pytest
import torch
from torch import Tensor

import analyze_results
from common.calibration import calibrate
from common.compression import compress, load_compressed, save_compressed
from common.decomposition import DECOMPOSITIONS, Ranks
from common.decomposition.base import OneRank
from common.decomposition.metric import leading_basis
from common.decomposition.unfolding import by_input
from common.network import profile
from common.planning import Budget, Energy, Fixed, method_names, plan_ranks
from common.search import SearchSettings, search_ranks
from tests.networks import same_weights, tiny_cnn, tiny_digits

X = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class InputSVD(OneRank):
    """Truncated SVD of the weight unfolded along its input channels: a 1x1 convolution, then the kernel."""

    method = "input_svd"
    title = "Input SVD"
    axes = ((False, False), (True, True))
    otherwise = "svd"

    @classmethod
    def greatest_ranks(cls, inputs: int, outputs: int, kernel: tuple[int, ...]) -> Ranks:
        return (min(inputs, outputs * math.prod(kernel)),)

    @property
    def sides(self) -> tuple[int, int]:
        return self.shape[1], self.shape[0] // self.groups * math.prod(self.kernel)

    @cached_property
    def _basis(self) -> Tensor:
        return leading_basis(by_input(self.metric.weighted))

    @cached_property
    def rows(self) -> Tensor:
        return self._basis.mT @ by_input(self.metric.weighted)

    def _restored(self, rank: int) -> tuple[Tensor, Tensor]:
        """``(G, r, I/G)`` and ``(G, O/G, r, kh, kw)``."""
        reduce = self.metric.restore(self._basis[:, :, :rank].mT, "gri,gij->grj", "input")
        core = self.rows[:, :rank].unflatten(2, (-1, *self.kernel)).transpose(1, 2)  # (G, R_out, r, kh, kw)
        core = self.metric.restore(core, "grshw,hk->grskw", "height")
        core = self.metric.restore(core, "grshw,wl->grshl", "width")
        return reduce, torch.einsum("gor,grshw->goshw", self.metric.output_basis, self.metric.restore_rows(core))

    def factors(self, ranks: Ranks) -> tuple[Tensor, Tensor]:
        reduce, core = self._restored(*self.check(ranks))
        return reduce.flatten(0, 1)[:, :, None, None].to(self.dtype), core.flatten(0, 1).to(self.dtype)

    def reconstruct(self, ranks: Ranks) -> Tensor:
        reduce, core = self._restored(*self.check(ranks))
        return torch.einsum("gri,gorhw->goihw", reduce, core).reshape(self.shape).to(self.dtype)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """What ``@DECOMPOSITIONS.add`` above the class does, for these tests alone."""
    with DECOMPOSITIONS.including(InputSVD):
        yield


@pytest.mark.parametrize("groups", [1, 2])
def test_it_is_exact_at_full_rank_and_its_errors_are_true(groups: int) -> None:
    weight = torch.randn(12, 8 // groups, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = InputSVD(weight, groups)
    torch.testing.assert_close(found.reconstruct(found.max_ranks), weight)
    assert found.max_ranks == InputSVD.greatest_ranks(8 // groups, 12 // groups, (3, 3))
    for rank in (1, 2):
        lost = (weight - found.reconstruct((rank,))).norm() / weight.norm()
        assert found.relative_error((rank,)) == pytest.approx(float(lost))


@pytest.mark.parametrize("rule", [Energy(0.8), Fixed(0.5, only_if_smaller=False), Budget(params=0.6)])
def test_it_is_planned_and_compressed_with_data(rule: Budget | Energy | Fixed, tmp_path: Path) -> None:
    model = tiny_cnn(width=32)
    moments = calibrate(model, [X])
    plan = plan_ranks(model, X, "input_svd", rule, moments=moments)
    assert "input_svd" in {layer.method for layer in plan.factored.values()}
    small = compress(model, plan, moments=moments)
    assert profile(small, X).params == sum(p.numel() for p in small.parameters())
    if isinstance(rule, Budget):
        assert profile(small, X).params <= 0.6 * profile(model, X).params
    save_compressed(small, tmp_path / "small.safetensors")
    assert same_weights(load_compressed(tmp_path / "small.safetensors", model), small)


def test_it_is_one_of_the_mixed_and_is_named_where_a_method_is_unknown() -> None:
    assert "input_svd" in method_names()
    model = tiny_cnn(width=32)
    with pytest.raises(ValueError, match=r"method='input' is unknown .*allowed: svd, .*input_svd"):
        plan_ranks(model, X, "input")
    plan = plan_ranks(model, X, "mixed", Budget(macs=0.5))
    assert {layer.method for layer in plan.factored.values()} <= set(DECOMPOSITIONS)


def test_it_is_searched_logged_and_reported(tmp_path: Path) -> None:
    settings = SearchSettings(method="input_svd", trials=3, finetune_top=0, budget=Budget(params=0.6))
    result = search_ranks(
        tiny_cnn(width=16), tiny_digits(), settings, logs=tmp_path, run="own", on_trial=lambda _: None
    )
    assert len(result.records) == 3
    assert {record.method for record in result.records} == {"input_svd"}
    assert analyze_results.main([str(tmp_path / "own.log"), "--out", str(tmp_path / "results")]) == 0
    assert "input_svd" in (tmp_path / "results" / "report.html").read_text()
