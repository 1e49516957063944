"""Every knob, one schema, strict. Names are those of TRL and OpenAI's PPO; the chapter's symbol stands in the help text.

A section is a frozen model; an unknown key, a value out of range and a setting without effect are refused with the reason.
Reading YAML and dotted overrides is `config_file.py`; turning a config into objects is `build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeFloat as ZeroOrMore
from pydantic import NonNegativeInt as ZeroOrMoreInt

Share = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Rule = Literal["fixed", "exponential", "doubling", "proportional"]
Scheduler = Literal["constant", "linear", "cosine"]


class Section(BaseModel):
    """A part of the configuration. Frozen; unknown keys are refused; numbers must be finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    def refuse_without_effect(self, names: tuple[str, ...], reason: str) -> None:
        """Raises ValueError when one of `names` was set although `reason` makes it do nothing."""
        for name in names:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} = {getattr(self, name)!r} has no effect: {reason}")


class ModelConfig(Section):
    name: str = Field(
        "embedded", description="embedded (SmolLM2-135M-Instruct), tiny (made on the spot), a folder, or a hub name"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="dtype of frozen weights; what is trained keeps float32 masters"
    )
    tuning: Literal["lora", "full"] = Field(
        "lora", description="lora: adapters on one shared backbone; full: every weight, separate models"
    )
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveFloat = 32.0
    lora_layers: PositiveInt | None = Field(
        None, description="adapters on the last N blocks only; default: all. Fewer are faster"
    )
    template: Literal["auto", "chat", "plain"] = Field("auto", description="auto: chat for message lists, plain for strings")
    max_length: PositiveInt | None = Field(None, description="context in tokens; default: the model's")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.tuning == "full":
            self.refuse_without_effect(("lora_rank", "lora_alpha", "lora_layers"), 'model.tuning = "full" trains no adapter')
        return self


