"""The ladder of `surefoot doctor`: each rung runs the real code on a problem whose answer is known, and stands on those below.

arithmetic: functions of `core` against numbers worked out by hand. bandit: `ppo_update` alone. echo: sampling, reward, rollout
and update of a language model made on the spot. demo: the whole chain of stages. The first rung that does not hold is where to
look: what it adds to the rung below is what is broken.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.errors import SurefootError

if TYPE_CHECKING:
    from torch import Tensor

    from surefoot.types import ActorCritic, PPOBatch

Climbed = tuple[bool, str]
"""Whether a rung holds, and what was found there."""


@dataclass(frozen=True, slots=True)
class Rung:
    """`means`: what it says that this rung breaks while those below hold; `advice`: what to do then."""

    name: str
    climb: Callable[[], Climbed]
    means: str
    advice: str


def told(problem: Exception) -> str:
    """An error in words: one of ours speaks for itself, any other is named with the line that raised it."""
    if isinstance(problem, SurefootError):
        return str(problem).rstrip(".")
    last = traceback.extract_tb(problem.__traceback__)[-1]
    return f"{type(problem).__name__}: {str(problem).rstrip('.')} ({Path(last.filename).name}:{last.lineno})"


def arithmetic() -> Climbed:
    """The clip in its four cells with its slopes, advantages, an exact KL and a tethered reward, all worked out by hand."""
    checks = {
        "clipped surrogate": _clip_holds,
        "generalised advantages": _advantages_hold,
        "KL": _kl_holds,
        "tethered rewards": _tether_holds,
    }
    wrong = [name for name, holds in checks.items() if not holds()]
    return not wrong, f"wrong: {', '.join(wrong)}" if wrong else f"{', '.join(checks)} as worked out by hand"


def _clip_holds() -> bool:
    import torch

    from surefoot.core import surrogate

    ratio = torch.tensor([0.5, 1.5, 0.5, 1.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    value = surrogate.clipped_surrogate(ratio, advantages, epsilon=0.2)
    (slope,) = torch.autograd.grad(value.sum(), ratio)
    by_hand = torch.tensor([0.5, 1.2, -0.8, -1.5], dtype=torch.float64)
    return torch.allclose(value, by_hand) and slope.tolist() == [1.0, 0.0, 0.0, -1.0]


def _advantages_hold() -> bool:
    """gamma 1/2, lam 1/2, rewards 1 2, V 4 2, terminal: delta = 1 + 1 - 4, 2 - 2; A = -2 + 0/4, 0."""
    import torch

    from surefoot.core import advantage

    row = lambda *numbers: torch.tensor([numbers])  # noqa: E731
    found = advantage.gae(row(1.0, 2.0), row(4.0, 2.0), row(2.0, 9.0), row(False, True), row(False, True), gamma=0.5, lam=0.5)
    return torch.allclose(found, row(-2.0, 0.0))


def _kl_holds() -> bool:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL(p || q) = 1/2 ln 2 + 1/2 ln 2/3 = 1/2 ln 4/3."""
    import torch

    from surefoot.core import kl

    found = kl.kl_categorical(torch.tensor([0.0, 0.0]), torch.tensor([0.0, math.log(3.0)]))
    return math.isclose(float(found), 0.5 * math.log(4 / 3), rel_tol=1e-5)


def _tether_holds() -> bool:
    """Score 5, KLs 1 and 2 nats, coefficient 1/2, the third slot masked: -1/2 and 5 - 1."""
    import torch

    from surefoot.core import preference

    mask = torch.tensor([[True, True, False]])
    found = preference.tethered_rewards(torch.tensor([5.0]), torch.tensor([[1.0, 2.0, 9.0]]), mask, coef=0.5)
    return torch.allclose(found[mask], torch.tensor([-0.5, 4.0]))


ROWS, UPDATES = 256, 30
START = 0.25  # probability of the better arm
BETTER = 0.95  # what PPO makes of it
COEFFICIENT = 1 / math.log(6)  # of the tether; the odds 1/3 become 1/3 * exp(1 / COEFFICIENT) = 2
TETHERED = 2 / 3


def bandit() -> Climbed:
    """One arm pays 1, the other 0. Free, the policy takes the better one; tethered to its start, it ends where theory says.

    The optimum of E[r] - c KL(pi || pi_0) is pi proportional to pi_0 exp(r / c).
    """
    free, tethered = _pulled(0.0), _pulled(COEFFICIENT)
    found = (
        f"better arm from {START:.2f} to {free:.3f} ({BETTER} or more expected), "
        f"tethered to {tethered:.3f} ({TETHERED:.3f} by theory)"
    )
    return free >= BETTER and abs(tethered - TETHERED) < 0.05, found


