"""How far a reward can be optimised before judges that never entered it fall (8.3.5): PPO and best-of-n over sqrt(KL).

A study is a list of variants, each trained from the same SFT model and looked at on the way on the same held-out prompts. Every
part is a run folder of its own (seed-0-sft, seed-0-pool, seed-0-reward-NAME, seed-0-scores-NAME, seed-0-ppo-NAME), so an
interrupted study goes on where it stopped, and what two variants share is made once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surefoot.config import Config, OveroptimizeConfig, RewardConfig
from surefoot.config_file import changed
from surefoot.config_lab import VARIED
from surefoot.diagnostics.report import write_report
from surefoot.diagnostics.study import analysed, joined
from surefoot.embedded.worlds import Rows, preference_rows, real_world, tiny_world
from surefoot.errors import ConfigError
from surefoot.lm.data import read_rows
from surefoot.progress import Progress
from surefoot.rewards.ensemble import refuse_idle_rule
from surefoot.runs import RunFolder, read_jsonl
from surefoot.runs.manifest import read_config
from surefoot.stages import best_of_n, ppo_lm, reward, sft
from surefoot.stages.chain import on_model, run_stage, sft_config
from surefoot.stages.held_out import HeldOutPlan
from surefoot.stages.judging import Judge
from surefoot.stages.votes import read_votes

CURVES = "curves.json"
RESULT = "overoptimize.json"
NUM_SENTENCES = 3_000  # for SFT, as in the demo


@dataclass(frozen=True, slots=True)
class Ground:
    """What a seed is played on. `main` is the judge that decides; `votes` are None where the reward is given."""

    prompts: Any
    eval_prompts: Any
    judges: Mapping[str, Judge]
    main: str
    sentences: Rows | None
    votes: Rows | None
    held_out: Rows | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of optimising: its name, the settings it changes as they were written, and all of its settings."""

    name: str
    words: tuple[str, ...]
    cfg: Config


def run(cfg: Config, folder: RunFolder, progress: Progress, *, judges: Mapping[str, Judge] | None = None) -> None:
    """`judges` in place of the settings': for tests."""
    every = variants(cfg)
    folder.restore()
    study = _joined(cfg) if cfg.overoptimize.join else _measured(cfg, every, folder, progress, judges)
    folder.write(CURVES, json.dumps(study) + "\n")
    found = analysed(study, cfg.overoptimize.resamples)
    folder.write(RESULT, json.dumps(found, indent=2) + "\n")
    folder.finish(verdict=[said["sentence"] for said in found["verdict"]])
    report = write_report(folder.path)
    for said in found["verdict"]:
        progress.say(said["sentence"])
    progress.say(f"report: {report}")


def variants(cfg: Config) -> list[Variant]:
    """The study's variants with all of their settings.

    Raises: ConfigError where a variant changes what all must share, or a setting of it has no effect.
    """
    found = []
    for name, words in cfg.overoptimize.named_variants:
        where = f"overoptimize.variants, {name}"
        for word in words:
            section, _, key = word.partition("=")[0].partition(".")
            if section not in ("ppo", "reward", "reward_source") and not (section == "overoptimize" and key in VARIED):
                allowed = ", ".join(f"overoptimize.{key}" for key in VARIED)
                raise ConfigError(
                    f"{where}: {word} is shared by all variants of a study. A variant may change ppo, reward, reward_source, "
                    f"{allowed}."
                )
        own = changed(cfg, words, verb="overoptimize", where=where)
        lab, is_given = own.overoptimize, bool(own.reward_source.every)
        of_votes = [w for w in words if w.startswith(("reward.", "overoptimize.label_noise", "overoptimize.num_labels"))]
        if is_given and (of_votes or lab.label_noise or lab.num_labels):
            what = of_votes[0] if of_votes else "overoptimize.label_noise or num_labels"
            raise ConfigError(f"{where}: {what} has no effect, since reward_source names the reward and none is trained.")
        if not is_given and own.reward.ensemble == 1 and own.reward_source.ensemble != "mean":
            raise ConfigError(
                f"{where}: reward_source.ensemble={own.reward_source.ensemble} has no effect on one reward model. "
                "Add reward.ensemble=4."
            )
        refuse_idle_rule(own.reward_source)
        found.append(Variant(name, words, own))
    return found


def _joined(cfg: Config) -> dict[str, Any]:
    """The measurements of finished studies."""
    read = []
    for name in cfg.overoptimize.join:
        path = Path(name) / CURVES
        if not path.is_file():
            raise ConfigError(f"overoptimize.join: {path} is not there. Name run folders of surefoot overoptimize that are done.")
        read.append(json.loads(path.read_text(encoding="utf-8")))
    return joined(read, cfg.overoptimize.join)


