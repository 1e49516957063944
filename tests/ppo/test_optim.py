"""Learning rates and the optimizer of a policy and its critic."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_tensor

from surefoot.config import PPOConfig
from surefoot.errors import ModelError
from surefoot.optim import adamw, lr_share, make_optimizer, set_learning_rates, trainable_names
from toys import TokenActorCritic


@pytest.mark.parametrize("scheduler", ["constant", "linear", "cosine"])
def test_every_scheduler_warms_up_to_its_peak_and_ends_where_planned(scheduler: str) -> None:
    cfg = PPOConfig(lr_scheduler=scheduler, warmup_steps=4, **({} if scheduler == "constant" else {"lr_min_share": 0.1}))
    shares = [lr_share(cfg, step, 20) for step in range(25)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[12] == pytest.approx({"constant": 1.0, "linear": 0.55, "cosine": 0.55}[scheduler])  # half way
    assert shares[20:] == pytest.approx([1.0 if scheduler == "constant" else 0.1] * 5)
    assert all(share > 0 for share in shares[:20])


def test_a_cosine_falls_slowly_first() -> None:
    assert lr_share(PPOConfig(lr_scheduler="cosine"), 1, 4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert lr_share(PPOConfig(lr_scheduler="linear"), 1, 4) == pytest.approx(0.75)


def test_policy_and_critic_keep_their_own_peaks_under_one_schedule() -> None:
    policy = TokenActorCritic(5, 4)
    cfg = PPOConfig(learning_rate=1e-3, critic_learning_rate=1e-2, lr_scheduler="linear", weight_decay=0.1)
    optimizer = make_optimizer(policy, cfg)
    for step, share in ((0, 1.0), (5, 0.5), (5, 0.5)):  # setting it twice does not compound
        assert set_learning_rates(optimizer, cfg, step, 10) == pytest.approx(1e-3 * share)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([1e-3 * share, 1e-2 * share])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1]


def test_the_critic_follows_the_policy_where_it_has_no_rate_of_its_own() -> None:
    optimizer = make_optimizer(TokenActorCritic(5, 4), PPOConfig(learning_rate=1e-3))
    assert [(group["name"], group["lr"]) for group in optimizer.param_groups] == [("policy", 1e-3), ("critic", 1e-3)]


def test_names_stand_in_the_order_of_the_optimizer_and_frozen_weights_in_neither() -> None:
    policy = TokenActorCritic(5, 4)
    policy.trunk.weight.requires_grad_(False)
    names, by_name = trainable_names(policy), dict(policy.named_parameters())
    held = [p for group in make_optimizer(policy, PPOConfig()).param_groups for p in group["params"]]
    assert names == ["policy_head.weight", "policy_head.bias", "critic_trunk.weight", "value_head.weight", "value_head.bias"]
    assert all(by_name[name] is p for name, p in zip(names, held, strict=True))


def test_a_trainable_weight_in_half_precision_is_refused_by_name() -> None:
    policy = TokenActorCritic(5, 4)
    policy.policy_head.to(torch.bfloat16)
    with pytest.raises(ModelError, match=r"policy_head.weight is torch.bfloat16, and must be float32"):
        make_optimizer(policy, PPOConfig())


def test_a_trainable_weight_that_nobody_names_is_refused() -> None:
    policy = TokenActorCritic(5, 4)
    policy.critic_trunk_extra = torch.nn.Linear(1, 1)
    policy.named_critic_parameters = lambda: iter(policy.value_head.named_parameters())  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="3 trainable weights belong to neither the policy nor the critic"):
        make_optimizer(policy, PPOConfig())


def test_a_weight_that_both_name_is_refused() -> None:
    policy = TokenActorCritic(5, 4)
    policy.named_critic_parameters = policy.named_parameters  # type: ignore[method-assign]
    with pytest.raises(ModelError, match="name the same weight"):
        make_optimizer(policy, PPOConfig())


def test_steps_are_those_of_torchs_own_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = TokenActorCritic(3, 4), TokenActorCritic(3, 4)
    cfg = PPOConfig(learning_rate=0.01, critic_learning_rate=0.02, weight_decay=0.1)
    optimizer = make_optimizer(ours, cfg)
    plain = torch.optim.AdamW([{"params": [p], "lr": 0.01} for p in theirs.parameters()], weight_decay=0.1, fused=False)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    for group, weight in zip(plain.param_groups, ours.parameters(), strict=True):
        group["lr"] = rates[id(weight)]
    for _ in range(5):
        for weight, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
            weight.grad = torch.randn_like(weight)
            twin.grad = weight.grad.clone()
        optimizer.step()
        plain.step()
    assert all(group["fused"] for group in optimizer.param_groups)
    for weight, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-6, atol=1e-7)


def test_sharded_and_whole_weights_take_their_steps_together(tmp_path: Path) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole = torch.nn.Parameter(torch.ones(4))
        sharded = torch.nn.Parameter(distribute_tensor(torch.ones(4), mesh))
        for weights, is_fused in (([whole, sharded], False), ([sharded], True), ([whole], True)):
            optimizer = adamw(weights, lr=0.1, weight_decay=0.0)
            assert bool(optimizer.param_groups[0]["fused"]) == is_fused
            before = whole.detach().clone()
            whole.grad, sharded.grad = torch.ones(4), distribute_tensor(torch.ones(4), mesh)
            optimizer.step()
            assert torch.equal(whole.detach() < before, torch.full((4,), any(weight is whole for weight in weights)))
    finally:
        dist.destroy_process_group()
