"""Gradients by hand on flat memory against autograd on `ppo_loss`, and whole updates against torch's AdamW; what is shared."""

from __future__ import annotations

import copy
import math
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from control_toys import ByAutograd, actor_critic_of, rollout_of, settings, with_holes
from surefoot import ppo_by_hand
from surefoot.control import ControlStates, FlatNets, MLPActorCritic
from surefoot.control.nets import CategoricalHead
from surefoot.errors import Interrupted, ModelError, TrainingError
from surefoot.optim import make_optimizer, trainable_names
from surefoot.ppo import ppo_loss, ppo_update
from surefoot.ppo_gradient import Columns, loss_slopes
from surefoot.runs.optimizer_state import flatten_optimizer, restore_optimizer
from surefoot.runtime import SingleRuntime
from surefoot.types import Evaluation, NetsOwner, PPOBatch, UpdateStats
from toys import TokenActorCritic, largest_difference, weights_of

KINDS = ("discrete", "box")
LOSSES: list[dict[str, Any]] = [
    {},
    {"cliprange": 0.1, "cliprange_high": 0.3, "ent_coef": 0.1},
    {"cliprange_value": 0.1, "vf_coef": 0.5, "ent_coef": 0.01},
    {"objective": "penalty", "beta_estimator": "exact", "ent_coef": 0.02},
    {"objective": "penalty", "beta_estimator": "k1"},
    {"objective": "penalty", "beta_estimator": "k3"},
    {"objective": "policy_gradient", "ent_coef": 0.1},
]
UPDATES: list[dict[str, Any]] = [
    *LOSSES,
    {"max_grad_norm": None},
    {"max_grad_norm": 0.05, "weight_decay": 0.1},
    {"critic_learning_rate": 3e-2},
    {"target_kl": 0.0015},
    {"loss_aggregation": "sequence_mean", "whiten_advantages": False},
    {"objective": "penalty", "beta_controller": "doubling"},
]


def update(actor_critic: Any, batch: PPOBatch, cfg: Any, **given: Any) -> UpdateStats:
    arguments = {"optimizer": None, "generator": torch.Generator().manual_seed(3), "beta": 1.3, "kl_coef": 0.0, **given}
    arguments["optimizer"] = arguments["optimizer"] or make_optimizer(actor_critic, cfg, eps=1e-5)
    return ppo_update(actor_critic, batch, cfg, runtime=SingleRuntime(), **arguments)


def by_hand(actor_critic: MLPActorCritic, batch: PPOBatch, cfg: Any, chosen: Tensor) -> dict[str, Tensor]:
    """The gradient of the loss over some rows, by weight."""
    nets = actor_critic.nets()
    assert nets is not None
    nets.open([batch], [make_optimizer(actor_critic, cfg)])
    rows, seeds = chosen.numpy()[None], slice(0, 1)
    columns = Columns(*(getattr(batch, n)[chosen].numpy().T for n in ("logp_old", "values_old", "advantages", "returns")), None)
    slopes, _, _ = loss_slopes(nets.judge(seeds, rows), columns, cfg, beta=1.3, weight=1 / len(chosen))
    nets.backward(seeds, slopes)
    return {name: nets._view(1, 0, name).clone() for name, _ in actor_critic.named_parameters()}


