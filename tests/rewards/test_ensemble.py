"""Reward ensembles: members that differ, load alone, and are put together by rules that arithmetic can check."""

from __future__ import annotations

import copy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForSequenceClassification

from surefoot.api import PPORun, RewardRun
from surefoot.build_rewards import reward_source
from surefoot.config import Config, ModelConfig, RewardConfig, RewardSourceConfig
from surefoot.errors import ConfigError, ModelError
from surefoot.lm.backbone import Backbone, load_backbone
from surefoot.lm.roles import RewardScorer, raw_scores
from surefoot.rewards.ensemble import EnsembleReward, combined, load_reward
from surefoot.rewards.model import SeparateRewardModel, SharedRewardModel, load_reward_model, read_facts
from surefoot.stages.reward_ensemble import EnsembleTask
from surefoot.types import Completions, Prompts
from tiny_language import TEXTS, make_completions, make_model, make_prompts, make_tokenizer

NOUNS = sorted({text.split()[1] for text in TEXTS})
GOOD, BAD = (" was good and superb .", " was very fine ."), (" was awful and bad .", " was rather dull .")
PAIRS = [
    {"prompt": f"the {noun}", "chosen": good, "rejected": bad} for noun in NOUNS for good in GOOD for bad in BAD
]  # 8 nouns: 32 pairs
SMALL = {"reward.batch_size": 8, "reward.num_epochs": 6, "reward.learning_rate": 0.02, "model.lora_rank": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder, so that a backbone has a fingerprint and heads that were trained on it know it again."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def loaded(base: str) -> Backbone:
    return load_backbone(ModelConfig(name=base))


def trained(base: str, **settings: Any) -> RewardRun:
    chosen = SMALL | {f"reward.{name}": value for name, value in settings.items()}
    return RewardRun(base, train=PAIRS[:24], validation=PAIRS[24:], settings=chosen).fit()


def answers(backbone: Backbone) -> tuple[Prompts, Completions]:
    pad, codec = backbone.codec.pad_id, backbone.codec
    prompts = [codec.prompt_ids(f"the {noun}") for noun in NOUNS]
    return make_prompts(prompts, pad), make_completions([codec.completion_ids(text) for text in (GOOD + BAD) * 2], pad)


def test_the_rules_are_mean_minimum_and_mean_less_k_deviations() -> None:
    each = torch.tensor([[1.0, 0.0], [3.0, 0.0]])  # mean 2, population deviation 1
    assert combined(each, "mean", 5.0).tolist() == [2.0, 0.0]
    assert combined(each, "min", 5.0).tolist() == [1.0, 0.0]
    assert combined(each, "mean_minus_std", 0.5).tolist() == [1.5, 0.0]


def test_members_differ_each_learns_and_each_loads_alone_with_its_own_scores(base: str, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = trained(base, ensemble=3, ensemble_layers=[1, 2])
    assert [scorer.layer for scorer in run.parts.scorers] == [1, 2, 1]
    run.save(tmp_path)
    backbone = loaded(base)
    given = answers(backbone)
    source = load_reward(tmp_path, backbone, RewardSourceConfig(source=str(tmp_path)), may_share=True)
    assert isinstance(source, EnsembleReward) and all(isinstance(member, SharedRewardModel) for member in source.members)
    each, _ = source.each(*given)
    assert torch.allclose(source.score(*given).value, run.score(*given).value, atol=1e-5)
    assert (each[0] - each[2]).abs().max() > 1e-3  # same layer, another bootstrap and start
    for k in range(3):
        member = AutoModelForSequenceClassification.from_pretrained(tmp_path / f"member-{k + 1}").eval()
        AutoTokenizer.from_pretrained(tmp_path / f"member-{k + 1}")
        facts = source.members[k].facts
        prompts, completions = given
        for i in range(4):
            row = [*prompts.ids[i][prompts.mask[i]].tolist(), *completions.ids[i][completions.mask[i]].tolist()]
            raw = member(input_ids=torch.tensor([row])).logits.item()
            assert each[k, i].item() == pytest.approx((raw - facts.mean) / facts.deviation, abs=1e-4)
    figures = run.held_out
    assert isinstance(figures["accuracy"], float) and figures["accuracy"] > 0.9


def test_adapters_load_as_a_model_each_and_score_as_they_did(base: str, tmp_path: Path) -> None:
    run = trained(base, ensemble=2, method="adapter", num_epochs=2)
    run.save(tmp_path)
    source = load_reward(tmp_path, loaded(base), RewardSourceConfig(source=str(tmp_path), ensemble="min"), may_share=True)
    assert isinstance(source, EnsembleReward) and all(isinstance(member, SeparateRewardModel) for member in source.members)
    given = answers(loaded(base))
    found, before = source.score(*given), run.score(*given)
    for part in ("member_1", "member_2", "disagreement"):
        assert torch.allclose(found.parts[part], before.parts[part], atol=1e-4)
    assert torch.equal(found.value, torch.minimum(found.parts["member_1"], found.parts["member_2"]))
    assert found.parts["disagreement"].min() > 0


def test_heads_of_one_layer_share_a_pass_of_the_trunk(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(base, ensemble=3, num_epochs=1).save(tmp_path)
    backbone = loaded(base)
    source = load_reward(tmp_path, backbone, RewardSourceConfig(source=str(tmp_path)), may_share=True)
    passes = []
    hidden = Backbone.hidden
    monkeypatch.setattr(Backbone, "hidden", lambda *args, **named: passes.append(1) or hidden(*args, **named))
    source.score(*answers(backbone))
    assert len(passes) == 1


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_a_member_is_trained_as_if_it_were_alone(method: str, base: str) -> None:
    """Without bootstraps and clipping the first member is the single model of the same seed."""
    settings = {"method": method, "max_grad_norm": None, "num_epochs": 1}
    alone = trained(base, **settings)
    both = trained(base, **settings, ensemble=2, bootstrap=False)
    given = answers(alone.parts.scorer.backbone)
    rows = [
        [*p[pm].tolist(), *c[cm].tolist()]
        for p, pm, c, cm in zip(given[0].ids, given[0].mask, given[1].ids, given[1].mask, strict=True)
    ]
    with torch.no_grad():
        first, second, single = (scorer(rows) for scorer in (*both.parts.scorers, alone.parts.scorer))
    assert torch.allclose(first, single, atol=2e-3)  # Adam's epsilon sees a gradient of half the size
    assert (first - second).abs().max() > 0.05


def test_a_bootstrap_draws_as_many_pairs_as_there_are_and_another_for_each_member(base: str) -> None:
    run = trained(base, ensemble=3, num_epochs=1)
    task = run.parts.train
    assert isinstance(task, EnsembleTask)
    assert task.counts.sum(1).tolist() == [24, 24, 24]
    assert len({tuple(row.tolist()) for row in task.counts}) == 3
    loss = task.loss([0, 1])[0]
    expected = 0.0
    for member, counts in zip(task.members, task.counts, strict=True):
        losses = member.losses([0, 1], *member.scores([0, 1]))
        expected += (losses * counts[:2]).sum().item() / 3
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_disagreement_is_a_metric_of_every_rollout(base: str, tmp_path: Path) -> None:
    trained(base, ensemble=3).save(tmp_path)
    settings = {
        "rollout.response_length": 4,
        "ppo.rollout_batch_size": 4,
        "ppo.total_episodes": 8,
        "reward_source.ensemble": "mean_minus_std",
        "reward_source.ensemble_k": 2.0,
    }
    for step in PPORun(loaded(base), prompts=["the film", "the plot"], reward=tmp_path, settings=settings):
        parts = step.rollout.scores.parts
        each = torch.stack([parts[f"member_{k}"] for k in (1, 2, 3)])
        assert torch.allclose(step.rollout.scores.value, each.mean(0) - 2 * each.std(0, correction=0), atol=1e-5)
        assert step.metrics["rewards/disagreement/mean"] == pytest.approx(each.std(0, correction=0).mean().item(), abs=1e-5)
        assert step.metrics["rewards/disagreement/mean"] > 0


def test_the_folder_of_heads_on_the_same_states_is_their_mean_as_one_model(base: str, tmp_path: Path) -> None:
    trained(base, ensemble=3).save(tmp_path)
    backbone = loaded(base)
    prompts, completions = answers(backbone)
    ensemble = load_reward(tmp_path, backbone, RewardSourceConfig(source="it"), may_share=True)
    alone = load_reward_model(tmp_path, loaded(base), 8, may_share=False)
    assert isinstance(ensemble, EnsembleReward) and isinstance(alone, SeparateRewardModel)
    assert torch.allclose(alone.score(prompts, completions).value, ensemble.score(prompts, completions).value, atol=1e-4)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = torch.tensor([backbone.codec.prompt_ids(f"the {NOUNS[0]}") + backbone.codec.completion_ids(GOOD[0])])
    facts, expected = read_facts(tmp_path), ensemble.score(prompts, completions).value[0].item()
    assert (model(ids).logits.item() - facts.mean) / facts.deviation == pytest.approx(expected, abs=1e-4)
    assert facts.deviation == pytest.approx(fmean(read_facts(tmp_path / f"member-{k}").deviation for k in (1, 2, 3)))


def test_what_is_saved_over_another_reward_model_is_not_mixed_with_it(base: str, tmp_path: Path) -> None:
    trained(base, ensemble=2, num_epochs=1).save(tmp_path)
    trained(base, ensemble=2, ensemble_layers=(1, 2), num_epochs=1).save(tmp_path)
    assert not (tmp_path / "config.json").exists() and not (tmp_path / "reward.json").exists()
    trained(base, num_epochs=1).save(tmp_path)
    source = load_reward(tmp_path, loaded(base), RewardSourceConfig(source="it"), may_share=True)
    assert isinstance(source, SharedRewardModel)


def test_members_that_read_the_same_states_share_a_pass_of_the_trunk(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(base, ensemble=3, ensemble_layers=(1, 2), num_epochs=1)
    rows = [list(row) for pair in run.parts.validation.pairs[:2] for row in (pair.chosen, pair.rejected)]
    alone = torch.stack([scorer(rows) for scorer in run.parts.scorers])
    passes: list[int] = []
    plain = RewardScorer.features
    monkeypatch.setattr(RewardScorer, "features", lambda scorer, rows: passes.append(scorer.layer) or plain(scorer, rows))
    assert torch.equal(raw_scores(run.parts.scorers, rows), alone)
    assert passes == [1, 2]


def test_members_at_different_layers_have_no_mean_that_is_one_model(base: str, tmp_path: Path) -> None:
    trained(base, ensemble=2, ensemble_layers=(1, 2), num_epochs=1).save(tmp_path)
    assert not (tmp_path / "config.json").exists() and (tmp_path / "member-2/config.json").exists()


def test_a_rule_for_members_needs_members_and_a_damaged_ensemble_is_named(base: str, tmp_path: Path) -> None:
    trained(base, num_epochs=1).save(tmp_path / "one")
    backbone = loaded(base)
    one = str(tmp_path / "one")
    for named in ({"source": one}, {"source": "length:1-2"}, {"sources": (one, "length:1-2")}):
        with pytest.raises(ConfigError, match=r"reward_source\.ensemble = 'min' has no effect: .* holds no ensemble\. Train one"):
            reward_source(Config(reward_source=RewardSourceConfig(ensemble="min", **named)), backbone)
    (tmp_path / "many").mkdir()
    for text in ("{", "[]", '{"members": []}', '{"members": ["../one"]}', '{"members": ["member-1"]}'):
        (tmp_path / "many/ensemble.json").write_text(text)
        with pytest.raises(ModelError, match=r"ensemble\.json (is no list|names members)"):
            load_reward(tmp_path / "many", copy.copy(backbone), RewardSourceConfig(source="many"), may_share=True)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"bootstrap": False}, "ensemble = 1 has one member"),
        ({"ensemble_layers": (1,)}, "ensemble = 1 has one member"),
        ({"ensemble": 2, "method": "full"}, "members share a trunk"),
        ({"ensemble": 2, "normalize": False}, "the zero of a member's raw scores is its own"),
        ({"ensemble": 2, "layer": 1, "ensemble_layers": (1, 2)}, "ensemble_layers names the layers"),
        ({"ensemble": 2, "ensemble_layers": (1, 2, 3)}, "more than the 2 members"),
    ],
)
def test_settings_of_an_ensemble_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RewardConfig(**settings)
    with pytest.raises(ValidationError, match='ensemble = "mean" has no k'):
        RewardSourceConfig(source="a", ensemble_k=2.0)
