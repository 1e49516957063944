"""Rows in parts that one forward takes: every row once, within the limit, and the same update however they are cut."""

import copy
import itertools
import math

import pytest
import torch

from surefoot.config import ModelConfig, PPOConfig
from surefoot.micro_batches import micro_batches
from surefoot.optim import make_optimizer
from surefoot.ppo import ppo_update
from surefoot.runtime.single import SingleRuntime
from surefoot.stages.rollouts import RunningDeviation, rollout
from surefoot.types import PPOBatch
from tiny_language import (
    make_backbone,
    make_completions,
    make_model,
    make_policy,
    make_prompts,
    make_scores,
    make_tokenizer,
    moved,
)

LENGTHS = torch.tensor([7, 3, 12, 3, 40, 5, 9, 3, 1, 12])


@pytest.mark.parametrize("tokens", [None, 1, 12, 24, 40, 1000])
@pytest.mark.parametrize("at_least", [1, 4, 99])
def test_every_row_stands_in_one_part_with_rows_of_like_length(tokens: int | None, at_least: int) -> None:
    cfg = PPOConfig(micro_batch_size=4, micro_batch_tokens=tokens)
    parts = micro_batches(LENGTHS, cfg, at_least=at_least)
    together = torch.cat(parts)
    assert together.sort().values.tolist() == list(range(len(LENGTHS)))
    assert LENGTHS[together].tolist() == sorted(LENGTHS.tolist())
    assert len(parts) == max(len(micro_batches(LENGTHS, cfg)), min(at_least, len(LENGTHS)))  # ranks run equally many forwards
    assert all(len(part) for part in parts)


@pytest.mark.parametrize("tokens", [1, 12, 24, 40, 1000])
def test_a_part_stays_within_its_tokens_and_takes_as_many_rows_as_fit(tokens: int) -> None:
    parts = micro_batches(LENGTHS, PPOConfig(micro_batch_tokens=tokens))
    sizes = [len(part) * int(LENGTHS[part].max()) for part in parts]
    assert all(size <= tokens or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    for part, following in itertools.pairwise(parts):
        assert (len(part) + 1) * int(LENGTHS[following[0]]) > tokens


def test_rows_alone_are_cut_by_number() -> None:
    assert [len(part) for part in micro_batches(LENGTHS, PPOConfig(micro_batch_size=4))] == [4, 4, 2]


def batch_and_policy(cfg: PPOConfig) -> tuple[PPOBatch, object]:
    tokenizer = make_tokenizer()
    policy = moved(make_policy(make_backbone(make_model(tokenizer), tokenizer), cfg=ModelConfig(name="tiny", lora_rank=4)))
    generator = torch.Generator().manual_seed(0)
    size = len(tokenizer)

    def rows(longest: int) -> list[list[int]]:
        lengths = torch.randint(1, longest, (12,), generator=generator).tolist()
        return [torch.randint(3, size, (length,), generator=generator).tolist() for length in lengths]

    prompts, completions = make_prompts(rows(20), 0), make_completions(rows(12), 0)
    scores = make_scores(torch.randn(12, generator=generator).tolist())
    seen = rollout(policy, prompts, completions, scores, cfg, kl_coef=0.05, running=RunningDeviation())
    return seen.batch, policy


@pytest.mark.parametrize("tokens", [8, 40, 100, 10_000])
def test_an_update_is_the_same_however_its_rows_are_cut(tokens: int) -> None:
    sizes = {"total_episodes": 12, "rollout_batch_size": 12, "num_mini_batches": 2, "num_ppo_epochs": 2, "learning_rate": 1e-3}
    results = []
    for most in (None, tokens):
        cfg = PPOConfig(**sizes, micro_batch_size=3, micro_batch_tokens=most)
        batch, policy = batch_and_policy(cfg)
        assert batch.lengths is not None and not torch.equal(batch.lengths, batch.mask.sum(1))  # prompts are counted
        before = copy.deepcopy(policy.state_dict())
        stats = ppo_update(
            policy,
            batch,
            cfg,
            optimizer=make_optimizer(policy, cfg),
            runtime=SingleRuntime(),
            generator=torch.Generator().manual_seed(3),
            beta=1.0,
            kl_coef=0.05,
        )
        after = policy.state_dict()
        moves = {name: after[name] - before[name] for name in after}
        assert sum(float(move.abs().sum()) for move in moves.values()) > 0
        results.append((stats, moves))
    (stats, moves), (stats_tokens, moves_tokens) = results
    assert math.isclose(stats.loss_total, stats_tokens.loss_total, abs_tol=1e-5)
    assert math.isclose(stats.grad_norm, stats_tokens.grad_norm, rel_tol=1e-4)
    for name, move in moves.items():
        assert torch.allclose(move, moves_tokens[name], atol=2e-5), name
