"""The drift meters, against arithmetic in the comments and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from surefoot.diagnostics.drift import correlation, drift_metrics, kl_by_position

MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)


def test_kl_by_position_takes_thirds_of_each_answer() -> None:
    """Six tokens: two a third. Three: one each. One: the first third."""
    kl = torch.tensor([[1.0, 1, 2, 2, 3, 3], [4, 5, 6, 9, 9, 9], [7, 9, 9, 9, 9, 9], [9, 9, 9, 9, 9, 9]])
    first, second, third = kl_by_position(kl, MASK)
    assert first == pytest.approx((1 + 1 + 4 + 7) / 4)
    assert second == pytest.approx((2 + 2 + 5) / 3)
    assert third == pytest.approx((3 + 3 + 6) / 3)
    assert kl_by_position(kl[2:3], MASK[2:3]) == (7.0, 0.0, 0.0)


def test_correlation_is_numpys_and_0_where_nothing_varies() -> None:
    x, y = torch.randn(40), torch.randn(40)
    assert correlation(x, y) == pytest.approx(np.corrcoef(x.numpy(), y.numpy())[0, 1], abs=1e-6)
    assert correlation(x, -3 * x) == pytest.approx(-1)
    assert correlation(x, torch.full((40,), 7)) == 0 == correlation(x[:2], y[:2])


def test_rows_without_a_token_and_padding_change_nothing() -> None:
    texts, finished, scores = ["a b a b a b", "c d e", "f", "f"], torch.tensor([True, False, True, True]), torch.arange(4.0)
    kl, logp = torch.rand(4, 6), -torch.rand(4, 6)
    found = drift_metrics(texts, MASK, finished, scores, kl, logp)
    kl[~MASK] = logp[~MASK] = torch.nan
    scores[3], texts[3], finished[3] = torch.nan, "g g g g g g g", False
    assert drift_metrics(texts, MASK, finished, scores, kl, logp) == found
    assert found["drift/eos_rate"] == pytest.approx(2 / 3)
    assert found["drift/fluency"] == pytest.approx(float(logp[MASK].mean()))
    assert found["drift/distinct_1"] == pytest.approx(6 / 10)  # a to f, of ten words
    assert found["drift/repetition"] == pytest.approx((0.5 + 0 + 0) / 3)  # aba bab aba bab
    assert found["drift/reward_length_corr"] == pytest.approx(np.corrcoef([0, 1, 2], [6, 3, 1])[0, 1])
    assert all(math.isfinite(value) for value in found.values())
    assert drift_metrics(texts, MASK & False, finished, scores, kl, logp) == {}
