"""Small actor-critics with the interface of the large ones, and rollouts of them, for tests of PPO."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from surefoot.core import kl_categorical
from surefoot.types import Evaluation, PPOBatch


class TokenActorCritic(nn.Module):
    """A policy over `num_actions` tokens whose state is a number: an embedding and a head; the critic has a trunk or shares it.

    `states` is a LongTensor [B, T]; `dist` are the logits [B, T, A]. `dropout` breaks it on purpose.
    """

    def __init__(
        self, num_states: int, num_actions: int, *, width: int = 8, shared: bool = False, dropout: float = 0.0, seed: int = 0
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Embedding(num_states, width)
            self.policy_head = nn.Linear(width, num_actions)
            self.critic_trunk = None if shared else nn.Embedding(num_states, width)
            self.value_head = nn.Linear(width, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.dropout(self.trunk(states))
        critic_hidden = hidden if self.critic_trunk is None else self.critic_trunk(states)
        return self.policy_head(hidden), self.value_head(critic_hidden)

    def judge(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, T, A] and values [B, T]."""
        logits, values = self(states)
        return logits, values.squeeze(-1)

    def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
        logits, values = self.judge(states)
        logp_all = torch.log_softmax(logits, dim=-1)
        logp = logp_all.gather(-1, actions[..., None]).squeeze(-1)
        entropy = -(logp_all.exp() * logp_all).sum(-1)
        following = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1).detach()
        return Evaluation(logp=logp, values=values, next_values=following, entropy=entropy, dist=logits)

    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
        return kl_categorical(dist_p, dist_q)

    def named_policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, p in self.named_parameters():
            if not name.startswith(("critic_trunk", "value_head")):
                yield name, p

    def named_critic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, p in self.named_parameters():
            if name.startswith(("critic_trunk", "value_head")):
                yield name, p


@torch.no_grad()
def rollout(
    policy: TokenActorCritic, *, rows: int, steps: int, num_states: int, generator: torch.Generator, lengths: Tensor | None = None
) -> PPOBatch:
    """Random states, sampled actions, and random advantages and returns; `lengths` valid steps a row (default: all)."""
    states = torch.randint(num_states, (rows, steps), generator=generator)
    logits, values = policy.judge(states)
    actions = torch.multinomial(logits.flatten(0, 1).softmax(-1), 1, generator=generator).view(rows, steps)
    seen = policy.evaluate(states, actions)
    lengths = torch.full((rows,), steps) if lengths is None else lengths
    return PPOBatch(
        states=states,
        actions=actions,
        logp_old=seen.logp,
        values_old=values,
        advantages=torch.randn(rows, steps, generator=generator).to(values),
        returns=torch.randn(rows, steps, generator=generator).to(values),
        mask=torch.arange(steps) < lengths[:, None],
        dist_old=logits,
    )


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)