def _pulled(coef: float) -> float:
    """The probability of the better arm after PPO with this tether."""
    import torch

    from surefoot.config import PPOConfig
    from surefoot.optim import make_optimizer, set_learning_rates
    from surefoot.ppo import ppo_update
    from surefoot.runtime import SingleRuntime

    cfg = PPOConfig(
        rollout_batch_size=ROWS,
        micro_batch_size=ROWS,
        num_mini_batches=2,
        learning_rate=0.1,
        lr_scheduler="linear",
        whiten_advantages=coef == 0,  # the tether counts in the unit of the reward
    )
    arms, generator = _arms(), torch.Generator().manual_seed(0)
    optimizer, runtime = make_optimizer(arms, cfg), SingleRuntime()
    for update in range(UPDATES):
        set_learning_rates(optimizer, cfg, update, UPDATES)
        batch = _pulls(arms, generator, coef)
        ppo_update(arms, batch, cfg, optimizer=optimizer, runtime=runtime, generator=generator, beta=0.0, kl_coef=0.0)
    with torch.no_grad():
        probabilities: Tensor = arms.evaluate(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.long)).logp.exp()
    return float(probabilities)


def _arms() -> ActorCritic:
    """A policy of two arms, and a critic of the one state: two logits and a value."""
    import torch
    from torch import nn

    from surefoot.core import kl_categorical
    from surefoot.types import Evaluation

    class Arms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.tensor([START, 1 - START]).flip(0).log())
            self.value = nn.Parameter(torch.zeros(()))

        def evaluate(self, states: Tensor, actions: Tensor) -> Evaluation:
            logits = self.logits.expand(*actions.shape, 2)
            logp = torch.log_softmax(logits, dim=-1)
            chosen = logp.gather(-1, actions[..., None]).squeeze(-1)
            values = self.value.expand(actions.shape).clone()  # a rollout keeps V as it was, and a view would move
            return Evaluation(chosen, values, torch.zeros_like(values), -(logp.exp() * logp).sum(-1), logits)

        def kl(self, dist_p: Tensor, dist_q: Tensor) -> Tensor:
            return kl_categorical(dist_p, dist_q)

        def named_policy_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
            yield "logits", self.logits

        def named_critic_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
            yield "value", self.value

    return Arms()


def _pulls(arms: ActorCritic, generator: Any, coef: float) -> PPOBatch:
    """ROWS pulls of one step each: arm 1 pays 1, arm 0 pays nothing, less the tether to the policy as it began."""
    import torch

    from surefoot.core import gae, kl_estimate, tethered_rewards
    from surefoot.types import PPOBatch

    with torch.no_grad():
        better = float(arms.evaluate(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.long)).logp.exp())
        actions = (torch.rand(ROWS, 1, generator=generator) < better).long()
        states, mask = torch.zeros(ROWS, 1), torch.ones(ROWS, 1, dtype=torch.bool)
        seen = arms.evaluate(states, actions)
        begun = torch.where(actions == 1, math.log(START), math.log(1 - START))
        kl = kl_estimate(seen.logp, begun, "k1")
        rewards = tethered_rewards(actions[:, 0].float(), kl, mask, coef=coef)
        advantages = gae(rewards, seen.values, seen.next_values, mask, mask, gamma=1.0, lam=1.0)
    return PPOBatch(states, actions, seen.logp, seen.values, advantages, advantages + seen.values, mask)


WANTED = " yes"
LENGTH = 4  # tokens of an answer
MOST_UPDATES = 60
ECHOED = 0.9  # share of an answer's tokens
AGREED = 1e-4  # nats: how far the sampler's log-probs may be from the trainer's


def echo() -> Climbed:
    """A language model with random weights is paid for one token of its 268, by the code that trains every other model."""
    shares = []
    for share, gap in echoing():
        shares.append(share)
        if gap > AGREED:
            return False, f"the sampler's log-probs are {gap:.2g} nats from the trainer's at update {len(shares)}"
        if share >= ECHOED:
            break
    found = f"{WANTED.strip()!r} from {shares[0]:.1%} to {shares[-1]:.1%} of the tokens in {len(shares)} updates"
    return shares[-1] >= ECHOED, found if shares[-1] >= ECHOED else f"{found} ({ECHOED:.0%} expected)"


