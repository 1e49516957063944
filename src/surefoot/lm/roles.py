"""Policy, reference, critic and reward on one backbone.

With adapters one copy of the weights serves all: the policy is a LoRA adapter that starts at zero, so that adapter off IS the
SFT reference; the critic is a head on the policy's states, or has an adapter of its own; a reward head reads the bare backbone.
With full fine-tuning the backbone that was given stays as it is, as the reference and as whatever a reward reads: the policy is
a copy of it, and a critic with `critic = "model"` another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surefoot.config import ModelConfig
from surefoot.lm.adapters import adapter_parameters, add_adapter
from surefoot.lm.backbone import Backbone
from surefoot.lm.logits import TokenDist, exact_kl, token_logps, token_statistics
from surefoot.lm.tokens import Context, joined_rows, last_states, pad_right, states_before
from surefoot.lm.trunk import check_layer, cut_trunk, split_trunk
from surefoot.types import Evaluation

CriticKind = Literal["detached", "shared", "adapter", "model"]


class LanguageActorCritic(nn.Module):
    """The token MDP's actor-critic: a step is a token, a state the text before it. Dropout is off whatever mode it is in.

    `evaluate` gives log-prob and entropy (nats, at `temperature`) of response tokens and the values before and after each. The
    value head reads the states after block `critic_layer` (None: the last), whichever model or adapter they come from.
    """

    def __init__(
        self,
        backbone: Backbone,
        cfg: ModelConfig,
        *,
        critic: CriticKind,
        temperature: float,
        entropy_gradient: bool,
        seed: int,
        critic_layer: int | None = None,
    ) -> None:
        super().__init__()
        tuning = cfg.tuning
        if critic_layer is not None:
            check_layer("ppo.critic_layer", critic_layer, backbone.num_layers)
        self._critic_layer = None if critic_layer == backbone.num_layers else critic_layer
        self.critic, self.temperature = critic, temperature
        self._entropy_gradient = entropy_gradient
        self._reference_backbone = backbone
        self.backbone = backbone.trainable_copy() if tuning == "full" else backbone
        self.model: nn.Module = self.backbone.model
        self.policy_adapter = "policy" if tuning == "lora" else None
        self._critic_backbone = backbone.trainable_copy() if critic == "model" else None
        if self.policy_adapter:
            add_adapter(self.model, "policy", cfg, seed=seed)
        else:
            self.model.requires_grad_(True)
        shared = backbone.num_layers - cfg.lora_layers if tuning == "lora" and cfg.lora_layers is not None else 0
        self._split = split_trunk(self.model.get_decoder(), shared)
        backbone.shared.split = self._split
        if critic == "adapter":
            add_adapter(self.model, "critic", cfg, seed=seed + 1)
        if self._critic_backbone is not None:
            self.critic_model: nn.Module = self._critic_backbone.model.get_decoder().requires_grad_(True)
        self.value_head = nn.Linear(backbone.width, 1).to(backbone.device)
        nn.init.zeros_(self.value_head.weight)  # V = 0 at the first step, near the mean of a centred reward
        nn.init.zeros_(self.value_head.bias)
        self.eval()

    def train(self, mode: bool = True) -> LanguageActorCritic:
        """Keeps dropout off: with it the ratio of the first minibatch would not be 1."""
        return super().train(False)

    def named_policy_parameters(self) -> list[tuple[str, nn.Parameter]]:
        if self.policy_adapter:
            return adapter_parameters(self.model, self.policy_adapter)
        critic = {id(p) for _, p in adapter_parameters(self.model, "critic")}
        return [(name, p) for name, p in self.model.named_parameters() if id(p) not in critic]

    def named_critic_parameters(self) -> list[tuple[str, nn.Parameter]]:
        named = [(f"value_head.{name}", p) for name, p in self.value_head.named_parameters()]
        if self.critic == "adapter":
            named += adapter_parameters(self.model, "critic")
        if self.critic == "model":
            named += [(f"critic.{name}", p) for name, p in self.critic_model.named_parameters()]
        return named

    def evaluate(self, states: Context, actions: Int[Tensor, "B T"]) -> Evaluation:
        """What the policy and the critic say of the responses `actions` to `states`."""
        evaluation: Evaluation = self(states, actions)
        return evaluation

    def forward(self, states: Context, actions: Int[Tensor, "B T"]) -> Evaluation:
        rows, lengths = joined_rows(states, actions, self.backbone.codec.pad_id)
        policy = states_before(self._hidden(rows, self.policy_adapter, states), lengths, states.mask.shape[1])
        return self._evaluation(policy, rows, lengths, states, actions)

    @torch.no_grad()
    def evaluate_sampled(self, seen: Float[Tensor, "B T D"], states: Context, actions: Int[Tensor, "B T"]) -> Evaluation:
        """`evaluate` from `seen`, the sampler's states before each token: no forward pass of the policy.

        A critic of its own (`adapter`, `model`) or of an earlier layer still runs. No sampler computes the state after an
        answer's last token: what a head on the policy's states says of it means nothing.
        """
        rows, lengths = joined_rows(states, actions, self.backbone.codec.pad_id)
        return self._evaluation(torch.cat([seen, seen[:, -1:]], dim=1), rows, lengths, states, actions)

    def _evaluation(self, policy: Tensor, rows: Tensor, lengths: Tensor, states: Context, actions: Tensor) -> Evaluation:
        """From the policy's states before each token and after the last [B, T + 1, D]."""
        values = self._values(rows, lengths, policy, states)
        dist = TokenDist(policy[:, :-1], states.mask, self.backbone.head(self.temperature))
        logp, entropy = self._at_mask(dist, actions)
        return Evaluation(logp=logp, values=values[:, :-1], next_values=values[:, 1:], entropy=entropy, dist=dist)

    @torch.no_grad()
    def reference(self, states: Context, actions: Int[Tensor, "B T"]) -> tuple[Float[Tensor, "B T"], TokenDist]:
        """Log-probs and distributions of the SFT model: the bare backbone, or its frozen copy."""
        rows, lengths = joined_rows(states, actions, self.backbone.codec.pad_id)
        reference = self._reference_backbone
        is_new = states.begun is None
        whole = reference.hidden(rows, None, lengths=states.lengths) if is_new else self._hidden(rows, None, states)
        hidden = states_before(whole, lengths, states.mask.shape[1])
        dist = TokenDist(hidden[:, :-1], states.mask, reference.head(self.temperature))
        logp = token_logps(dist.states[dist.mask], actions[dist.mask], dist.head)
        return logp.new_zeros(dist.mask.shape).masked_scatter(dist.mask, logp), dist

    @torch.no_grad()
    def begin(self, states: Context, actions: Int[Tensor, "B T"]) -> Context:
        """`states` with `begun`: what the blocks below every adapter make of prompts and responses.

        Nothing that is trained changes them, so policy, reference, critic and every epoch of an update can go on from there.
        What a reward head has begun of the same rows is taken from it. Where no block is common to all (full fine-tuning,
        adapters on every block), `states` as they are.
        """
        if self._split is None:
            return states
        rows, prompts = joined_rows(states, actions, self.backbone.codec.pad_id)
        lengths = (prompts + states.mask.sum(1)).tolist()
        tokens = [row[:length] for row, length in zip(rows.tolist(), lengths, strict=True)]
        if (found := self.backbone.shared.taken(tokens, self.backbone.codec.eos_ids[:1])) is not None:
            padded = [torch.nn.functional.pad(one, (0, 0, 0, rows.shape[1] - len(one))) for one in found]
            return replace(states, begun=torch.stack(padded))
        with self.backbone.using(None):
            return replace(states, begun=self._split.begin(rows, self.backbone.unpadded(states.lengths)))

    def kl(self, dist_p: TokenDist, dist_q: TokenDist) -> Float[Tensor, "B T"]:
        """Exact KL(p || q) over the vocabulary, nats; 0 outside the mask."""
        return exact_kl(dist_p, dist_q)

    def _hidden(self, rows: Tensor, adapter: str | None, states: Context) -> Float[Tensor, "B L D"]:
        """States of `rows` under `adapter`: from the tokens on, or from the shared blocks' states on."""
        if states.begun is None or self._split is None:
            return self.backbone.hidden(rows, adapter, lengths=states.lengths)
        with self.backbone.using(adapter):
            return self._split.finish(states.begun[:, : rows.shape[1]], lengths=self.backbone.unpadded(states.lengths))

    def _values(self, rows: Tensor, lengths: Tensor, policy: Tensor, states: Context) -> Float[Tensor, "B T_plus_1"]:
        match self.critic:
            case "detached":
                with torch.no_grad():
                    seen = self._critic_states(rows, lengths, policy, states).detach()
            case "shared":
                seen = self._critic_states(rows, lengths, policy, states)
            case "adapter" | "model":
                seen = states_before(self._critic_hidden(rows, states), lengths, states.mask.shape[1])
        return self.value_head(seen.float())[..., 0]

    def _critic_states(self, rows: Tensor, lengths: Tensor, policy: Tensor, states: Context) -> Float[Tensor, "B T_plus_1 D"]:
        """The policy's states that the value head reads: those at hand, or the states of an earlier layer by a pass to there."""
        if self._critic_layer is None:
            return policy
        hidden = self.backbone.hidden(rows, self.policy_adapter, self._critic_layer, lengths=states.lengths)
        return states_before(hidden, lengths, states.mask.shape[1])

    def _critic_hidden(self, rows: Tensor, states: Context) -> Float[Tensor, "B L D"]:
        """States of a critic with an adapter or a model of its own."""
        if self._critic_backbone is not None:
            return self._critic_backbone.hidden(rows, None, self._critic_layer, lengths=states.lengths)
        if self._critic_layer is None:
            return self._hidden(rows, "critic", states)
        return self.backbone.hidden(rows, "critic", self._critic_layer, lengths=states.lengths)

    def _at_mask(self, dist: TokenDist, actions: Tensor) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
        logp, entropy = token_statistics(
            dist.states[dist.mask], actions[dist.mask], dist.head, entropy_gradient=self._entropy_gradient
        )
        zeros = torch.zeros(dist.mask.shape, dtype=torch.float32, device=logp.device)
        return zeros.masked_scatter(dist.mask, logp), zeros.masked_scatter(dist.mask, entropy)