@pytest.mark.parametrize("hidden", [(64, 64), (7,), (12, 5, 9)])
@pytest.mark.parametrize("given", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_autograd(kind: str, given: dict[str, Any], hidden: tuple[int, ...]) -> None:
    actor_critic, cfg = actor_critic_of(kind, hidden), settings(**given)
    batch = rollout_of(actor_critic, moved=0.3)
    chosen = torch.randperm(48, generator=torch.Generator().manual_seed(0))[:32]
    found, rows = by_hand(actor_critic, batch, cfg, chosen), batch[chosen]
    evaluation = actor_critic.evaluate(rows.states, rows.actions)
    loss, parts = ppo_loss(evaluation, rows, cfg, kl=actor_critic.kl, beta=1.3, kl_coef=0, count=len(chosen))
    loss.backward()
    for name, weight in actor_critic.named_parameters():
        assert weight.grad is not None and weight.grad.abs().max() > 1e-4
        torch.testing.assert_close(found[name], weight.grad, atol=5e-6, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    if given.get("objective", "clip") == "clip":
        assert 2 < float(parts.clipped) < 30  # the draw has both kinds of steps


@pytest.mark.parametrize("variant", ["plain", "holes", "critic_only"])
@pytest.mark.parametrize("given", UPDATES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_update_is_that_of_autograd_with_all_its_statistics(kind: str, given: dict[str, Any], variant: str) -> None:
    """In masked rows the hand-written one meets NaN, and autograd, which would spread it, numbers."""
    cfg, start, critic_only = settings(**given), actor_critic_of(kind), variant == "critic_only"
    batch = rollout_of(start)
    if given.get("beta_estimator") == "k3":
        batch = replace(batch, dist_old=None)
    batches = [batch, batch]
    if variant == "holes":
        poisoned = with_holes(batch)
        batches = [replace(batch, mask=poisoned.mask), poisoned]
    ends, figures, states = [], [], []
    for wrap, batch in zip((ByAutograd, lambda same: same), batches, strict=True):
        actor_critic = copy.deepcopy(start)
        optimizer = make_optimizer(actor_critic, cfg, eps=1e-5)
        figures.append(update(wrap(actor_critic), batch, cfg, optimizer=optimizer, critic_only=critic_only))
        ends.append(weights_of(actor_critic))
        states.append(flatten_optimizer(optimizer, trainable_names(actor_critic)))
    assert largest_difference(*ends) < 1e-5 < largest_difference(ends[0], weights_of(start))
    assert states[0].keys() == states[1].keys()
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], atol=1e-5, rtol=1e-4)
    expected, found = figures
    for field in fields(UpdateStats):
        value = getattr(expected, field.name)
        is_number = isinstance(value, float)
        assert getattr(found, field.name) == (pytest.approx(value, rel=1e-4, abs=2e-5) if is_number else value), field.name
    assert found.stopped_early == ("target_kl" in given and not critic_only)
    if critic_only:
        assert all(torch.equal(ends[1][n], w) for n, w in weights_of(start).items() if n.startswith("policy"))


class Counted(MLPActorCritic):
    evaluations = 0

    def evaluate(self, states: ControlStates, actions: Tensor) -> Evaluation:
        self.evaluations += 1
        return super().evaluate(states, actions)


def test_the_update_goes_by_hand_unless_the_gradients_are_hidden() -> None:
    counted, cfg = Counted(5, CategoricalHead, 3, (8,), torch.Generator().manual_seed(0)), settings()
    assert isinstance(counted, NetsOwner) and not isinstance(ByAutograd(counted), NetsOwner)
    assert update(counted, rollout_of(counted), cfg).steps == 12 and counted.evaluations == 0
    assert update(ByAutograd(counted), rollout_of(counted), cfg).steps == 12 == counted.evaluations


class OtherHead(CategoricalHead):
    """Has no hand-written gradient, although its class descends from one that has."""


def test_what_has_no_gradient_by_hand_is_left_to_autograd() -> None:
    cfg, generator = settings(), torch.Generator().manual_seed(0)
    other = MLPActorCritic(5, OtherHead, 3, (8,), generator)
    assert other.nets() is None
    with pytest.raises(ModelError, match="must have the same layers"):
        FlatNets([actor_critic_of("discrete"), actor_critic_of("box")])
    actor_critic = actor_critic_of("discrete")
    nets, batch = actor_critic.nets(), rollout_of(actor_critic)
    assert nets is not None and nets.accepts([make_optimizer(actor_critic, cfg)])
    assert not nets.accepts([torch.optim.SGD(actor_critic.parameters(), lr=0.1)])
    assert not nets.accepts([torch.optim.AdamW(actor_critic.parameters(), amsgrad=True)])
    assert not nets.accepts([torch.optim.AdamW(list(actor_critic.parameters())[1:])])
    tethered = settings(kl_in="loss", kl_estimator="k2")
    choose = partial(ppo_by_hand.nets_of, actor_critic, batch, optimizer=make_optimizer(actor_critic, cfg))
    assert choose(tethered, runtime=SingleRuntime(), kl_coef=0.1) is None
    assert choose(tethered, runtime=SingleRuntime(), kl_coef=0.0) is nets
    penalty = settings(objective="penalty")
    without = partial(ppo_by_hand.nets_of, actor_critic, replace(batch, dist_old=None))
    assert without(penalty, make_optimizer(actor_critic, cfg), SingleRuntime(), kl_coef=0.0) is None
    next(actor_critic.parameters()).requires_grad_(False)
    assert not nets.accepts([make_optimizer(actor_critic, cfg)])
    tokens = TokenActorCritic(5, 4)
    assert not isinstance(tokens, NetsOwner)


def test_the_step_of_an_optimizer_without_a_hand_written_twin_is_its_own() -> None:
    actor_critic, cfg = actor_critic_of("box"), settings(max_grad_norm=None, num_mini_batches=1, num_ppo_epochs=1)
    batch, before = rollout_of(actor_critic), weights_of(actor_critic)
    update(actor_critic, batch, cfg, optimizer=torch.optim.SGD(actor_critic.parameters(), lr=0.5))
    assert largest_difference(before, weights_of(actor_critic)) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_between_two_updates_changes_no_bit(kind: str) -> None:
    """Weights through safetensors and moments through the run folder's form; hand and autograd may take turns."""
    cfg, start = settings(), actor_critic_of(kind)

    def second(actor_critic: MLPActorCritic, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        update(actor_critic, rollout_of(actor_critic, seed=2), cfg, optimizer=optimizer)
        return weights_of(actor_critic)

    first = copy.deepcopy(start)
    optimizer = make_optimizer(first, cfg)
    update(first, rollout_of(first), cfg, optimizer=optimizer)
    weights = load(save(first.state_dict()))
    state = {key: tensor.clone() for key, tensor in flatten_optimizer(optimizer, trainable_names(first)).items()}
    resumed = actor_critic_of(kind, seed=9)
    resumed.nets()
    resumed.load_state_dict(weights)
    other = make_optimizer(resumed, cfg)
    restore_optimizer(other, trainable_names(resumed), state)
    through_autograd = copy.deepcopy(resumed)
    third = make_optimizer(through_autograd, cfg)
    restore_optimizer(third, trainable_names(through_autograd), state)
    expected = second(first, optimizer)
    assert largest_difference(expected, second(resumed, other)) == 0
    update(ByAutograd(through_autograd), rollout_of(through_autograd, seed=2), cfg, optimizer=third)
    assert largest_difference(expected, weights_of(through_autograd)) < 1e-5


def test_a_copy_has_memory_of_its_own() -> None:
    actor_critic, cfg = actor_critic_of("discrete"), settings()
    update(actor_critic, rollout_of(actor_critic), cfg)  # its nets are in use before they are copied
    twin, before = copy.deepcopy(actor_critic), weights_of(actor_critic)
    update(twin, rollout_of(twin), cfg)
    assert largest_difference(before, weights_of(actor_critic)) == 0 < largest_difference(before, weights_of(twin))
    ends = weights_of(twin)
    update(actor_critic, rollout_of(actor_critic), cfg)
    assert largest_difference(ends, weights_of(actor_critic)) == 0


@pytest.mark.parametrize("name", ["advantages", "returns"])
def test_poison_is_skipped_counted_and_explained(name: str) -> None:
    actor_critic, cfg = actor_critic_of("discrete"), settings(whiten_advantages=False, num_ppo_epochs=1)
    batch = rollout_of(actor_critic)
    broken = getattr(batch, name).clone()
    broken[7] = math.nan
    stats = update(actor_critic, replace(batch, **{name: broken}), cfg)
    assert (stats.steps, stats.skipped) == (2, 1) and f"the rollout's {name}" in stats.skip_reason
    assert all(torch.isfinite(weight).all() for weight in weights_of(actor_critic).values())


def test_a_norm_that_is_not_finite_takes_no_step() -> None:
    """1e18 * (1e10)^2 fits into float32, and so the loss is finite; the squares of gradients of 1e28 do not fit."""
    actor_critic, cfg = actor_critic_of("discrete"), settings(num_mini_batches=1, num_ppo_epochs=1, vf_coef=1e18)
    batch, before = rollout_of(actor_critic), weights_of(actor_critic)
    stats = update(actor_critic, replace(batch, returns=batch.returns * 1e10), cfg)
    assert (stats.steps, stats.skipped, stats.skip_reason) == (0, 1, "the gradient norm is inf")
    assert largest_difference(before, weights_of(actor_critic)) == 0


def test_another_policy_than_the_rollouts_and_a_stop_request_are_told() -> None:
    actor_critic, cfg = actor_critic_of("box"), settings()
    batch = rollout_of(actor_critic)
    with pytest.raises(TrainingError, match="Before the first step the policy differs"):
        update(actor_critic, replace(batch, logp_old=batch.logp_old - 2e-4), cfg)
    answers = iter([False, True])
    before = weights_of(actor_critic)
    with pytest.raises(Interrupted):
        update(actor_critic, batch, cfg, should_stop=lambda: next(answers))
    assert largest_difference(before, weights_of(actor_critic)) > 0


def test_memory_outside_the_weights_stays_empty() -> None:
    """What pads the rows of policy and critic to equal length is in no norm and is moved by no step."""
    actor_critic, cfg = actor_critic_of("box", (7,)), settings(weight_decay=0.1)
    nets = actor_critic.nets()
    assert nets is not None
    update(actor_critic, rollout_of(actor_critic), cfg)
    total = sum(float(w.detach().double().square().sum()) for w in actor_critic.parameters())
    assert float(nets.memory[0].double().square().sum()) == pytest.approx(total, rel=1e-9)
    assert np.shares_memory(nets.memory.numpy(), next(actor_critic.parameters()).detach().numpy())