def _measured(
    cfg: Config, every: Sequence[Variant], folder: RunFolder, progress: Progress, judges: Mapping[str, Judge] | None
) -> dict[str, Any]:
    """All seeds of all variants, trained and looked at."""
    seeds, ground = [], None
    for seed in range(cfg.seed, cfg.seed + cfg.overoptimize.num_seeds):
        progress.say(f"seed {seed}, of {cfg.overoptimize.num_seeds} from {cfg.seed}")
        ground = _ground(cfg.model_copy(update={"seed": seed}), every, judges)
        seeds.append(_Seed(cfg.model_copy(update={"seed": seed}), ground, folder, progress).measured(every))
    assert ground is not None  # num_seeds is 1 or more
    named = [{"name": variant.name, "settings": list(variant.words)} for variant in every]
    return {"main": ground.main, "judges": list(ground.judges), "variants": named, "seeds": seeds}


class _Seed:
    """One seed of a study: its SFT model, its pool, its rewards, and the variants that share them."""

    def __init__(self, cfg: Config, ground: Ground, folder: RunFolder, progress: Progress) -> None:
        self._cfg, self._ground, self._folder, self._progress = cfg, ground, folder, progress
        self._models = _given_models(cfg)
        self._made: dict[str, str] = {}  # what two variants may share -> the name of the first that made it

    def measured(self, every: Sequence[Variant]) -> dict[str, Any]:
        """What curves.json holds of this seed."""
        start, ground, each = self._sft(), self._ground, self._cfg.overoptimize.best_of
        asked = {"prompts": ground.eval_prompts, "judges": ground.judges}
        pool = self._stage("pool", best_of_n.sample, self._of(self._cfg, start, "num_prompts", "best_of"), asked)
        found: dict[str, Any] = {"seed": self._cfg.seed, "pool": best_of_n.pool_judgements(pool, each), "variants": {}}
        for variant in every:
            own = variant.cfg.model_copy(update={"seed": self._cfg.seed})
            if not own.reward_source.every:
                own = own.model_copy(update={"reward_source": self._reward(variant, own, start)})
            scored = self._shared("scores", variant.name, own.reward_source.model_dump_json())
            # what variants share has the settings that it reads from the variant, and all others from the study
            source = self._cfg.model_copy(update={"reward_source": own.reward_source})
            cfg = self._of(source, start, "num_prompts", "best_of")
            given: dict[str, Any] = {"prompts": ground.eval_prompts, "pool": pool}
            scores = self._stage(f"scores-{scored}", best_of_n.score, cfg, given)
            lab = own.overoptimize
            plan = HeldOutPlan(ground.eval_prompts, ground.judges, lab.num_prompts, lab.eval_every, lab.stop_kl)
            given = {"prompts": ground.prompts, "judges": ground.judges, "held_out": plan}
            cfg = self._of(own, start, "num_prompts", "eval_every", "stop_kl")
            trained = self._stage(f"ppo-{variant.name}", ppo_lm.run, cfg, given)
            found["variants"][variant.name] = looks(trained) | {"pool_proxy": best_of_n.pool_scores(scores, each)}
        return found

    def _stage(self, name: str, stage: Callable[..., None], cfg: Config, given: Mapping[str, Any]) -> Path:
        folder = f"seed-{self._cfg.seed}-{name}"
        return run_stage(self._folder, folder, name.partition("-")[0], stage, cfg, given, self._progress)

    def _shared(self, kind: str, name: str, key: str) -> str:
        """The name of the first variant that asked for the same `key` of a `kind` of work."""
        return self._made.setdefault(f"{kind} {key}", name)

    def _of(self, cfg: Config, start: Path | str, *names: str) -> Config:
        """Settings of one part: of the study itself those alone that it reads, so that it is the same part in another study."""
        kept = {name: getattr(cfg.overoptimize, name) for name in names}
        cfg = cfg.model_copy(update={"overoptimize": OveroptimizeConfig().model_copy(update=kept)})
        return on_model(cfg, start, reward={"store": None})

    def _sft(self) -> Path | str:
        if self._models is not None:
            return self._models / "sft/final"
        if self._ground.sentences is None:
            return self._cfg.model.name
        return (
            self._stage("sft", sft.run, sft_config(self._of(self._cfg, self._cfg.model.name)), {"train": self._ground.sentences})
            / "final"
        )

    def _reward(self, variant: Variant, cfg: Config, start: Path | str) -> Any:
        """The reward source of a variant whose reward is learned from votes: given, made for an earlier variant, or made now."""
        lab = cfg.overoptimize
        is_plain = lab.label_noise == 0 and lab.num_labels is None
        if self._models is not None and is_plain and _was_trained_with(self._models / "reward", cfg.reward):
            folder = self._models / "reward"
        else:
            if self._models is not None and is_plain:
                self._progress.say(f"{variant.name}: {self._models / 'reward'} learned with other settings; a new one learns")
            key = f"{cfg.reward.model_dump_json()} {lab.label_noise} {lab.num_labels}"
            name = self._shared("reward", variant.name, key)
            rows = noisy(self._ground.votes or [], lab, cfg.seed, f"overoptimize.variants, {variant.name}")
            given = {"train": rows, "validation": self._ground.held_out}
            learned = self._cfg.model_copy(update={"reward": cfg.reward})
            folder = self._stage(f"reward-{name}", reward.run, self._of(learned, start), given)
        return cfg.reward_source.model_copy(update={"source": str(folder / "final")})


