"""`ppo_loss`: what each term is, its gradient, and how it is aggregated. Oracles: enumeration over four actions, arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from surefoot.config import PPOConfig
from surefoot.core import kl_categorical
from surefoot.errors import ConfigError
from surefoot.ppo import mean_count, ppo_loss
from surefoot.types import Evaluation, PPOBatch
from toys import TokenActorCritic, rollout

F64 = torch.float64
THETA = torch.tensor([0.3, -0.7, 1.1, 0.0], dtype=F64)
OLD = torch.tensor([0.0, 0.4, 0.2, -0.9], dtype=F64)
SFT = torch.tensor([-0.5, 0.1, 0.9, 0.3], dtype=F64)


def judged(logits: Tensor, actions: Tensor, values: Tensor | None = None) -> Evaluation:
    """logits [B, T, A]."""
    logp_all = torch.log_softmax(logits, dim=-1)
    logp = logp_all.gather(-1, actions[..., None]).squeeze(-1)
    entropy = -(logp_all.exp() * logp_all).sum(-1)
    values = torch.zeros_like(logp) if values is None else values
    return Evaluation(logp=logp, values=values, next_values=torch.zeros_like(logp), entropy=entropy, dist=logits)


def one_row_an_action(advantages: list[float] | None = None) -> PPOBatch:
    """Row a holds action a, sampled from OLD."""
    actions = torch.arange(4)[:, None]
    zeros = torch.zeros(4, 1, dtype=F64)
    return PPOBatch(
        states=zeros,
        actions=actions,
        logp_old=torch.log_softmax(OLD, -1)[actions],
        values_old=zeros,
        advantages=zeros if advantages is None else torch.tensor(advantages, dtype=F64)[:, None],
        returns=zeros,
        mask=torch.ones(4, 1, dtype=torch.bool),
        dist_old=OLD.expand(4, 1, 4),
        logp_ref=torch.log_softmax(SFT, -1)[actions],
        dist_ref=SFT.expand(4, 1, 4),
    )


def expected_gradient(cfg: PPOConfig, rows: PPOBatch, *, beta: float = 0.0, kl_coef: float = 0.0) -> Tensor:
    """The gradient at THETA of the loss, each action weighted by its probability under the policy that sampled it."""
    theta = THETA.clone().requires_grad_()
    total = torch.zeros((), dtype=F64)
    for action, probability in enumerate(torch.softmax(OLD, -1)):
        row = rows[torch.tensor([action])]
        evaluation = judged(theta.expand(1, 1, 4), row.actions)
        total = total + probability * ppo_loss(evaluation, row, cfg, kl=kl_categorical, beta=beta, kl_coef=kl_coef, count=1)[0]
    return torch.autograd.grad(total, theta)[0]


def gradient_of_kl(direction: str) -> Tensor:
    theta = THETA.clone().requires_grad_()
    p, q = torch.log_softmax(theta, -1), torch.log_softmax(SFT if "sft" in direction else OLD, -1)
    kl = (p.exp() * (p - q)).sum() if direction.startswith("policy") else (q.exp() * (q - p)).sum()
    return torch.autograd.grad(kl, theta)[0]


@pytest.mark.parametrize("estimator", ["exact", "k2"])
def test_the_tether_in_the_loss_has_the_gradient_of_kl_policy_sft_over_samples_of_the_old_policy(estimator: str) -> None:
    cfg = PPOConfig(kl_in="loss", kl_estimator=estimator, vf_coef=0)
    found = expected_gradient(cfg, one_row_an_action(), kl_coef=2.0)
    torch.testing.assert_close(found, 2 * gradient_of_kl("policy_sft"), atol=1e-12, rtol=0)


def test_the_tether_of_the_chapter_has_the_gradient_of_kl_sft_policy() -> None:
    cfg = PPOConfig(kl_in="loss", kl_estimator="exact", kl_direction="sft_policy", vf_coef=0)
    found = expected_gradient(cfg, one_row_an_action(), kl_coef=2.0)
    torch.testing.assert_close(found, 2 * gradient_of_kl("sft_policy"), atol=1e-12, rtol=0)
    assert (gradient_of_kl("sft_policy") - gradient_of_kl("policy_sft")).abs().max() > 0.01  # the two are told apart


@pytest.mark.parametrize("estimator", ["exact", "k1", "k3"])
def test_every_estimator_of_the_penalty_has_the_gradient_of_kl_old_new(estimator: str) -> None:
    cfg = PPOConfig(objective="penalty", beta_estimator=estimator, vf_coef=0)
    found = expected_gradient(cfg, one_row_an_action(), beta=3.0)
    torch.testing.assert_close(found, 3 * gradient_of_kl("old_policy"), atol=1e-12, rtol=0)


def test_the_three_objectives_agree_where_the_policy_has_not_moved_and_no_kl_is_charged() -> None:
    """8.3.2: the gradients of log pi A and of r A are equal at theta_old, and there the clip is inactive."""
    rows = replace(one_row_an_action([1.0, -2.0, 0.5, 3.0]), logp_old=torch.log_softmax(THETA, -1)[torch.arange(4)[:, None]])
    found = [expected_gradient(PPOConfig(objective=name, vf_coef=0), rows) for name in ("clip", "penalty", "policy_gradient")]
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[0], found[2], atol=1e-12, rtol=0)
    assert found[0].abs().max() > 0.1


def test_the_clip_of_the_configuration_reaches_the_loss_on_both_sides() -> None:
    """Ratios 2 and 0.5, A = 1 and -1: min(2, 1.3) = 1.3 and min(-0.5, -0.9) = -0.9, so the loss is -(1.3 - 0.9) / 2."""
    logp = torch.log(torch.tensor([[2.0, 0.5]]))
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    rows = PPOBatch(zeros, zeros.long(), zeros, zeros, torch.tensor([[1.0, -1.0]]), zeros, mask)
    cfg = PPOConfig(cliprange=0.1, cliprange_high=0.3, vf_coef=0)
    evaluation = Evaluation(logp, zeros, zeros, zeros, zeros)
    loss, parts = ppo_loss(evaluation, rows, cfg, kl=kl_categorical, beta=0, kl_coef=0, count=2)
    assert float(loss) == pytest.approx(-0.2)
    assert (float(parts.clipped), float(parts.outside)) == (2.0, 2.0)
    swapped = replace(rows, advantages=-rows.advantages)  # now neither is clipped: -2 and +0.5
    loss, parts = ppo_loss(evaluation, swapped, cfg, kl=kl_categorical, beta=0, kl_coef=0, count=2)
    assert float(loss) == pytest.approx(0.75)
    assert (float(parts.clipped), float(parts.outside)) == (0.0, 2.0)


@pytest.mark.parametrize(
    "aggregation, expected",
    [
        ("token_mean", (1 + 9 * 3) / 10),  # every step weighs the same
        ("sequence_mean", (1 + 3) / 2),  # every sequence weighs the same
    ],
)
def test_aggregation_of_a_sequence_of_one_and_one_of_nine(aggregation: str, expected: float) -> None:
    mask = torch.arange(9) < torch.tensor([[1], [9], [0]])
    returns = torch.tensor([[2.0], [6.0], [50.0]]).expand(3, 9)  # (V - R)^2 / 2 would be 2 and 18
    values = returns - torch.tensor([[2.0**0.5], [6.0**0.5], [1.0]])  # losses 1 and 3
    zeros = torch.zeros(3, 9)
    rows = PPOBatch(zeros, zeros.long(), zeros, zeros, zeros, returns, mask)
    cfg = PPOConfig(loss_aggregation=aggregation)
    count = mean_count(mask, aggregation)
    loss, parts = ppo_loss(
        Evaluation(zeros, values, zeros, zeros, zeros), rows, cfg, kl=kl_categorical, beta=0, kl_coef=0, count=count
    )
    assert count == (10 if aggregation == "token_mean" else 2)
    assert float(loss) == pytest.approx(expected)
    assert float(parts.loss_value) / count == pytest.approx(expected)


def test_terms_carry_their_weights_and_signs() -> None:
    """-surrogate + 0.5 * value - 0.1 * entropy + 2 * KL, for ratio 1, A = 4, V - R = 2, a uniform policy."""
    actions, mask = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    values = torch.full((1, 1), 2.0, dtype=F64)
    zeros = torch.zeros(1, 1, dtype=F64)
    logits = torch.zeros(1, 1, 4, dtype=F64)
    evaluation = judged(logits, actions, values)
    rows = PPOBatch(zeros, actions, evaluation.logp, zeros, zeros + 4, zeros, mask, dist_ref=SFT.expand(1, 1, 4))
    cfg = PPOConfig(vf_coef=0.5, ent_coef=0.1, kl_in="loss", kl_estimator="exact")
    loss, parts = ppo_loss(evaluation, rows, cfg, kl=kl_categorical, beta=0, kl_coef=2.0, count=1)
    kl = float((torch.softmax(logits, -1) * (torch.log_softmax(logits, -1) - torch.log_softmax(SFT, -1))).sum())
    expected = -4 + 0.5 * (2.0**2 / 2) - 0.1 * torch.log(torch.tensor(4.0)).item() + 2 * kl
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert float(parts.kl_tether) == pytest.approx(kl, rel=1e-6) and float(parts.loss_policy) == pytest.approx(-4)


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_a_tether_in_the_reward_adds_nothing_to_the_loss(kl_in: str) -> None:
    cfg = PPOConfig(kl_in=kl_in, kl_estimator="exact", vf_coef=0)
    found = expected_gradient(cfg, one_row_an_action(), kl_coef=2.0)
    assert (float(found.abs().max()) > 0.01) == (kl_in == "loss")


@pytest.mark.parametrize(
    "settings, missing",
    [
        ({"objective": "penalty"}, "dist_old"),
        ({"kl_in": "loss", "kl_estimator": "exact"}, "dist_ref"),
        ({"kl_in": "loss", "kl_estimator": "k2"}, "logp_ref"),
    ],
)
def test_a_rollout_without_what_the_loss_needs_is_refused_by_name(settings: dict[str, str], missing: str) -> None:
    rows = replace(one_row_an_action(), **{missing: None})
    with pytest.raises(ConfigError, match=f"PPOBatch.{missing}"):
        expected_gradient(PPOConfig(**settings), rows, beta=1.0, kl_coef=1.0)


def test_critic_only_is_the_weighted_value_loss_alone() -> None:
    policy = TokenActorCritic(5, 4)
    rows = rollout(policy, rows=3, steps=2, num_states=5, generator=torch.Generator().manual_seed(0))
    cfg = PPOConfig(vf_coef=0.5, ent_coef=1.0)
    evaluation = policy.evaluate(rows.states, rows.actions)
    loss, _ = ppo_loss(evaluation, rows, cfg, kl=policy.kl, beta=0, kl_coef=0, count=6, critic_only=True)
    expected = 0.5 * ((evaluation.values - rows.returns) ** 2).mean() / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
