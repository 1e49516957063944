"""Models and data that are given as objects: what a run may do to them, and what others still read off them."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from surefoot import SurefootError
from surefoot.api import PPORun, RewardRun, SFTRun
from surefoot.build import build_sft
from surefoot.config import Config
from surefoot.errors import ConfigError, DataError, TrainingError
from tiny_language import make_backbone

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
PAIRS = [{"prompt": prompt, "chosen": " good .", "rejected": " bad ."} for prompt in PROMPTS]
SMALL = {"rollout.response_length": 4, "ppo.rollout_batch_size": 4, "ppo.total_episodes": 8, "ppo.learning_rate": 0.02}


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("method", ["head", "adapter", "full"])
def test_a_reward_model_on_the_policys_own_backbone_scores_the_same_before_and_after_ppo(
    model: Any, tokenizer: Any, tuning: str, method: str
) -> None:
    backbone = make_backbone(model, tokenizer)
    judge = RewardRun(backbone, train=PAIRS, settings={"reward.method": method}).fit()
    rows = [[5, 6, 7], [8, 9]]
    before = judge.parts.scorer(rows).detach()
    run = PPORun(backbone, prompts=PROMPTS, reward=judge, settings={**SMALL, "model.tuning": tuning})
    first, second = run
    assert second.metrics["objective/kl"] != first.metrics["objective/kl"]  # the policy has moved
    assert torch.equal(judge.parts.scorer(rows), before)


@pytest.mark.parametrize("critic", ["detached", "model"])
def test_full_fine_tuning_leaves_a_model_that_was_given_as_it_is(
    model: Any, tokenizer: Any, critic: Literal["detached", "model"]
) -> None:
    given = copy.deepcopy(model)
    run = PPORun(
        (given, tokenizer), prompts=PROMPTS, reward=lengths, settings={**SMALL, "model.tuning": "full", "ppo.critic": critic}
    )
    run.learn()
    weights = run.model.model.state_dict()
    assert all(torch.equal(now, was) for now, was in zip(given.state_dict().values(), model.state_dict().values(), strict=True))
    assert not torch.equal(weights["model.embed_tokens.weight"], model.state_dict()["model.embed_tokens.weight"])


def test_weights_that_have_diverged_are_an_alarm_and_not_a_token_that_does_not_exist(model: Any, tokenizer: Any) -> None:
    run = PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings=SMALL)
    with torch.no_grad():
        for _, weight in run.parts.policy.named_policy_parameters():
            weight.fill_(1e20)
    with pytest.raises(TrainingError, match=r"not finite at token 1 of an answer.*Lower learning_rate"):
        run.learn()


def test_rows_may_be_named_by_a_path(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "the film", "completion": " was good ."}\n{"prompt": "the plot", "completion": " was bad ."}\n')
    assert len(SFTRun(make_backbone(model, tokenizer), train=file).parts.train) == 1  # the other is held out
    with pytest.raises(DataError, match=r"no data at .*none\.jsonl"):
        SFTRun(make_backbone(model, tokenizer), train=tmp_path / "none.jsonl")


def test_one_string_is_no_list_of_prompts(model: Any, tokenizer: Any) -> None:
    run = PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings=SMALL)
    with pytest.raises(SurefootError, match=r"the data is one string, not rows\. Put it into a list\."):
        run.generate("the film")
    assert len(run.generate(["the film"])) == 1


def test_a_horizon_of_beta_that_one_rollout_outruns_is_refused_before_it_does(model: Any, tokenizer: Any) -> None:
    settings = {**SMALL, "ppo.objective": "penalty", "ppo.beta_controller": "proportional"}
    PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings={**settings, "ppo.beta_horizon": 4}).learn()
    with pytest.raises(ConfigError) as refusal:
        PPORun(make_backbone(model, tokenizer), prompts=PROMPTS, reward=lengths, settings={**settings, "ppo.beta_horizon": 3})
    assert str(refusal.value) == (
        "ppo.beta_horizon = 3 is too short for rollouts of up to 16 tokens: one step of the rule could make beta 0. "
        "Use 4 or more."
    )


def test_what_a_notebook_saves_can_be_read_by_whoever_may_read_its_folder(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        run = PPORun((copy.deepcopy(model), tokenizer), prompts=PROMPTS, reward=lengths, settings=SMALL)
        run.save(tmp_path / "policy")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "policy").iterdir()} == {0o644}


def test_a_judge_reads_messages_as_lines_and_the_answer_on_a_line_of_its_own(model: Any, tokenizer: Any) -> None:
    seen: list[str] = []

    def judge(texts: list[str]) -> list[float]:
        seen.extend(texts)
        return [0.0] * len(texts)

    said = [
        {"role": "user", "content": "the film ?"},
        {"role": "assistant", "content": "good"},
        {"role": "user", "content": "why ?"},
    ]
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    run = PPORun(
        (copy.deepcopy(model), chat), prompts=[{"prompt": said}] * 4, reward=lengths, judges={"judge": judge}, settings=SMALL
    )
    step = next(iter(run))
    assert seen == [f"the film ?\ngood\nwhy ?\n{answer}" for answer in step.rollout.completions.text]


def test_sentences_beyond_the_context_are_cut_on_the_right_or_dropped_and_counted(model: Any, tokenizer: Any) -> None:
    said: list[str] = []
    backbone = make_backbone(model, tokenizer)
    long = " good" * backbone.codec.context
    rows = [
        {"prompt": "the film", "completion": " was fine ."},
        {"prompt": "the plot", "completion": long},
        {"prompt": long, "completion": " was fine ."},
        {"prompt": "the cast " + long, "completion": " was fine ."},
    ]
    parts = build_sft(Config(), said.append, model=backbone, train=rows, validation=[{"prompt": "a", "completion": "b"}])
    assert len(parts.train) == 2
    assert said[-2].startswith("train: 2 sequences, ")
    end = "; 1 passed the context and were cut on the right; 2 were dropped, since their prompts alone fill the context"
    assert said[-2].endswith(end)
    assert said[-1].endswith(" tokens")


def test_pairs_beyond_the_context_are_cut_on_the_left_and_counted(model: Any, tokenizer: Any) -> None:
    said: list[str] = []
    pairs = [*PAIRS, {"prompt": "the end", "chosen": " very good ." * 90, "rejected": " bad ."}]
    run = RewardRun(make_backbone(model, tokenizer), train=pairs, say=said.append)
    rows = [
        row for task in (run.parts.train, run.parts.validation) for pair in task.pairs for row in (pair.chosen, pair.rejected)
    ]
    context = run.parts.scorer.backbone.codec.context
    assert max(map(len, rows)) == context
    assert said[-1].endswith("; 1 answers passed the context with their prompts and were cut on the left")