def _given_models(cfg: Config) -> Path | None:
    """The folder of finished models of this seed; None where they are to be trained."""
    if cfg.overoptimize.models is None:
        return None
    folder = Path(cfg.overoptimize.models.replace("{seed}", str(cfg.seed))).resolve()
    if not (folder / "sft/final/config.json").is_file():
        raise ConfigError(
            f"overoptimize.models = {cfg.overoptimize.models!r}: {folder / 'sft/final'} holds no model. Name the folder of a "
            "finished demo, or remove the setting and the models are trained here."
        )
    return folder


def _was_trained_with(run: Path, cfg: RewardConfig) -> bool:
    """Whether the reward model of a finished run learned as `cfg` says, whatever the votes came from."""
    if not (run / "final").is_dir():
        return False
    known = {key: value for key, value in read_config(run)["reward"].items() if key in RewardConfig.model_fields}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}
    return RewardConfig(**settings | {"store": None}) == cfg.model_copy(update={"store": None})


def noisy(votes: Rows, lab: OveroptimizeConfig, seed: int, where: str) -> Rows:
    """num_labels of the votes, drawn, of which a share label_noise is turned round; fewer labels are a part of more.

    Raises: ConfigError where there are fewer votes than are asked for.
    """
    if lab.num_labels is not None and lab.num_labels > len(votes):
        raise ConfigError(
            f"{where}: overoptimize.num_labels = {lab.num_labels}, and there are {len(votes)} preferences. Ask for fewer."
        )
    if lab.num_labels is None and not lab.label_noise:
        return votes
    draw = random.Random(seed)
    kept = draw.sample(votes, len(votes))[: lab.num_labels]
    turned = set(draw.sample(range(len(kept)), round(lab.label_noise * len(kept))))
    return [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i in turned else row for i, row in enumerate(kept)]


def _ground(cfg: Config, every: Sequence[Variant], judges: Mapping[str, Judge] | None) -> Ground:
    """The embedded world of model.name where no prompts are named, else the user's own data."""
    from surefoot.build_rewards import judges_of

    asked = judges if judges is not None else judges_of(cfg)
    if cfg.data.prompts is None:
        if cfg.model.name not in ("embedded", "tiny"):
            raise ConfigError(
                "data.prompts is not set. Name the prompts of PPO, or study an embedded world with --preset default or tiny."
            )
        world = tiny_world(cfg.seed) if cfg.model.name == "tiny" else real_world(cfg.seed)
        by = asked or world.judges
        main = list(asked)[-1] if asked else world.main_judge
        votes, held_out = preference_rows(world.votes), preference_rows(world.held_out_votes)
        return Ground(world.ppo_prompts, world.eval_prompts, by, main, world.sentences[:NUM_SENTENCES], votes, held_out)
    if cfg.data.eval_prompts is None:
        raise ConfigError("data.eval_prompts is not set. Name held-out prompts, on which the policy is looked at.")
    if not asked:
        raise ConfigError(
            "evaluate.judges is empty, so nothing would show whether a higher reward is better. Name judges that the reward "
            "knows nothing of: vader, minilm, module:function, or another reward model's folder."
        )
    learns = any(not variant.cfg.reward_source.every for variant in every)
    return Ground(
        cfg.data.prompts, cfg.data.eval_prompts, asked, list(asked)[-1], None, list(_votes(cfg)) if learns else None, None
    )


def _votes(cfg: Config) -> Iterator[dict[str, Any]]:
    """The user's preferences, as rows to learn from."""
    if cfg.reward.store is not None:
        yield from (dict(row) for row in read_votes(Path(cfg.reward.store)).rows)
        return
    if cfg.data.train is None:
        raise ConfigError(
            "data.train is not set. Name preferences that the reward learns from, a store in reward.store, or a reward in "
            "reward_source.source."
        )
    for row in read_rows(cfg.data.train, "preferences").rows:
        stated = {key: value for key, value in (("margin", row.margin), ("target", row.target)) if value is not None}
        yield {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected, **stated}


def looks(run: Path) -> dict[str, Any]:
    """The looks at the held-out prompts of a run of PPO: its updates, and of each the KL, the reward and the judges, [T][P]."""
    by_update: dict[int, list[Mapping[str, Any]]] = {}
    for row in read_jsonl(run / "samples.jsonl"):
        if row.get("held_out"):
            by_update.setdefault(row["step"], []).append(row)
    rows = list(by_update.values())
    judges = list(rows[0][0]["judges"]) if rows else []
    return {
        "updates": list(by_update),
        "kl": [[row["kl"] for row in look] for look in rows],
        "proxy": [[row["score"] for row in look] for look in rows],
        "gold": {name: [[row["judges"][name] for row in look] for look in rows] for name in judges},
    }
