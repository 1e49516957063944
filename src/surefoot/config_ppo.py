"""The section `ppo`: objective, tether, critic, reward, sizes, and what stops a run. Names are those of TRL and OpenAI's PPO."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeFloat as ZeroOrMore
from pydantic import NonNegativeInt as ZeroOrMoreInt

from surefoot.config_base import OptimizerConfig, Rule, Scheduler, UnitInterval


class PPOConfig(OptimizerConfig):
    # objective
    objective: Literal["clip", "penalty", "policy_gradient"] = "clip"
    cliprange: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="epsilon of 8.3.3")
    cliprange_high: PositiveFloat | None = Field(None, description="upper epsilon; default: cliprange")
    beta: ZeroOrMore = Field(1.0, description="beta of 8.3.4: weight of KL(pi_old || pi_theta), 1/nat")
    beta_controller: Rule = "fixed"
    beta_estimator: Literal["exact", "k1", "k3"] = "exact"
    beta_target: PositiveFloat = Field(0.01, description="d_target of 8.3.4, nats a step")
    beta_rate: PositiveFloat = Field(10.0, description="alpha of 8.3.4, 1/nat (exponential)")
    beta_horizon: PositiveInt = Field(10_000, description="steps (proportional)")
    target_kl: PositiveFloat | None = Field(None, description="stop the update above 1.5 times this KL(old || new), nats a step")
    old_logprobs: Literal["recomputed", "sampled"] = Field(
        "recomputed",
        description="log pi_old, entropy and V of a rollout: by a forward pass of the trainer, or from the sampler's own states, "
        "which saves the pass; the first ratio is then 1 up to the sampler's rounding",
    )
    tis_cap: PositiveFloat | None = Field(
        None, description="weigh a token's advantage by min(pi_old / pi_sampler, this); default: the sampler counts as pi_old"
    )
    loss_aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    # the tether to the reference
    kl_coef: ZeroOrMore = Field(0.05, description="eta of 8.3.5: weight of the KL between policy and SFT model, 1/nat")
    kl_controller: Rule = "fixed"
    kl_target: PositiveFloat = Field(6.0, description="nats a sequence")
    kl_horizon: PositiveInt = Field(10_000, description="episodes (proportional)")
    kl_rate: PositiveFloat = Field(0.01, description="1/nat (exponential)")
    kl_estimator: Literal["exact", "k1", "k2", "k3"] = "k1"
    kl_in: Literal["reward", "loss"] = "reward"
    kl_direction: Literal["policy_sft", "sft_policy"] = "policy_sft"
    kl_max: PositiveFloat | None = Field(None, description="stop with exit 3 when the mean KL a sequence passes this, nats")
    # critic
    critic: Literal["detached", "shared", "adapter", "model"] = Field(
        "detached", description="a head on the policy's states without or with gradient into them, its own adapter, its own model"
    )
    critic_layer: PositiveInt | None = Field(
        None, description="layer the value head reads (1 = after the first block); default: the last"
    )
    critic_learning_rate: PositiveFloat | None = Field(None, description="default: learning_rate")
    critic_warmup_steps: ZeroOrMoreInt = Field(0, description="updates in which only the critic learns")
    vf_coef: ZeroOrMore = Field(1.0, description="weight of the value loss, which carries the factor 1/2")
    cliprange_value: PositiveFloat | None = Field(None, description="clip of V around the rollout's values, in the reward's unit")
    gamma: UnitInterval = 1.0
    lam: UnitInterval = 0.95
    bootstrap_cut: bool = Field(
        False, description="an answer cut by length bootstraps from V of the cut state; default: it is terminal"
    )
    ent_coef: ZeroOrMore = 0.0
    # reward
    missing_eos_penalty: ZeroOrMore = Field(0.0, description="subtracted from answers cut by length")
    length_penalty: float = Field(0.0, description="subtracted a token of the answer")
    reward_scale: Literal["none", "running"] = Field(
        "none", description="running: divide by the running deviation, the mean kept"
    )
    reward_clip: PositiveFloat | None = None
    whiten_rewards: bool = Field(False, description="scale the tethered rewards of a batch to variance 1, the mean kept")
    whiten_advantages: bool = True
    # sizes
    total_episodes: PositiveInt = 1_000
    rollout_batch_size: PositiveInt = Field(64, description="rows of a rollout: prompts times samples")
    num_samples_per_prompt: PositiveInt = 1
    num_ppo_epochs: PositiveInt = 4
    num_mini_batches: PositiveInt = 1
    micro_batch_size: PositiveInt = Field(16, description="rows a forward; changes nothing but memory and speed")
    micro_batch_tokens: PositiveInt | None = Field(
        None, description="tokens a forward, padding counted, instead of micro_batch_size rows: for answers of many lengths"
    )
    start: str | None = Field(
        None, description="run folder of an earlier PPO on this model: policy and critic go on from there, the tether stays"
    )
    max_skipped_steps: PositiveInt = Field(5, description="non-finite steps in a row before the run counts as diverged")
    max_rollbacks: ZeroOrMoreInt = Field(
        1, description="times a diverged run goes back to its last checkpoint, with other seeds, before it stops with exit 3"
    )
    ratio_max: PositiveFloat | None = Field(1e6, description="stop with exit 3 when a ratio of an update passes this")
    grad_norm_max: PositiveFloat | None = Field(
        1e6, description="stop with exit 3 when an update's mean gradient norm, before clipping, passes this"
    )
    alarms: Literal["off", "warn", "stop", "tether", "label"] = Field(
        "warn",
        description="drift alarms (docs/trust.md): events and report; or besides stop with exit 3, raise kl_coef, or queue the "
        "most suspicious answers for people to label",
    )
    # each limit lies beyond the largest figure of 30 clean runs of the tiny preset (alarm_feature: of 29), held for two updates
    # (docs/trust.md)
    alarm_length: PositiveFloat = Field(0.5, description="answers longer or shorter than at the start by this share")
    alarm_variety: Annotated[float, Field(gt=0, lt=1)] = Field(0.6, description="distinct-2 below this share of the start's")
    alarm_feature: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share of the reward's variance that a token or its place explains, beyond the judges"
    )
    alarm_feature_unjudged: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.25, description="the same of a token where there are no judges: a word may deserve its reward"
    )
    alarm_shape: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.055, description="the same of length or repetition, with judges or without: two features, where tokens are hundreds"
    )
    alarm_entropy: Annotated[float, Field(gt=0, lt=1)] = Field(0.3, description="entropy below this share of the start's")
    alarm_kl: PositiveFloat = Field(25.0, description="KL to the SFT model, nats a sequence")
    alarm_fluency: PositiveFloat = Field(1.0, description="fall of an answer's log-prob under the SFT model, nats a token")
    alarm_distance: PositiveFloat = Field(
        4.0, description="distance of answers from those the reward model was trained on, as a multiple of the start's"
    )
    alarm_prompts: PositiveFloat = Field(5.0, description="shift of the prompts' means since the start, in standard errors")
    alarm_tether_factor: Annotated[float, Field(gt=1)] = Field(1.5, description="alarms = tether: what kl_coef is multiplied by")
    alarm_tether_max: PositiveFloat = Field(1.0, description="alarms = tether: kl_coef is not raised beyond this, 1/nat")
    alarm_labels: PositiveInt = Field(8, description="alarms = label: answers queued when an alarm begins to ring")
    alarm_store: str | None = Field(
        None, description="alarms = label: preference store; default: preferences.db in the run folder"
    )
    save_every: PositiveInt = Field(1, description="updates between checkpoints")
    learning_rate: PositiveFloat = 1e-4
    lr_scheduler: Scheduler = "constant"

    @property
    def num_updates(self) -> int:
        """Rollouts in the run: total_episodes over rollout_batch_size, rounded up."""
        return -(-self.total_episodes // self.rollout_batch_size)

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        rows = self.rollout_batch_size
        allowed = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        if rows % self.num_mini_batches:
            raise ValueError(
                f"num_mini_batches = {self.num_mini_batches} does not divide the {rows} rows of a rollout. Use one of {allowed}."
            )
        if rows % self.num_samples_per_prompt:
            raise ValueError(
                f"num_samples_per_prompt = {self.num_samples_per_prompt} does not divide the {rows} rows of a rollout. "
                f"Use one of {allowed}."
            )
        return self

    @model_validator(mode="after")
    def _check_objective(self) -> Self:
        if self.alarms == "off":
            limits = tuple(name for name in type(self).model_fields if name.startswith("alarm_"))
            self.refuse_without_effect(limits, 'alarms = "off"')
        if self.alarms != "tether":
            self.refuse_without_effect(("alarm_tether_factor", "alarm_tether_max"), f'alarms = "{self.alarms}" raises no tether')
        elif not 0 < self.kl_coef < self.alarm_tether_max:
            raise ValueError(
                f'kl_coef = {self.kl_coef:g} with alarms = "tether": an alarm multiplies it, up to alarm_tether_max = '
                f"{self.alarm_tether_max:g}. Use one between 0 and that."
            )
        if self.alarms != "label":
            self.refuse_without_effect(("alarm_labels", "alarm_store"), f'alarms = "{self.alarms}" queues no answers')
        if self.objective == "policy_gradient":
            self.refuse_without_effect(("ratio_max",), 'objective = "policy_gradient" has no ratio')
        if self.objective != "clip":
            self.refuse_without_effect(("cliprange", "cliprange_high"), f'objective = "{self.objective}" does not clip the ratio')
        if self.objective != "penalty":
            names = ("beta", "beta_controller", "beta_estimator", "beta_target", "beta_rate", "beta_horizon")
            self.refuse_without_effect(names, f'objective = "{self.objective}" has no beta')
        for name, controller in (
            ("kl_coef", "kl_controller"),
            *([("beta", "beta_controller")] if self.objective == "penalty" else []),
        ):
            if getattr(self, name) == 0 and (rule := getattr(self, controller)) != "fixed":
                raise ValueError(
                    f'{name} = 0 with {controller} = "{rule}": the rule multiplies it, and 0 stays 0. '
                    f'Use one above 0, or {controller} = "fixed".'
                )
        _refuse_rule_settings(self, "beta", self.beta_controller)
        _refuse_rule_settings(self, "kl", self.kl_controller)
        if self.kl_controller == "proportional" and self.rollout_batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"kl_horizon = {self.kl_horizon} is too short for rollouts of {self.rollout_batch_size} answers: one step of the "
                f"rule could make kl_coef 0. Use {self.rollout_batch_size // 5 + 1} or more."
            )
        return self

    @model_validator(mode="after")
    def _check_sampled(self) -> Self:
        if self.old_logprobs == "sampled" and self.bootstrap_cut:
            raise ValueError(
                'bootstrap_cut = true with old_logprobs = "sampled": the sampler makes no state after an answer\'s last token, '
                'from which V would be read. Use old_logprobs = "recomputed".'
            )
        return self

    @model_validator(mode="after")
    def _check_tether(self) -> Self:
        allowed = (
            "Allowed: kl_in reward with policy_sft and exact, k1, k2 or k3; kl_in loss with policy_sft and exact or k2; "
            "kl_in loss with sft_policy and exact."
        )
        if self.kl_direction == "sft_policy" and (self.kl_in, self.kl_estimator) != ("loss", "exact"):
            raise ValueError(
                f"kl_direction = 'sft_policy' with kl_in = {self.kl_in!r} and kl_estimator = {self.kl_estimator!r}: "
                "KL(SFT || policy) is an expectation under the SFT model, which the policy's samples cannot estimate, "
                f"and it is no cost of an action. {allowed}"
            )
        if self.kl_in == "loss" and self.kl_direction == "policy_sft" and self.kl_estimator in ("k1", "k3"):
            why = {
                "k1": "over the policy's own samples its expected gradient is zero",
                "k3": "over the policy's own samples its gradient is that of KL(SFT || policy)",
            }
            raise ValueError(f"kl_in = 'loss' with kl_estimator = {self.kl_estimator!r}: {why[self.kl_estimator]}. {allowed}")
        return self


def _refuse_rule_settings(cfg: PPOConfig, prefix: str, rule: str) -> None:
    """Refuses the targets, rates and horizons that the chosen coefficient rule does not read."""
    used = {"fixed": (), "exponential": ("target", "rate"), "doubling": ("target",), "proportional": ("target", "horizon")}[rule]
    unused = tuple(f"{prefix}_{name}" for name in ("target", "rate", "horizon") if name not in used)
    cfg.refuse_without_effect(unused, f'{prefix}_controller = "{rule}" does not read it')