def echoing(settings: Mapping[str, Any] | None = None, *, head: float = 1.0) -> Iterator[tuple[float, float]]:
    """Of each update the share of tokens that are the wanted one, and how far the sampler's log-probs are from the trainer's.

    `settings` win over the rung's own. `head` multiplies the output embedding (and with it the input's, which is the same): one
    of random weights is too flat for adapters below it, which do not train it.
    """
    import torch

    from surefoot.api import PPORun
    from surefoot.lm.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer(["say yes or no", "yes yes yes", "no no no"], 300)
    (wanted,) = tokenizer(WANTED, add_special_tokens=False)["input_ids"]
    sizes = {"ppo.rollout_batch_size": 128, "ppo.micro_batch_size": 128, "ppo.num_mini_batches": 2, "ppo.num_ppo_epochs": 2}
    own: dict[str, Any] = {
        **sizes,
        "model.tuning": "full",
        "rollout.response_length": LENGTH,
        "ppo.critic": "shared",
        "ppo.learning_rate": 0.01,
        "ppo.kl_coef": 0.0,
        "ppo.total_episodes": 128 * MOST_UPDATES,
        "model.dtype": "float32",
        **(settings or {}),
    }
    model = tiny_model(tokenizer, width=32, context=32)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(head)
    run = PPORun(
        (model.to(getattr(torch, own["model.dtype"])), tokenizer),
        prompts=["say", "say yes", "say no", "yes or no", "or", "no", "no no", "yes"],
        reward=_share_of_wanted,
        settings=own,
    )
    for step in run:
        completions = step.rollout.completions
        share = float(((completions.ids == wanted) & completions.mask).sum()) / (len(completions.ids) * LENGTH)
        yield share, step.metrics["val/sampler_gap"]


def _share_of_wanted(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [completion.count(WANTED) / LENGTH for completion in completions]


def demo(words: Sequence[str] = ()) -> Climbed:
    """`surefoot demo --preset tiny` in a folder that is removed again, or kept and named where the rung does not hold.

    `words` are settings that win over the preset's.
    """
    from surefoot.config_file import load_config
    from surefoot.progress import SilentProgress
    from surefoot.runs import RunFolder
    from surefoot.stages import demo as stage

    path = Path(tempfile.mkdtemp(prefix="surefoot-doctor-"))
    cfg = load_config(None, words, verb="demo", preset="tiny")
    try:
        with RunFolder.open(path, verb="demo", cfg=cfg) as folder:
            stage.run(cfg, folder, SilentProgress())
        verdict = json.loads((path / "verdict.json").read_text(encoding="utf-8"))
    except Exception as problem:
        return False, f"{told(problem)}; its run folder is {path}"
    before, after, accuracy = verdict["sft_loss_before"], verdict["sft_loss_after"], verdict["reward_model_accuracy"]
    wins = verdict["judge_win_rate"]
    found = f"SFT loss {before:.2f} -> {after:.2f}, reward model right on {accuracy:.0%} of pairs, PPO wins {wins:.0%}"
    expected = {"half the SFT loss": after < before / 2, "80 % of pairs": accuracy > 0.8, "60 % of wins": wins > 0.6}
    if short := [what for what, is_met in expected.items() if not is_met]:
        return False, f"{found}; expected were {', '.join(short)}; its run folder is {path}"
    shutil.rmtree(path)
    return True, found


RUNGS = (
    Rung(
        "arithmetic",
        arithmetic,
        "The installed torch computes wrongly, or the sources of surefoot/core were changed: no figure can be trusted.",
        "Reinstall both",
    ),
    Rung(
        "bandit",
        bandit,
        "The formulas are right and the update is not: epochs, minibatches, gradients or the optimiser.",
        "Reinstall torch; if ppo*.py or optim.py were changed, look there",
    ),
    Rung(
        "echo",
        echo,
        "The update is right, and what leads from a language model to it is not: sampling, log-probs, masks or the reward.",
        "Install the versions of constraints.txt, transformers first; if lm/, rollout/ or stages/ were changed, look there",
    ),
    Rung(
        "demo",
        demo,
        "PPO is right, and the chain around it is not: data, SFT, reward model, run folders or evaluation.",
        "Look at that folder's events.jsonl, or run `surefoot demo --preset tiny` and read where it stops",
    ),
)
