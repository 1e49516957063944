"""Several seeds side by side: each is what it is alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from control_toys import ByAutograd, actor_critic_of, rollout_of, settings
from surefoot.control import FlatNets
from surefoot.errors import ConfigError
from surefoot.optim import make_optimizer
from surefoot.ppo import ppo_update, ppo_update_seeds
from surefoot.runtime import SingleRuntime
from toys import largest_difference, weights_of


def test_seeds_that_need_autograd_are_refused() -> None:
    actor_critics = [actor_critic_of("discrete", seed=seed) for seed in range(2)]
    cfg, batches = settings(), [rollout_of(each) for each in actor_critics]
    given: dict[str, Any] = {"runtime": SingleRuntime(), "generators": [torch.Generator()] * 2, "betas": [0.0, 0.0]}
    slow = [torch.optim.SGD(each.parameters(), lr=0.1) for each in actor_critics]
    with pytest.raises(ConfigError, match="Train them one after the other"):
        ppo_update_seeds(FlatNets(actor_critics), actor_critics, batches, cfg, optimizers=slow, **given)


def test_nets_of_one_seed_and_of_several_may_take_turns() -> None:
    """Whoever computes last takes the weights into its own memory first."""
    cfg = settings()
    actor_critics = [actor_critic_of("box", seed=seed) for seed in range(2)]
    twins = [actor_critic_of("box", seed=seed) for seed in range(2)]
    joint = FlatNets(actor_critics)
    optimizers, others = ([make_optimizer(each, cfg) for each in group] for group in (actor_critics, twins))

    def one(group: Any, optimizer: Any, seed: int, wrap: Any) -> None:
        generator = torch.Generator().manual_seed(seed)
        ppo_update(wrap(group), rollout_of(group), cfg, optimizer=optimizer, runtime=SingleRuntime(), generator=generator,
                   beta=0.0, kl_coef=0.0)  # fmt: skip

    for turn in range(3):
        if turn == 1:
            generators = [torch.Generator().manual_seed(turn) for _ in range(2)]
            batches = [rollout_of(each) for each in actor_critics]
            ppo_update_seeds(
                joint, actor_critics, batches, cfg, optimizers=optimizers, runtime=SingleRuntime(), generators=generators,
                betas=[0.0, 0.0],
            )  # fmt: skip
        for i in range(2):
            if turn != 1:
                one(actor_critics[i], optimizers[i], turn, lambda same: same)
            one(twins[i], others[i], turn, ByAutograd)
    for a, b in zip(actor_critics, twins, strict=True):
        assert largest_difference(weights_of(a), weights_of(b)) < 2e-5
