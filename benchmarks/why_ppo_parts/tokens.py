r"""A language of 8 words in which J is a finite sum: 4 prompts, answers of 4 tokens, one score for the whole answer.

R(x, y) = sum_t S_t[y_{t-1}, y_t] with y_0 = x and a random table S_t for each position, shifted and scaled prompt by prompt so
that the uniform policy has J = 0 and the best answer R = 1. Like a reward model's score it is paid on the last token only. The
policy is a small network that reads the whole prefix; prefixes share its weights, and a change made for one of them moves the
others.

J(theta) = mean over x of sum over y of pi(y|x) R(x, y): all 4 x 8^4 = 16,384 answers are summed in float64. There is no noise
in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surefoot.core import gae, kl_categorical
from surefoot.types import Evaluation, PPOBatch

from .measure import Outcome, ratio_figures

PROMPTS, WORDS, LENGTH = 4, 8, 4
REWARD_SEED = 8


class TinyWriter(nn.Module):
    """One network that writes, one that judges. `states` are ids [B, T]: the prompt and the words before each action.

    Each id has a vector for each position; a prefix is the sum of its vectors, with two tanh layers behind it. Prompts have ids
    of their own, behind the words. `dist` are logits [B, T, WORDS].
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words, self.critic_words = (nn.Embedding(LENGTH * (WORDS + PROMPTS), width) for _ in range(2))
            self.body, self.critic_body = tanh_layers(width, WORDS), tanh_layers(width, 1)

    def forward(self, ids: Int[Tensor, "B T"]) -> tuple[Tensor, Tensor]:
        return self.logits(ids), self.critic_body(self.critic_words(at_positions(ids)).cumsum(1))

    def logits(self, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        return self.body(self.words(at_positions(ids)).cumsum(1))

    def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
        logits, values = self(states)
        logp_all, values = torch.log_softmax(logits, dim=-1), values.squeeze(-1)
        return Evaluation(
            logp=logp_all.gather(-1, actions[..., None]).squeeze(-1),
            values=values,
            next_values=torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1).detach(),
            entropy=-(logp_all.exp() * logp_all).sum(-1),
            dist=logits,
        )

    def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
        return kl_categorical(dist_p, dist_q)

    def named_policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if not name.startswith("critic_"))

    def named_critic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.named_parameters() if name.startswith("critic_"))


def tanh_layers(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs))


def at_positions(ids: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
    """The number of each (position, id)."""
    return ids + (WORDS + PROMPTS) * torch.arange(ids.shape[1])


def all_states() -> Int[Tensor, "N T"]:
    """Every row of inputs: a prompt and LENGTH - 1 words, in the order of their digits."""
    words = torch.arange(WORDS)
    return torch.cartesian_prod(torch.arange(WORDS, WORDS + PROMPTS), *[words] * (LENGTH - 1))


def row_of(states: Int[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Where each row stands in `all_states`."""
    digits = torch.cat((states[:, :1] - WORDS, states[:, 1:]), dim=1)
    return (digits * WORDS ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def all_scores() -> Float[Tensor, "N V"]:
    """R of every row of `all_states` followed by every last word, in float64."""
    generator = torch.Generator().manual_seed(REWARD_SEED)
    tables = torch.randn(LENGTH, WORDS + PROMPTS, WORDS, generator=generator, dtype=torch.float64)
    states = all_states()
    earlier = sum(tables[t][states[:, t], states[:, t + 1]] for t in range(LENGTH - 1))
    raw = (earlier[:, None] + tables[-1][states[:, -1]]).view(PROMPTS, -1)
    mean, best = raw.mean(1, keepdim=True), raw.amax(1, keepdim=True)
    return ((raw - mean) / (best - mean)).view(-1, WORDS)


def exact_return(logits: Float[Tensor, "N T V"], states: Int[Tensor, "N T"], scores: Float[Tensor, "N V"]) -> float:
    """J from the logits of `all_states`: sum of pi(y|x) R(x, y), a prompt having probability 1 / PROMPTS."""
    logp = torch.log_softmax(logits.double(), -1)
    earlier = logp[:, :-1].gather(-1, states[:, 1:, None]).squeeze(-1).sum(1)
    return float(((earlier[:, None] + logp[:, -1]).exp() * scores).sum()) / PROMPTS


class TokenTask:
    """Answers as rows for PPO, and the exact J. `fresh` answers of pi_old are drawn for the ratio at every update."""

    def __init__(self, seed: int, *, rows: int, fresh: int, width: int = 32) -> None:
        self.actor_critic = TinyWriter(width, seed)
        self.rows, self.fresh = rows, fresh
        self.generator = torch.Generator().manual_seed(seed)
        self.fresh_generator = torch.Generator().manual_seed(10_000 + seed)
        self.states, self.scores = all_states(), all_scores()
        self.known = self.everywhere()

    @torch.no_grad()
    def write(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """`count` answers to random prompts, word by word: states and actions [count, LENGTH]."""
        ids = torch.randint(WORDS, WORDS + PROMPTS, (count, 1), generator=generator)
        for _ in range(LENGTH):
            next_word = torch.multinomial(self.actor_critic.logits(ids)[:, -1].softmax(-1), 1, generator=generator)
            ids = torch.cat((ids, next_word), dim=1)
        return ids[:, :-1], ids[:, 1:]

    @torch.no_grad()
    def rollout(self) -> PPOBatch:
        states, actions = self.write(self.rows, self.generator)
        seen = self.actor_critic.evaluate(states, actions)
        last = (torch.arange(LENGTH) == LENGTH - 1).expand_as(actions)
        scores = self.scores[row_of(states), actions[:, -1]].float()
        rewards = torch.where(last, scores[:, None], 0.0)
        advantages = gae(rewards, seen.values, seen.next_values, last, last, gamma=1.0, lam=0.95)
        mask, returns = torch.ones_like(last), advantages + seen.values
        return PPOBatch(states, actions, seen.logp, seen.values, advantages, returns, mask, dist_old=seen.dist)

    @torch.no_grad()
    def everywhere(self) -> tuple[Float[Tensor, "N T V"], float]:
        """The logits of `all_states`, and J."""
        logits = self.actor_critic.logits(self.states)
        return logits, exact_return(logits, self.states, self.scores)

    def before(self) -> TokenBefore:
        states, actions = self.write(self.fresh, self.fresh_generator)
        return TokenBefore(self, *self.known, row_of(states), actions)


@dataclass(frozen=True, slots=True)
class TokenBefore:
    """pi_old everywhere, its J, and its fresh answers: their rows in `all_states` and their words."""

    task: TokenTask
    logits: Float[Tensor, "N T V"]
    value: float
    drawn: Int[Tensor, " F"]
    actions: Int[Tensor, "F T"]

    def after(self) -> Outcome:
        logits, value = self.task.known = self.task.everywhere()
        old, new = self.logits[self.drawn].flatten(0, 1), logits[self.drawn].flatten(0, 1)
        figures = ratio_figures(old, new, self.actions.flatten())
        return Outcome(self.value, value, value - self.value, 0.0, **figures)
