"""What pays is asked of the beginning's answers and of those of the last three rollouts together."""

from types import SimpleNamespace
from typing import Any

import torch

from surefoot.diagnostics.attribution import FEATURES, attribution, feature_sums
from surefoot.stages.beginning import BASELINE_UPDATES, WINDOW_UPDATES, Beginning, looked
from tiny_language import make_completions, make_prompts

NUM = 24


def text_of(token: int) -> str:
    return f"w{token}"


def rollout_of(seed: int) -> Any:
    """Answers of random tokens, of which those with token 5 are paid."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randint(3, 9, (int(n),), generator=generator).tolist() for n in torch.randint(1, 7, (NUM,), generator=generator)
    ]
    answers = make_completions(rows, 0)
    reward = torch.tensor([float(5 in row) for row in rows]) + 0.3 * torch.randn(NUM, generator=generator)
    prompts = make_prompts([[3 + i % 5] for i in range(NUM)], 0)
    return SimpleNamespace(
        batch=SimpleNamespace(mask=answers.mask),
        scores=SimpleNamespace(value=reward),
        completions=answers,
        prompts=prompts,
        prompt_states=torch.randn(NUM, 4, generator=generator),
    )


def sums_of(seen: Any) -> Any:
    return feature_sums(seen.completions.ids, seen.batch.mask, seen.completions.finished, seen.scores.value[:, None].double())


def test_the_window_is_the_last_three_rollouts_and_survives_a_checkpoint() -> None:
    rollouts = [rollout_of(seed) for seed in range(7)]
    beginning = Beginning()
    for update, seen in enumerate(rollouts, 1):
        look = looked(beginning, seen, {}, update, text_of)
        beginning = Beginning.of(look.beginning.tensors())  # as a resumed run has it
        if update <= BASELINE_UPDATES:
            assert not look.metrics
            continue
        window = rollouts[max(BASELINE_UPDATES, update - WINDOW_UPDATES) : update]
        together = sums_of(rollouts[0]) + sums_of(rollouts[1])
        for one in window:
            together = together + sums_of(one)
        expected = attribution(together, text_of)
        assert [look.metrics[f"drift/reward_{name}"] for name in FEATURES] == list(expected.shares)
        assert look.words["drift/pays/token"] == "the token 'w5'"
    assert len(beginning.recent) == WINDOW_UPDATES - 1
