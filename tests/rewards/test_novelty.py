"""Distances of answers from what a reward model was trained on: percentiles, and with the scores in one pass of the trunk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from surefoot.api import RewardRun
from surefoot.config import ModelConfig, RewardSourceConfig
from surefoot.lm.backbone import Backbone, load_backbone
from surefoot.rewards.ensemble import load_reward
from surefoot.rewards.novelty import FILE, TrainedOn, trained_on
from surefoot.rewards.weighted import WeightedSum
from surefoot.stages.rollouts import distance_metrics
from surefoot.types import Completions, Prompts, Scores
from tiny_language import TEXTS, make_completions, make_model, make_prompts, make_tokenizer

NOUNS = sorted({text.split()[1] for text in TEXTS})
PAIRS = [
    {"prompt": f"the {noun}", "chosen": good, "rejected": " was awful and bad ."}
    for noun in NOUNS
    for good in (" was good and superb .", " was very fine .")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, tokenizer = tmp_path_factory.mktemp("base"), make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def answers(backbone: Backbone, texts: list[str]) -> tuple[Prompts, Completions]:
    codec = backbone.codec
    prompts = make_prompts([codec.prompt_ids("the film")] * len(texts), codec.pad_id)
    return prompts, make_completions([codec.completion_ids(text) for text in texts], codec.pad_id)


def test_percentiles_are_the_share_of_held_out_distances_below() -> None:
    held = np.random.default_rng(0).gamma(4.0, size=501)
    seen = trained_on([torch.randn(50, 3)]).with_held_out(held.tolist())
    at = torch.tensor([0.0, float(np.median(held)), float(np.quantile(held, 0.9)), 1e9])
    found = seen.percentiles(at)
    assert found is not None and found.tolist() == pytest.approx([0, 50, 90, 100], abs=0.2)
    assert trained_on([torch.randn(50, 3)]).percentiles(at) is None


def test_they_come_back_from_the_folder_and_an_older_file_has_none(tmp_path: Path) -> None:
    seen = trained_on([torch.randn(50, 3)]).with_held_out([1.0, 2.0, 3.0])
    seen.save(tmp_path)
    back = TrainedOn.load(tmp_path)
    assert back is not None and torch.allclose(back.quantiles, seen.quantiles, atol=1e-6) and len(back.quantiles) == 101
    from safetensors.torch import load_file, save_file

    kept = load_file(tmp_path / FILE)
    save_file({name: kept[name] for name in ("mean", "covariance")}, tmp_path / FILE)
    older = TrainedOn.load(tmp_path)
    assert older is not None and older.percentiles(torch.ones(2)) is None


@pytest.mark.parametrize(("method", "members"), [("head", 1), ("adapter", 1), ("head", 2)])
def test_distances_come_with_the_scores_from_one_pass_and_change_none(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, members: int
) -> None:
    settings = {"reward.method": method, "reward.ensemble": members, "reward.batch_size": 8, "model.lora_rank": 2}
    RewardRun(base, train=PAIRS[:12], validation=PAIRS[12:], settings=settings).fit().save(tmp_path)
    backbone, cfg = load_backbone(ModelConfig(name=base)), RewardSourceConfig(source=str(tmp_path))
    given = answers(backbone, [" was very fine .", " was awful and bad .", " fine fine fine fine fine fine fine"])
    found = load_reward(tmp_path, backbone, cfg, may_share=True).score(*given)
    assert found.distance is not None and found.percentile is not None
    assert found.distance[2] > 1.5 * found.distance[:2].max() and found.percentile[2] == 100
    (tmp_path / FILE).unlink()
    without = load_reward(tmp_path, backbone, cfg, may_share=True).score(*given)
    assert without.distance is None and torch.allclose(without.value, found.value, atol=1e-5)


def test_a_weighted_sum_hands_them_on_and_invalid_rows_are_in_no_mean() -> None:
    far = torch.tensor([1.0, 3.0, 50.0])

    class Source:
        def score(self, prompts: Prompts, completions: Completions) -> Scores:
            valid = torch.tensor([True, True, False])
            return Scores(torch.zeros(3), {}, valid, far, 10 * far)

    prompts = make_prompts([[3]] * 3, 0)
    scores = WeightedSum([("a", Source(), 1.0)]).score(prompts, make_completions([[4]] * 3, 0))
    assert distance_metrics(scores, scores.valid) == {"drift/distance": 2.0, "drift/distance_percentile": 20.0}
    assert distance_metrics(scores, torch.zeros(3, dtype=torch.bool)) == {}