class RewardScorer(nn.Module):
    """R(x, y): a linear head on the final-normed state of the last token, after block `layer` of the backbone.

    `adapter` names the adapter that it reads through, None the bare backbone. Scores are raw: normalisation belongs to the
    source.
    """

    def __init__(self, backbone: Backbone, *, layer: int | None, adapter: str | None, seed: int) -> None:
        super().__init__()
        self.backbone, self.layer, self.adapter = (
            backbone,
            layer or backbone.num_layers,
            adapter,
        )  # shared: no submodule of this one
        self.score = nn.Linear(backbone.width, 1, bias=False).to(backbone.device)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            nn.init.normal_(self.score.weight, std=(backbone.width + 1) ** -0.5)
        self.register_buffer("scale", torch.ones(backbone.width, device=backbone.device))
        self.scale: Tensor
        if self.layer != backbone.num_layers:
            cut_trunk(backbone.model.get_decoder(), self.layer)  # refuses a layer that is not there, before training starts

    def trainable(self, method: Literal["head", "adapter", "full"]) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) of what `method` trains: the head; with its adapter; with every weight of the trunk."""
        named: list[tuple[str, nn.Parameter]] = [(f"score.{name}", p) for name, p in self.score.named_parameters()]
        if method == "adapter" and self.adapter is not None:
            named += adapter_parameters(self.backbone.model, self.adapter)
        if method == "full":
            named += list(self.backbone.model.get_decoder().named_parameters())
        return named

    def features(self, rows: list[list[int]]) -> Float[Tensor, "B D"]:
        """States at the last tokens of token rows, float32."""
        ids, mask = pad_right(rows, self.backbone.codec.pad_id)
        ids, mask = ids.to(self.backbone.device), mask.to(self.backbone.device)
        lengths = mask.sum(1)
        return last_states(self._hidden(rows, ids, lengths), lengths).float()

    def _hidden(self, rows: list[list[int]], ids: Int[Tensor, "B L"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B L D"]:
        """States after block `layer`; those of the blocks that policy and reference share are kept for them."""
        shared = self.backbone.shared
        if self.adapter is not None or shared.split is None or not shared.reaches(self.layer):
            return self.backbone.hidden(ids, self.adapter, self.layer, lengths=lengths)
        with self.backbone.using(None):
            unpadded = self.backbone.unpadded(lengths)
            begun = shared.split.begin(ids, unpadded)
            shared.keep(rows, begun)
            return shared.split.finish(begun, self.layer, lengths=unpadded)

    def head(self, features: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """w .

        (features / scale). The scale evens out features of very different size, so that one learning rate suits them all.
        """
        return self.score(features / self.scale)[:, 0]

    @property
    def weight(self) -> Float[Tensor, "1 D"]:
        """The head on raw states, the scale folded in."""
        return self.score.weight.detach() / self.scale

    def forward(self, rows: list[list[int]]) -> Float[Tensor, " B"]:
        return self.head(self.features(rows))


def raw_scores(scorers: Sequence[RewardScorer], rows: list[list[int]]) -> Float[Tensor, "K B"]:
    """Raw scores of several heads on one backbone; those that read the same states share a pass of the trunk."""
    states: dict[tuple[str | None, int], Tensor] = {}
    for scorer in scorers:
        if (scorer.adapter, scorer.layer) not in states:
            states[scorer.adapter, scorer.layer] = scorer.features(rows)
    return torch.stack([scorer.head(states[scorer.adapter, scorer.layer]) for scorer in scorers])
