"""Several seeds side by side: each is what it is alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from control_toys import ByAutograd, actor_critic_of, rollout_of, settings
from run_bytes import assert_equal_up_to_rounding
from surefoot.config import Config
from surefoot.control import FlatNets
from surefoot.errors import ConfigError
from surefoot.optim import make_optimizer
from surefoot.ppo import ppo_update, ppo_update_seeds
from surefoot.ppo_by_hand import SeedUpdate
from surefoot.progress import SilentProgress
from surefoot.runs import RunFolder, read_jsonl
from surefoot.runtime import SingleRuntime
from surefoot.stages import control_seeds, ppo_control
from toys import largest_difference, weights_of


def test_seeds_that_need_autograd_are_refused() -> None:
    actor_critics = [actor_critic_of("discrete", seed=seed) for seed in range(2)]
    cfg, batches = settings(), [rollout_of(each) for each in actor_critics]
    slow = [
        SeedUpdate(each, batch, torch.optim.SGD(each.parameters(), lr=0.1), torch.Generator(), beta=0.0)
        for each, batch in zip(actor_critics, batches, strict=True)
    ]
    with pytest.raises(ConfigError, match="Train them one after the other"):
        ppo_update_seeds(FlatNets(actor_critics), slow, cfg, runtime=SingleRuntime())


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
            seeds = [
                SeedUpdate(each, rollout_of(each), optimizer, torch.Generator().manual_seed(turn), beta=0.0)
                for each, optimizer in zip(actor_critics, optimizers, strict=True)
            ]
            ppo_update_seeds(joint, seeds, cfg, runtime=SingleRuntime())
        for i in range(2):
            if turn != 1:
                one(actor_critics[i], optimizers[i], turn, lambda same: same)
            one(twins[i], others[i], turn, ByAutograd)
    for a, b in zip(actor_critics, twins, strict=True):
        assert largest_difference(weights_of(a), weights_of(b)) < 2e-5


SMALL = {"total_timesteps": 240, "num_envs": 3, "num_steps": 20, "batch_size": 20, "hidden_sizes": (8,), "eval_every": 2}
SMALL |= {"eval_episodes": 3, "env": "CartPole-v1"}
NORMALISED = {"normalize_observations": True, "normalize_rewards": True}


def config(control: dict[str, Any] | None = None, **ppo: Any) -> Config:
    chosen = {"num_ppo_epochs": 2, "save_every": 2, "learning_rate": 0.01, **ppo}
    return Config.model_validate({"seed": 3, "control": {**SMALL, **(control or {})}, "ppo": chosen})


def folders(path: Path, cfg: Config, count: int = 3) -> list[tuple[Config, Path]]:
    return [(cfg.model_copy(update={"seed": seed}), path / f"seed-{seed}") for seed in range(cfg.seed, cfg.seed + count)]


@pytest.mark.parametrize(
    "control, ppo",
    [
        (NORMALISED, {}),
        ({"env": "Pendulum-v1"}, {"target_kl": 0.004, "num_ppo_epochs": 4}),
        ({}, {"objective": "penalty", "beta_controller": "doubling", "critic_warmup_steps": 1}),
    ],
)
def test_each_seed_of_several_is_the_run_that_it_is_alone(control: dict[str, Any], ppo: dict[str, Any], tmp_path: Path) -> None:
    """Metrics, checkpoints, evaluations, statistics and episodes; orders, norms, early stops and beta are each seed's own."""
    cfg = config(control, **ppo)
    control_seeds.run(cfg, 3, tmp_path / "together", "auto", SilentProgress())
    for each, path in folders(tmp_path / "alone", cfg):
        with RunFolder.open(path, verb="control", cfg=each) as folder:
            ppo_control.run(each, folder, SilentProgress())
        assert_equal_up_to_rounding(tmp_path / "together" / path.name, path)
    rows = [read_jsonl(path / "metrics.jsonl") for _, path in folders(tmp_path / "together", cfg)]
    assert len({row[-1]["train/loss"] for row in rows}) == 3
    if "target_kl" in ppo:  # the seeds part ways, so that some go on without the others
        assert any(len({row["optimizer/steps"] for row in at_one_update}) > 1 for at_one_update in zip(*rows, strict=True))
    if "objective" in ppo:
        assert any(row[-1]["kl/beta"] != 1 for row in rows)
