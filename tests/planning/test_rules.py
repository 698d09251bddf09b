from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.planning.rules.energy import energy_rank
from common.planning.rules.entropy import entropy_rank

# (4, 2, 1, 1) with exponent 1: p = 1/2, 1/4, 1/8, 1/8; in bits the terms are 0.5, 0.5, 0.375, 0.375 and H = 1.75.
BY_HAND_1 = [(0.0, 1), (0.25, 1), (0.5 / 1.75, 1), (0.3, 2), (1 / 1.75, 2), (0.6, 3), (0.78, 3), (0.8, 4), (1.0, 4)]
# With exponent 2: p = 16/22, 4/22, 1/22, 1/22; the terms are 0.3341, 0.4472, 0.2027, 0.2027 and H = 1.1867.
BY_HAND_2 = [(0.0, 1), (0.28, 1), (0.29, 2), (0.65, 2), (0.67, 3), (0.82, 3), (0.84, 4), (1.0, 4)]


@pytest.mark.parametrize(("tau", "rank"), BY_HAND_1)
def test_entropy_by_hand_exponent_1(tau: float, rank: int) -> None:
    assert entropy_rank(torch.tensor([4.0, 2.0, 1.0, 1.0]), tau, exponent=1) == rank


@pytest.mark.parametrize(("tau", "rank"), BY_HAND_2)
def test_entropy_by_hand_exponent_2(tau: float, rank: int) -> None:
    assert entropy_rank(torch.tensor([4.0, 2.0, 1.0, 1.0]), tau, exponent=2) == rank


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("tau", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spectrum", [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [5.0]])
def test_entropy_of_a_spectrum_with_at_most_one_nonzero_value(
    spectrum: list[float], tau: float, exponent: int
) -> None:
    assert entropy_rank(torch.tensor(spectrum), tau, exponent) == 1


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize(("tau", "rank"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_entropy_of_a_flat_spectrum(tau: float, rank: int, exponent: int) -> None:
    assert entropy_rank(torch.full((4,), 0.7), tau, exponent) == rank


def test_trailing_zeros_are_never_kept() -> None:
    assert entropy_rank(torch.tensor([4.0, 2.0, 0.0, 0.0]), 1.0) == 2
    assert energy_rank(torch.tensor([4.0, 2.0, 0.0, 0.0]), 1.0) == 2


# (2, 2, 1): the energies are 4, 4 and 1, in total 9.
@pytest.mark.parametrize(("threshold", "rank"), [(0.0, 1), (4 / 9, 1), (0.45, 2), (8 / 9, 2), (0.9, 3), (1.0, 3)])
def test_energy_by_hand(threshold: float, rank: int) -> None:
    assert energy_rank(torch.tensor([2.0, 2.0, 1.0]), threshold) == rank


def test_energy_of_a_zero_spectrum() -> None:
    assert energy_rank(torch.zeros(3), 0.9) == 1


spectra = st.lists(st.floats(0, 1e6), min_size=1, max_size=30).map(lambda values: torch.tensor(sorted(values)[::-1]))
shares = st.floats(0, 1)


@given(spectra, shares, shares, st.sampled_from([1, 2]))
def test_ranks_grow_with_the_threshold(spectrum: torch.Tensor, one: float, other: float, exponent: int) -> None:
    low, high = sorted((one, other))
    assert 1 <= entropy_rank(spectrum, low, exponent) <= entropy_rank(spectrum, high, exponent) <= len(spectrum)
    assert 1 <= energy_rank(spectrum, low) <= energy_rank(spectrum, high) <= len(spectrum)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_thresholds_outside_the_range_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"tau=.* must be in \[0, 1\]"):
        entropy_rank(torch.ones(3), bad)
    with pytest.raises(ValueError, match=r"threshold=.* must be in \[0, 1\]"):
        energy_rank(torch.ones(3), bad)


def test_other_exponents_are_refused() -> None:
    with pytest.raises(ValueError, match="exponent=3: it must be 1 or 2"):
        entropy_rank(torch.ones(3), 0.5, exponent=3)
