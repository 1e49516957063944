"""The fast arithmetic learns what the slow one learns: bfloat16 with truncated importance weights beside float32."""

from typing import Any

import pytest

from surefoot.doctor_rungs import echoing

FULL: dict[str, Any] = {}
LORA = {
    "model.tuning": "lora",
    "model.lora_rank": 32,
    "ppo.critic": "detached",
    "ppo.learning_rate": 0.003,
    "ppo.ent_coef": 0.01,
}
BF16 = {"model.dtype": "bfloat16", "ppo.tis_cap": 2.0}


def updates_needed(settings: dict[str, Any], head: float, wanted: float) -> tuple[int, float]:
    """Updates until this share of the tokens is the one that is paid for, and the largest gap between sampler and trainer."""
    largest = share = 0.0
    for update, (share, gap) in enumerate(echoing(settings, head=head), start=1):
        largest = max(largest, gap)
        if share >= wanted:
            return update, largest
    raise AssertionError(f"{settings}: {share:.0%} of the tokens after {update} updates")


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("tuning", "head", "wanted"), [(FULL, 1.0, 0.9), (LORA, 10.0, 0.6)], ids=["full", "lora"])
def test_bf16_learns_in_as_many_updates_as_float32(tuning: dict[str, Any], head: float, wanted: float, seed: int) -> None:
    slow, exact = updates_needed(tuning | {"seed": seed}, head, wanted)
    fast, gap = updates_needed(tuning | BF16 | {"seed": seed}, head, wanted)
    assert 1 < fast <= 1.5 * slow
    assert exact < 1e-5 < 1e-4 < gap  # the two sides of bfloat16 do differ here