class DataConfig(Section):
    train: str | None = Field(None, description="a file (JSONL, CSV, Parquet), a folder of them, or a hub name")
    validation: str | None = Field(None, description="default: a share of train, split by prompt")
    validation_share: Share = 0.1
    prompts: str | None = Field(None, description="prompts to answer (pairs, ppo)")
    eval_prompts: str | None = Field(None, description="held-out prompts (evaluate)")
    long_prompts: Literal["drop", "cut_left"] = Field(
        "drop", description="what happens to prompts beyond the context; counted either way"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.validation is not None:
            self.refuse_without_effect(("validation_share",), "data.validation names the validation set")
        return self


class OptimizerConfig(Section):
    learning_rate: PositiveFloat = 3e-4
    lr_scheduler: Scheduler = "linear"
    lr_min_share: UnitInterval = Field(0.0, description="learning rate at the planned end, as a share of learning_rate")
    warmup_steps: ZeroOrMoreInt = 0
    weight_decay: ZeroOrMore = 0.0
    max_grad_norm: PositiveFloat | None = 1.0

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.lr_scheduler == "constant":
            self.refuse_without_effect(("lr_min_share",), 'lr_scheduler = "constant" never moves')
        return self


class SFTConfig(OptimizerConfig):
    num_epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(16, description="sequences a step")
    micro_batch_size: PositiveInt = Field(8, description="sequences a forward; changes nothing but memory and speed")
    completion_only: bool = Field(True, description="no loss on prompt tokens")
    max_steps: PositiveInt | None = None
    save_every: PositiveInt = Field(50, description="steps between checkpoints")


class PairsConfig(Section):
    num_answers: Annotated[int, Field(ge=2)] = Field(2, description="answers a prompt")
    models: tuple[str, ...] = Field((), description="models that answer in turn; default: model.name alone")
    best_of: ZeroOrMoreInt = Field(
        0, description="answers a prompt, of which the reward's best meets one drawn from the others; 0: off"
    )
    max_prompts: PositiveInt | None = None
    max_pairs: PositiveInt | None = Field(None, description="pairs that are queued, chosen by select; default: all")
    select: Literal["random", "uncertainty", "distance", "kl"] = Field(
        "random",
        description="uncertainty: the reward's margin is nearest to 0; distance: furthest from what the reward model was trained "
        "on; kl: prompts on which the model moved most from pairs.against",
    )
    against: str | None = Field(None, description="the model from which select = kl measures, for example runs/sft/final")
    annotator: str | None = Field(None, description="module:function that prefers one of two; default: votes come later")
    store: str | None = Field(None, description="SQLite file; default: preferences.db in the run folder")
    save_every: PositiveInt = 10

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_pairs is None:
            self.refuse_without_effect(("select",), "all pairs are queued. Set max_pairs")
        if self.select == "kl" and self.against is None:
            raise ValueError('select = "kl" needs a model to measure from. Set against, for example runs/sft/final.')
        if self.select != "kl":
            self.refuse_without_effect(("against",), f'select = "{self.select}" compares with no other model')
        if self.best_of:
            if self.best_of == 1:
                raise ValueError("best_of = 1 leaves no other answer. Use 2 or more, or 0 for off.")
            if len(self.models) > 1:
                raise ValueError(
                    f"best_of = {self.best_of} is of one model's answers, and models names {len(self.models)}. Use one."
                )
            self.refuse_without_effect(("num_answers",), f"best_of = {self.best_of} says how many answers a prompt gets")
        return self

    @property
    def needs_reward(self) -> bool:
        """Whether answers are scored: by the reward source, which must then be there."""
        return self.best_of > 0 or self.select in ("uncertainty", "distance")


class RewardConfig(OptimizerConfig):
    learning_rate: PositiveFloat = 1e-3
    method: Literal["head", "adapter", "full"] = Field(
        "head", description="head on frozen states; head and LoRA adapter; every weight"
    )
    layer: PositiveInt | None = Field(None, description="layer the head reads (1 = after the first block); default: the last")
    num_epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(64, description="pairs a step")
    micro_batch_size: PositiveInt = Field(16, description="pairs a forward; changes nothing but memory and speed")
    max_steps: PositiveInt | None = None
    center_coef: ZeroOrMore = Field(0.0, description="pulls the mean of a pair's scores to 0: adds coef * (R_w + R_l)^2 / 4")
    use_margin: bool = True
    normalize: bool = Field(
        True, description="save mean and deviation on training answers; scores leave in units of the deviation"
    )
    store: str | None = Field(None, description="preference store to train on, in place of data.train")
    save_every: PositiveInt = 50
    ensemble: PositiveInt = Field(
        1, description="members: heads on one trunk, or adapters; above 1 their disagreement is recorded"
    )
    ensemble_layers: tuple[PositiveInt, ...] = Field((), description="layers that the members read, in turn; default: layer")
    bootstrap: bool = Field(True, description="each member learns from its own bootstrap of the pairs")

    @model_validator(mode="after")
    def _check_ensemble(self) -> Self:
        if self.ensemble == 1:
            self.refuse_without_effect(("ensemble_layers", "bootstrap"), "ensemble = 1 has one member")
        elif self.method == "full":
            raise ValueError(
                f'ensemble = {self.ensemble} with method = "full": members share a trunk. Use method = "head" or "adapter".'
            )
        elif not self.normalize:
            raise ValueError(
                f"ensemble = {self.ensemble} with normalize = false: the zero of a member's raw scores is its own, so that they "
                "cannot be compared. Leave normalize = true."
            )
        elif self.layer is not None and self.ensemble_layers:
            raise ValueError(f"layer = {self.layer} has no effect: ensemble_layers names the layers. Set one of the two.")
        elif len(self.ensemble_layers) > self.ensemble:
            raise ValueError(
                f"ensemble_layers = {list(self.ensemble_layers)} are more than the {self.ensemble} members. "
                "Name fewer, or raise ensemble."
            )
        return self


class RolloutConfig(Section):
    engine: Literal["local"] = Field("local", description="local: in this process, with the policy's own weights")
    temperature: PositiveFloat = Field(1.0, description="divides old, new and reference logits alike")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="below 1 the importance ratio is biased; warned about")
    top_k: ZeroOrMoreInt = Field(0, description="0: off; otherwise the importance ratio is biased; warned about")
    response_length: PositiveInt = 53
    stop_token: tuple[str, ...] = Field((), description="further tokens that end an answer, beside the model's own EOS")
    batch_size: PositiveInt = Field(64, description="rows decoded at once; changes nothing but memory and speed")


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
    alarms: Literal["off", "warn", "stop"] = Field(
        "warn", description="drift alarms (docs/trust.md): events and report, or stop with exit 3"
    )
    alarm_length: PositiveFloat = Field(0.5, description="answers longer or shorter than at the start by this share")
    alarm_variety: Annotated[float, Field(gt=0, lt=1)] = Field(0.6, description="distinct-2 below this share of the start's")
    alarm_reward_length: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="correlation of reward with length, either way"
    )
    alarm_entropy: Annotated[float, Field(gt=0, lt=1)] = Field(0.3, description="entropy below this share of the start's")
    alarm_kl: PositiveFloat = Field(25.0, description="KL to the SFT model, nats a sequence")
    alarm_fluency: PositiveFloat = Field(1.0, description="fall of an answer's log-prob under the SFT model, nats a token")
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
        if self.objective == "policy_gradient":
            self.refuse_without_effect(("ratio_max",), 'objective = "policy_gradient" has no ratio')
        if self.objective != "clip":
            self.refuse_without_effect(("cliprange", "cliprange_high"), f'objective = "{self.objective}" does not clip the ratio')
        if self.objective != "penalty":
            names = ("beta", "beta_controller", "beta_estimator", "beta_target", "beta_rate", "beta_horizon")
            self.refuse_without_effect(names, f'objective = "{self.objective}" has no beta')
        _refuse_rule_settings(self, "beta", self.beta_controller)
        _refuse_rule_settings(self, "kl", self.kl_controller)
        if self.kl_controller == "proportional" and self.rollout_batch_size >= 5 * self.kl_horizon:
            raise ValueError(
                f"kl_horizon = {self.kl_horizon} is too short for rollouts of {self.rollout_batch_size} answers: one step of the "
                f"rule could make kl_coef 0. Use {self.rollout_batch_size // 5 + 1} or more."
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


class RewardSourceConfig(Section):
    source: str | None = Field(
        None,
        description="a reward-model folder, module:function, a server's URL, or a check such as regex:PATTERN (docs/rewards.md)",
    )
    sources: tuple[str, ...] = Field((), description="several in place of one: the score is the sum of weight times score")
    weights: tuple[float, ...] = Field((), description="one for each of sources, 0 to record and not to pay; default: 1 each")
    batch_size: PositiveInt = Field(32, description="answers scored at once; changes nothing but memory and speed")
    ensemble: Literal["mean", "min", "mean_minus_std"] = Field("mean", description="how an ensemble's members become one score")
    ensemble_k: ZeroOrMore = Field(1.0, description="k of mean - k std")
    protocol: Literal["openrlhf", "surefoot"] = Field("openrlhf", description="what is said to a server (docs/rewards.md)")
    label_column: str | None = Field(None, description='column of the prompts that OpenRLHF\'s servers get as "labels"')
    timeout: PositiveFloat = Field(
        60.0, description="seconds that a server has for one request, from connecting to its last byte"
    )
    max_retries: ZeroOrMoreInt = Field(8, description="further attempts at a request before the run is paused (exit 75)")
    retry_wait: PositiveFloat = Field(0.5, description="seconds before the first of them; doubled each time, up to 30")

    @property
    def every(self) -> tuple[str, ...]:
        """The sources, one or several."""
        return self.sources or (() if self.source is None else (self.source,))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source is not None and self.sources:
            raise ValueError(f"source = {self.source!r} and sources = {list(self.sources)!r} are both set. Set one of the two.")
        if self.weights and not self.sources:
            raise ValueError(f"weights = {list(self.weights)} has no effect: it weighs sources, and none is set.")
        if self.weights and len(self.weights) != len(self.sources):
            raise ValueError(
                f"weights = {list(self.weights)} are {len(self.weights)} for {len(self.sources)} sources. Give one each."
            )
        if self.weights and not any(self.weights):
            raise ValueError(f"weights = {list(self.weights)} pay for nothing. Give one source at least a weight other than 0.")
        if not any(is_url(source) for source in self.every):
            names = ("protocol", "label_column", "timeout", "max_retries", "retry_wait")
            self.refuse_without_effect(names, "no source is a server's URL (http://... or https://...)")
        if self.ensemble != "mean_minus_std":
            self.refuse_without_effect(("ensemble_k",), f'ensemble = "{self.ensemble}" has no k')
        if self.protocol == "surefoot":
            self.refuse_without_effect(("label_column",), 'protocol = "surefoot" sends every column')
        return self


def is_url(source: str) -> bool:
    """Whether a reward source is a server."""
    return source.lower().startswith(("http://", "https://"))


class EvaluateConfig(Section):
    num_prompts: PositiveInt = Field(256, description="held-out prompts, one answer of each model to each")
    judges: tuple[str, ...] = Field((), description="vader, minilm, gold (the tiny world's), or module:function of texts")
    best_of: ZeroOrMoreInt = Field(0, description="n of the best-of-n baseline; 0: off")
    against: str | None = Field(None, description="model to compare with, for example runs/sft/final")


class RoundsConfig(Section):
    num_rounds: PositiveInt = 2
    prompts_per_round: PositiveInt = Field(
        200, description="prompts that the policy answers in a round; pairs.max_pairs says how many of the pairs are judged"
    )
    annotator: str = Field(
        "people",
        description="people (surefoot label); ratings: raters simulated from human ratings, for the embedded worlds; or "
        "module:function",
    )


class ControlConfig(Section):
    env: str = Field("CartPole-v1", description="a Gymnasium environment; module:Id-v0 imports a module that registers it")
    total_timesteps: PositiveInt = Field(
        100_000, description="steps of all environments together; the last rollout is a whole one"
    )
    num_envs: PositiveInt = 8
    num_steps: PositiveInt = Field(256, description="steps of each environment in a rollout")
    batch_size: PositiveInt = Field(64, description="steps of a minibatch; it divides num_envs x num_steps")
    hidden_sizes: tuple[PositiveInt, ...] = Field((64, 64), description="tanh layers of the policy, and as many of the critic")
    normalize_observations: bool = Field(False, description="less the running mean, over the running deviation")
    normalize_rewards: bool = Field(False, description="over the running deviation of the discounted return, the mean kept")
    normalize_clip: PositiveFloat = Field(10.0, description="normalised observations and rewards stay within plus and minus this")
    eval_every: ZeroOrMoreInt = Field(10, description="updates between evaluations; 0: at the end alone")
    eval_episodes: PositiveInt = Field(10, description="episodes of an evaluation, by the likeliest actions")
    record: bool = Field(False, description="episode.gif, one episode at the end of the run; --record")

    @property
    def num_rows(self) -> int:
        """Steps of a rollout, all environments together."""
        return self.num_envs * self.num_steps

    @property
    def num_updates(self) -> int:
        """Rollouts in the run: total_timesteps over the steps of a rollout, rounded up."""
        return -(-self.total_timesteps // self.num_rows)

    @model_validator(mode="after")
    def _check(self) -> Self:
        rows = self.num_rows
        if rows % self.batch_size:
            allowed = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
            raise ValueError(
                f"batch_size = {self.batch_size} does not divide the {rows} steps of a rollout (num_envs x num_steps). "
                f"Use one of {allowed}."
            )
        if not self.hidden_sizes:
            raise ValueError("hidden_sizes = [] leaves no layer. Name at least one width, for example [64, 64].")
        if not (self.normalize_observations or self.normalize_rewards):
            self.refuse_without_effect(("normalize_clip",), "nothing is normalised (normalize_observations, normalize_rewards)")
        return self


_TETHER = "an agent in an environment has no reference model that it could be tethered to"
_ANSWERS = "environments pay for each step, and no answer is scored"
_SIZES = "control.num_envs, control.num_steps and control.batch_size say how large a rollout and a minibatch are"
_WATCHED = "these alarms watch language models"
_TETHERS = ("coef", "controller", "target", "horizon", "rate", "estimator", "in", "direction", "max")

# What control does not read of the section ppo, and why. Values equal to the defaults pass: a run's config.yaml names them all.
UNREAD_IN_CONTROL: Mapping[str, str] = {
    **{f"kl_{name}": _TETHER for name in _TETHERS},
    **dict.fromkeys(("missing_eos_penalty", "length_penalty"), _ANSWERS),
    **dict.fromkeys(("rollout_batch_size", "num_mini_batches", "micro_batch_size", "num_samples_per_prompt"), _SIZES),
    "total_episodes": "control.total_timesteps says how long the run is",
    "max_rollbacks": "a diverged agent stops the run; its last checkpoint is good",
    **dict.fromkeys(("ratio_max", "grad_norm_max", "alarms"), _WATCHED),
    **{f"alarm_{name}": _WATCHED for name in ("length", "variety", "reward_length", "entropy", "kl", "fluency")},
    **dict.fromkeys(("critic", "critic_layer"), "policy and critic are two networks that share nothing"),
    "start": "a run of control goes on from its own checkpoints alone",
    "bootstrap_cut": "an episode cut by a time limit always bootstraps from V of its last observation",
    "loss_aggregation": "a row is one step, so that both means are the same",
    "reward_scale": "control.normalize_rewards divides rewards by a running deviation",
    "reward_clip": "control.normalize_clip clips rewards where control.normalize_rewards scales them",
    "whiten_rewards": "control.normalize_rewards scales rewards",
}


class Config(Section):
    """One file for all stages. A verb refuses sections that it does not read."""

    seed: Annotated[int, Field(ge=0, le=9 * 10**12)] = 0  # times a million, for the order of an epoch, it must fit into 63 bits
    threads: Annotated[int, Field(gt=0, le=512)] | None = Field(
        None, description="CPU threads; default: the cores this process may use"
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SFTConfig = SFTConfig()
    pairs: PairsConfig = PairsConfig()
    reward: RewardConfig = RewardConfig()
    reward_source: RewardSourceConfig = RewardSourceConfig()
    rollout: RolloutConfig = RolloutConfig()
    ppo: PPOConfig = PPOConfig()
    control: ControlConfig = ControlConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    rounds: RoundsConfig = RoundsConfig()

    @model_validator(mode="after")
    def _check_critic(self) -> Self:
        if self.model.tuning == "full" and self.ppo.critic == "adapter":
            raise ValueError(
                'ppo.critic = "adapter" with model.tuning = "full": the adapter would sit on weights that the policy moves, '
                'and its loss would move the policy. Use ppo.critic = "detached", "shared" or "model".'
            )
        return self
