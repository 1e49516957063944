"""The judges rank as people do, and nothing about a batch changes what they say."""

from pathlib import Path

import pytest
import torch

from surefoot.embedded.judges import MiniLMJudge, VaderJudge, _fetch_encoder, _fit_head, agreement, fit_ridge
from surefoot.embedded.ratings import load_ratings
from surefoot.embedded.splits import split_of
from surefoot.errors import ModelError

GOOD, BAD = "A wonderful, moving and very funny film.", "A terrible, boring and stupid film."


def test_agreement_by_hand() -> None:
    human = torch.tensor([0.0, 1.0, 3.0])
    assert agreement(torch.tensor([0.0, 2.0, 1.0]), human, gap=0.0) == pytest.approx(2 / 3)  # pairs 01 yes, 02 yes, 12 no
    assert agreement(torch.tensor([0.0, 2.0, 2.0]), human, gap=1.0) == pytest.approx(3 / 4)  # 02 yes, 12 tied: (1 + 1/2) / 2


def test_ridge_finds_a_linear_rating_and_its_strength_by_cross_validation() -> None:
    """The head reads unscaled features, so it must give back the line itself when there is much data and little noise."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(40_000, 4, generator=draw, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1, 2.0]) + 5
    truth = torch.tensor([1.0, 0.2, -5.0, 0.0], dtype=torch.float64)
    ratings = features @ truth + 0.3
    groups = [f"group {k % 500}" for k in range(4000)]
    head, fit = fit_ridge(features[:4000], ratings[:4000], groups)
    predicted = features[4000:] @ head["weight"] + head["bias"]
    assert torch.corrcoef(torch.stack([predicted, ratings[4000:]]))[0, 1] > 0.999
    assert predicted.mean() == pytest.approx(ratings[4000:].mean().item(), abs=0.05), "the mean is not shrunk"
    assert fit.alpha == 1000.0 and fit.pair_accuracy > 0.98 and fit.num_sentences == 4000


def test_ridge_learns_nothing_from_noise() -> None:
    draw = torch.Generator().manual_seed(1)
    _, fit = fit_ridge(
        torch.randn(600, 50, generator=draw), torch.randn(600, generator=draw), [f"group {k // 2}" for k in range(600)]
    )
    assert fit.pair_accuracy == pytest.approx(0.5, abs=0.06)  # held out: a fit judged on its own data would say 0.6 and more


def test_vader_has_signs_and_no_opinion_on_nothing() -> None:
    good, bad, empty = VaderJudge().score([GOOD, BAD, ""])
    assert good > 0.5 and bad < -0.5 and empty == 0.0


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(ModelError, match=r'needs the extra "demo"'):
        VaderJudge()


@pytest.mark.embedded
def test_minilm_ranks_as_people_do_whatever_the_batch(tmp_path: Path) -> None:
    """The real network with a head from 400 sentences, a ninth of what the demo's judge learns from."""
    sentences = [one for one in load_ratings() if len(one.text) < 90 and split_of(one.text) == "judge"]
    _fetch_encoder(tmp_path)
    _fit_head(tmp_path, sentences[:: len(sentences) // 400][:400])  # the archive lists good reviews first
    judge = MiniLMJudge(tmp_path)
    assert judge.fit.num_sentences == 400 and judge.fit.pair_accuracy > 0.62
    good, bad, empty = judge.score([GOOD, BAD, ""])
    assert bad < 0 < good and good - bad > 2 and bad < empty < good  # with all sentences 3.6 and -3.8
    assert judge.score([BAD]) == pytest.approx([bad], abs=1e-4) and judge.score([""]) == pytest.approx([empty], abs=1e-4)
    assert judge.score([]) == []
