"""What each of two processes does in test_fsdp.py; torchrun starts it with a folder to write to. Also what one process does."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.llama import LlamaConfig, LlamaModel

from surefoot.config import PPOConfig
from surefoot.core import kl_categorical
from surefoot.errors import Interrupted
from surefoot.optim import make_optimizer
from surefoot.ppo import ppo_update
from surefoot.runtime import SingleRuntime
from surefoot.types import Evaluation, PPOBatch, Runtime
from toys import TokenActorCritic, rollout

LENGTHS = torch.tensor([6, 1, 1, 0, 2, 6, 6, 1, 5, 1, 0, 1, 3, 6, 1, 2])  # valid steps of each row: uneven in any split
Wrap = Callable[[nn.Module, list[nn.Module]], nn.Module]


class LlamaActorCritic(nn.Module):
    """A Llama of two layers: `states` are the ids [B, T + 1], of which the last T are the actions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2}
        self.model = LlamaModel(LlamaConfig(vocab_size=11, num_key_value_heads=1, pad_token_id=None, **sizes))
        self.lm_head = nn.Linear(16, 11, bias=False)
        self.value_head = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.model(input_ids=ids[:, :-1]).last_hidden_state
        return self.lm_head(hidden), self.value_head(hidden.detach())

    def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
        logits, values = self(states)
        values = values.squeeze(-1)
        logp_all = torch.log_softmax(logits, dim=-1)
        logp = logp_all.gather(-1, actions[..., None]).squeeze(-1)
        return Evaluation(logp, values, torch.zeros_like(values), -(logp_all.exp() * logp_all).sum(-1), logits)

    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
        return kl_categorical(dist_p, dist_q)

    def named_policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if not name.startswith("value_head"))

    def named_critic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if name.startswith("value_head"))


@torch.no_grad()
def llama_rollout(policy: LlamaActorCritic) -> PPOBatch:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(11, (16, 7), generator=generator)
    seen = policy.evaluate(ids, ids[:, 1:])
    noise = torch.randn(2, 16, 6, generator=generator)
    mask = torch.arange(6) < LENGTHS[:, None]
    return PPOBatch(ids, ids[:, 1:], seen.logp, seen.values, noise[0], noise[1], mask, dist_old=seen.dist)


def tabular() -> tuple[TokenActorCritic, PPOBatch]:
    policy = TokenActorCritic(5, 4, shared=True)
    return policy, rollout(policy, rows=16, steps=6, num_states=5, generator=torch.Generator().manual_seed(1), lengths=LENGTHS)


def settings(**given: object) -> PPOConfig:
    sizes = {"rollout_batch_size": 16, "num_ppo_epochs": 3, "num_mini_batches": 2, "micro_batch_size": 3}
    return PPOConfig.model_validate({**sizes, "learning_rate": 1e-2, "max_grad_norm": 0.5, **given})


def updated(model: nn.Module, batch: PPOBatch, cfg: PPOConfig, runtime: Runtime, wrap: Wrap) -> tuple[dict[str, Tensor], dict]:
    """Weights and statistics after one update of `model`."""
    blocks = list(model.model.layers) if isinstance(model, LlamaActorCritic) else []
    module = wrap(model, blocks)
    generator = torch.Generator().manual_seed(7)
    optimizer = make_optimizer(module, cfg)
    stats = ppo_update(module, batch, cfg, optimizer=optimizer, runtime=runtime, generator=generator, beta=0.5, kl_coef=0.0)
    weights = {name: tensor.clone() for name, tensor in runtime.full_weights(module)}
    return weights, {name: getattr(stats, name) for name in stats.__slots__}


def every_update(runtime: Runtime, wrap: Wrap) -> Iterator[tuple[str, dict[str, Tensor], dict]]:
    policy, batch = tabular()
    yield "clip", *updated(policy, batch, settings(), runtime, wrap)
    policy, batch = tabular()
    yield "sequence_mean", *updated(policy, batch, settings(loss_aggregation="sequence_mean"), runtime, wrap)
    llama = LlamaActorCritic()
    batch = llama_rollout(llama)
    yield "llama", *updated(llama, batch, settings(objective="penalty", beta_controller="doubling"), runtime, wrap)
    llama = LlamaActorCritic()  # ranks whose rows fill unequally many micro-batches run equally many all the same
    yield "tokens", *updated(llama, llama_rollout(llama), settings(micro_batch_tokens=7), runtime, wrap)


def main(folder: Path) -> None:
    from surefoot.runtime.fsdp import FSDPRuntime

    with FSDPRuntime.start() as runtime:
        facts: dict[str, object] = {"shard": list(runtime.shard(6))}
        facts["sum"] = runtime.sum(torch.tensor([1.0, 10.0 * runtime.rank])).tolist()
        facts["max"] = float(runtime.max(torch.tensor(float(runtime.rank))))
        for name, weights, stats in every_update(runtime, runtime.wrap):
            save_file(weights, folder / f"{name}-{runtime.rank}.safetensors")
            facts[name] = stats
        facts.update(_faults(runtime, runtime.wrap))
        (folder / f"facts-{runtime.rank}.json").write_text(json.dumps(facts))


def _faults(runtime: Runtime, wrap: Wrap) -> dict[str, object]:
    """What only rank 1 sees must bind both: a NaN, a request to stop; and a minibatch that cannot be shared is refused."""
    facts: dict[str, object] = {}
    policy, batch = tabular()
    module, cfg = wrap(policy, []), settings(num_mini_batches=1, num_ppo_epochs=1)
    before = {name: tensor.clone() for name, tensor in runtime.full_weights(module)}
    given = {"optimizer": make_optimizer(module, cfg), "runtime": runtime, "generator": torch.Generator().manual_seed(7)}

    class NaNOnRankOne(type(module)):
        def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
            seen = super().evaluate(states, actions)
            bad = torch.nan if runtime.rank == 1 else 0.0
            return Evaluation(seen.logp, seen.values + bad, seen.next_values, seen.entropy, seen.dist)

    healthy = type(module)
    module.__class__ = NaNOnRankOne
    stats = ppo_update(module, batch, cfg, beta=0.0, kl_coef=0.0, **given)
    facts["skipped"], facts["skip_reason"] = stats.skipped, stats.skip_reason
    facts["moved"] = max(float((before[name] - tensor).abs().max()) for name, tensor in runtime.full_weights(module))
    module.__class__ = healthy
    try:
        ppo_update(module, batch, cfg, beta=0.0, kl_coef=0.0, should_stop=lambda: runtime.rank == 1, **given)
    except Interrupted as stop:
        facts["interrupted"] = str(stop)
    try:
        runtime.shard(5)
    except Exception as refusal:
        facts["refused"] = f"{type(refusal).__name__}: {refusal}"
    return facts


def single_process() -> Iterator[tuple[str, dict[str, Tensor], dict]]:
    return every_update(SingleRuntime(), lambda module, blocks: module)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
