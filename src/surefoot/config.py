"""Every knob, one schema, strict. Names are those of TRL and OpenAI's PPO; the chapter's symbol stands in the help text.

A section is a frozen model; an unknown key, a value out of range and a setting without effect are refused with the reason.
Reading YAML and dotted overrides is `config_file.py`; turning a config into objects is `build.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeInt as ZeroOrMoreInt

from surefoot.config_base import OptimizerConfig, Rule, Section, Share
from surefoot.config_lab import OveroptimizeConfig
from surefoot.config_ppo import PPOConfig
from surefoot.config_reward import RewardConfig, RewardSourceConfig, is_url
from surefoot.launch import multiplies_bfloat16

__all__ = [
    "UNREAD_IN_CONTROL",
    "Config",
    "ControlConfig",
    "DataConfig",
    "EvaluateConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OveroptimizeConfig",
    "PPOConfig",
    "PairsConfig",
    "RewardConfig",
    "RewardSourceConfig",
    "RolloutConfig",
    "RoundsConfig",
    "Rule",
    "SFTConfig",
    "Section",
    "is_url",
]


class ModelConfig(Section):
    name: str = Field(
        "embedded", description="embedded (SmolLM2-135M-Instruct), tiny (made on the spot), a folder, or a hub name"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="dtype of frozen weights; what is trained keeps float32 masters. auto: bfloat16 on a GPU and on a Linux CPU "
        "with instructions for it, else float32",
    )
    device: Literal["cpu", "cuda"] = Field("cpu", description="cuda: one GPU (docs/performance.md says what is tested of it)")
    tuning: Literal["lora", "full"] = Field(
        "lora", description="lora: adapters on one shared backbone; full: every weight, separate models"
    )
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveFloat = 32.0
    lora_layers: PositiveInt | None = Field(
        None, description="adapters on the last N blocks only; default: all. Fewer are faster"
    )
    activation_checkpointing: bool = Field(
        False,
        description="keep a block's input alone, and run the block again in the backward pass: a twentieth of the activations' "
        "memory, and up to half as much time again",
    )
    padding_free: bool = Field(
        True, description="run rows without the padding between them, where the model can; changes speed and rounding"
    )
    template: Literal["auto", "chat", "plain"] = Field("auto", description="auto: chat for message lists, plain for strings")
    max_length: PositiveInt | None = Field(None, description="context in tokens; default: the model's")

    @model_validator(mode="before")
    @classmethod
    def _settle_dtype(cls, given: Any) -> Any:
        """What auto is on this machine, so that a run's folder says what it computed in."""
        if not isinstance(given, dict) or given.get("dtype") != "auto":
            return given
        return {**given, "dtype": "bfloat16" if multiplies_bfloat16(given.get("device", "cpu")) else "float32"}

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
    select: Literal["random", "uncertainty", "disagreement", "distance", "kl"] = Field(
        "random",
        description="uncertainty: the reward's margin is nearest to 0; disagreement: the margins of an ensemble's members differ "
        "most; distance: furthest from what the reward model was trained on; kl: prompts on which the model moved most from "
        "pairs.against",
    )
    against: str | None = Field(None, description="the model from which select = kl measures, for example runs/sft/final")
    annotator: str | None = Field(None, description="module:function that prefers one of two; default: votes come later")
    store: str | None = Field(None, description="SQLite file; default: preferences.db in the run folder")

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
        return self.best_of > 0 or self.select in ("uncertainty", "disagreement", "distance")


class RolloutConfig(Section):
    engine: Literal["local"] = Field("local", description="local: in this process, with the policy's own weights")
    temperature: PositiveFloat = Field(1.0, description="divides old, new and reference logits alike")
    top_p: Annotated[float, Field(gt=0, le=1)] = Field(1.0, description="below 1 the importance ratio is biased; warned about")
    top_k: ZeroOrMoreInt = Field(0, description="0: off; otherwise the importance ratio is biased; warned about")
    response_length: PositiveInt = 53
    stop_token: tuple[str, ...] = Field((), description="further tokens that end an answer, beside the model's own EOS")
    batch_size: PositiveInt = Field(64, description="rows decoded at once; changes nothing but memory and speed")


class EvaluateConfig(Section):
    num_prompts: PositiveInt = Field(256, description="held-out prompts, one answer of each model to each")
    judges: tuple[str, ...] = Field(
        (), description="vader, minilm, gold (the tiny world's), module:function of texts, or a reward model's folder"
    )
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
    num_eval_prompts: PositiveInt | None = Field(
        None, description="held-out prompts of every round but the last, which has evaluate.num_prompts; null: as many"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.num_rounds == 1:
            self.refuse_without_effect(("num_eval_prompts",), "num_rounds = 1 has no round before the last")
        return self


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
_SAMPLER = "actions are sampled by the networks that learn, with the same arithmetic"
_WATCHED = "these alarms watch language models"
_TETHERS = ("coef", "controller", "target", "horizon", "rate", "estimator", "in", "direction", "max")

# What control does not read of the section ppo, and why. Values equal to the defaults pass: a run's config.yaml names them all.
UNREAD_IN_CONTROL: Mapping[str, str] = {
    **{f"kl_{name}": _TETHER for name in _TETHERS},
    **dict.fromkeys(("missing_eos_penalty", "length_penalty"), _ANSWERS),
    **dict.fromkeys(("rollout_batch_size", "num_mini_batches", "micro_batch_size"), _SIZES),
    **dict.fromkeys(("micro_batch_tokens", "num_samples_per_prompt"), _SIZES),
    "total_episodes": "control.total_timesteps says how long the run is",
    "max_rollbacks": "a diverged agent stops the run; its last checkpoint is good",
    **dict.fromkeys(("ratio_max", "grad_norm_max", "alarms"), _WATCHED),
    **dict.fromkeys((name for name in PPOConfig.model_fields if name.startswith("alarm_")), _WATCHED),
    **dict.fromkeys(("critic", "critic_layer"), "policy and critic are two networks that share nothing"),
    "start": "a run of control goes on from its own checkpoints alone",
    **dict.fromkeys(("old_logprobs", "tis_cap"), _SAMPLER),
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
    report_to: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = Field(
        (), description="trackers that are told the metrics too, an extra each (docs/trackers.md)"
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
    overoptimize: OveroptimizeConfig = OveroptimizeConfig()

    @model_validator(mode="after")
    def _check_preferences(self) -> Self:
        if self.data.train is not None and self.reward.store is not None:
            raise ValueError(
                f"data.train = {self.data.train!r} and reward.store = {self.reward.store!r} are both set, and preferences come "
                "from one place. Set one of the two: `surefoot import` adds a file's votes to a store."
            )
        return self

    @model_validator(mode="after")
    def _check_critic(self) -> Self:
        if self.model.tuning == "full" and self.ppo.critic == "adapter":
            raise ValueError(
                'ppo.critic = "adapter" with model.tuning = "full": the adapter would sit on weights that the policy moves, '
                'and its loss would move the policy. Use ppo.critic = "detached", "shared" or "model".'
            )
        return self
