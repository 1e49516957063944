"""Each verb through the command line, on files of a few rows: what one writes is what the next reads."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import surefoot
from surefoot import EvaluateRun
from surefoot.cli import run
from surefoot.config import ModelConfig
from surefoot.embedded.tiny_world import sentences
from surefoot.embedded.worlds import opened
from surefoot.errors import RewardError
from surefoot.lm.backbone import load_backbone
from surefoot.preferences import PreferenceStore
from surefoot.runs import hash_folder, load_manifest, read_jsonl

ROWS = [opened(text) for text in sentences(40, seed=1)]
SMALL = ("--rollout.response_length=5", "--rollout.batch_size=16")
ASKED = ("--data.eval_prompts=prompts.jsonl", "--evaluate.num_prompts=20")
REWARDS = """
def vowels(prompts, completions):
    return [sum(letter in "aeiou" for letter in text) / 5 for text in completions]

def prefer(prompt, a, b):
    return "a" if vowels([prompt], [a]) > vowels([prompt], [b]) else "b"

def judge(texts):
    return vowels(texts, texts)
"""


class World(NamedTuple):
    """A working directory in which sft, pairs and reward have run."""

    root: Path
    sft: str
    store: str
    reward: str


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("verbs")
    write(root / "train.jsonl", ROWS)
    write(root / "prompts.jsonl", [{"prompt": row["prompt"]} for row in ROWS])
    (root / "taste.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys, "path", [str(root), *sys.path])
        done("sft", "--model.name=tiny", "--model.tuning=full", "--data.train=train.jsonl", "--sft.num_epochs=2", out="sft")
        model = str(root / "sft/final")
        asked = ("--data.prompts=prompts.jsonl", "--pairs.annotator=taste:prefer", "--pairs.store=votes.db")
        done("pairs", f"--model.name={model}", *asked, *SMALL, out="pairs")
        done("reward", f"--model.name={model}", "--reward.store=votes.db", "--reward.batch_size=8", out="reward")
    return World(root, model, str(root / "votes.db"), str(root / "reward/final"))


@pytest.fixture(autouse=True)
def here(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(sys, "path", [str(world.root), *sys.path])


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def done(verb: str, *words: str, out: str) -> list[dict[str, Any]]:
    """Runs a verb to its end; returns its metrics."""
    assert run([verb, *words, "--out", out]) == 0
    assert load_manifest(Path(out))["status"] == "done"
    return read_jsonl(Path(out) / "metrics.jsonl")


def ppo(world: World, *words: str, out: str) -> list[dict[str, Any]]:
    sizes = ("--ppo.rollout_batch_size=8", "--ppo.total_episodes=16", "--ppo.num_ppo_epochs=2", "--ppo.num_mini_batches=2")
    return done("ppo", f"--model.name={world.sft}", "--data.prompts=prompts.jsonl", *SMALL, *sizes, *words, out=out)


def test_sft_lowers_the_held_out_loss_and_writes_a_model_that_transformers_loads(world: World) -> None:
    losses = [row["validation/loss"] for row in read_jsonl(world.root / "sft/metrics.jsonl") if "validation/loss" in row]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    model = AutoModelForCausalLM.from_pretrained(world.sft)
    assert model.config.pad_token_id not in (None, model.config.eos_token_id)


def test_pairs_holds_a_vote_of_the_named_function_on_every_pair_and_reward_learns_from_them(world: World) -> None:
    metrics = read_jsonl(world.root / "pairs/metrics.jsonl")
    assert metrics[-1]["step"] == len(ROWS)
    assert [row["votes"] for row in metrics] == [row["pairs"] for row in metrics]
    with PreferenceStore.open(world.store) as store:
        assert set(store.counts().by_source) == {"function:taste:prefer"}  # two modules may have a function of one name
    held_out = load_manifest(world.root / "reward")["facts"]["held_out"]
    assert held_out["num_pairs"] > 0
    assert AutoModelForSequenceClassification.from_pretrained(world.reward).config.num_labels == 1


def test_preferences_go_out_to_a_file_and_into_another_store_and_train_the_same_reward_model(world: World) -> None:
    assert run(["export", "--store", world.store, "--out", "votes.jsonl"]) == 0
    assert run(["import", "votes.jsonl", "--store", "copy.db", "--source", "human:copy"]) == 0
    base = ("--reward.batch_size=8", f"--model.name={world.sft}")
    done("reward", *base, "--reward.store=copy.db", out="reward-copy")
    done("reward", *base, "--data.train=votes.jsonl", out="reward-file")
    one, other = (Path(name, "final/model.safetensors").read_bytes() for name in ("reward-copy", "reward-file"))
    assert one == other


def test_ppo_against_a_reward_model_and_evaluate_against_the_model_it_began_from(world: World) -> None:
    metrics = ppo(world, f"--reward_source.source={world.reward}", "--ppo.learning_rate=0.01", out="ppo")
    assert [row["step"] for row in metrics] == [1, 2]
    assert metrics[0]["objective/kl"] == 0.0  # adapter off IS the reference
    judged = (
        "--data.eval_prompts=prompts.jsonl",
        "--evaluate.num_prompts=20",
        "--evaluate.judges=taste:judge",
        "--evaluate.best_of=2",
    )
    words = ("--model.name=ppo/final", f"--evaluate.against={world.sft}", f"--reward_source.source={world.reward}", *judged)
    done("evaluate", *words, *SMALL, out="evaluation")
    figures = json.loads(Path("evaluation/evaluation.json").read_text())
    assert figures["num_prompts"] == 20
    assert 0 <= figures["win_rates"]["judge"]["interval"][0] <= figures["win_rates"]["judge"]["win_rate"]
    assert figures["best_of_n"]["reward"] >= figures["reward_before"]
    assert run(["report", "evaluation"]) == run(["report", "ppo"]) == run(["report", "sft"]) == run(["report", "reward"]) == 0
    assert "<html" in Path("ppo/report.html").read_text()


def test_a_model_evaluated_against_itself_wins_half_at_no_distance(world: World) -> None:
    words = (*ASKED, "--evaluate.judges=taste:judge")
    done("evaluate", f"--model.name={world.sft}", f"--evaluate.against={world.sft}", *words, *SMALL, out="self")
    figures = json.loads(Path("self/evaluation.json").read_text())
    assert figures["win_rates"]["judge"]["win_rate"] == 0.5
    assert figures["kl_policy_sft"] == 0.0
    assert figures["distinct2_before"] == figures["distinct2_after"]


def test_gradients_are_recorded_before_and_after_the_clip() -> None:
    words = (
        "--model.name=tiny",
        "--model.tuning=full",
        "--data.train=train.jsonl",
        "--sft.max_steps=2",
        "--sft.max_grad_norm=0.01",
    )
    metrics = [row for row in done("sft", *words, out="clipped") if "grad_norm" in row]
    assert len(metrics) == 2
    assert all(row["grad_norm"] > 0.01 == row["grad_norm_clipped"] for row in metrics)


def test_a_notebook_gets_the_figures_that_the_verb_writes(world: World) -> None:
    words = ("--model.name=tiny", f"--evaluate.against={world.sft}", "--reward_source.source=taste:vowels", *ASKED)
    done("evaluate", *words, "--evaluate.judges=taste:judge", *SMALL, out="by-verb")
    written = json.loads(Path("by-verb/evaluation.json").read_text())
    from taste import judge, vowels

    settings = {"rollout.response_length": 5, "rollout.batch_size": 16, "evaluate.num_prompts": 20}
    prompts = [{"prompt": row["prompt"]} for row in ROWS]
    named = EvaluateRun("tiny", against=world.sft, prompts=prompts, judges=["taste:judge"], reward=vowels, settings=settings)
    assert next(iter(named)).done == len(named.rows) == 16
    assert named.figures == named.figures == written and len(named.rows) == 20
    sft, tiny = (load_backbone(ModelConfig(name=name)) for name in (world.sft, "tiny"))
    with_taste = {"judge": lambda texts: judge(texts) if len(texts) == 16 else 1 / 0}
    broken = EvaluateRun(tiny, against=sft, prompts=prompts, judges=with_taste, settings=settings)
    for said in ("judge judge raised ZeroDivisionError", "only 16 of 20 prompts were answered before it ended"):
        with pytest.raises(RewardError, match=said):
            _ = broken.figures
    loaded = EvaluateRun(
        tiny, against=sft, prompts="prompts.jsonl", judges={"judge": judge}, reward="taste:vowels", settings=settings
    )
    assert loaded.figures == written


@pytest.mark.parametrize("setting", ["source={}", "sources=[{}, 'length:1-4']"])
def test_the_best_of_1_is_a_single_answer_at_no_distance_and_the_result_is_said(
    world: World, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    reward, out = f"--reward_source.{setting.format(world.reward)}", f"best-of-1-by-{setting[:7].strip('={')}"
    words = (f"--model.name={world.sft}", f"--evaluate.against={world.sft}", reward)
    done("evaluate", *words, *ASKED, "--evaluate.judges=taste:judge", "--evaluate.best_of=1", *SMALL, out=out)
    best = json.loads(Path(out, "evaluation.json").read_text())["best_of_n"]
    assert (best["n"], best["kl"]) == (1, 0.0)
    said = capsys.readouterr().err
    assert "judge: the model's answer wins on 50.0% of 20 prompts (95 % interval " in said
    assert "\nKL 0.00 nats a sequence, length " in said


def test_chat_answers_each_line_until_an_empty_one(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("the film was\nthe plot felt\n\nthe cast was\n"))
    assert run(["chat", "sft", "--rollout.response_length=5"]) == 0
    said = capsys.readouterr().out
    assert said.count("the film was") == said.count("the plot felt") == 1
    assert "the cast was" not in said


def test_a_chat_takes_bytes_that_are_no_text_and_a_folder_beside_the_rounds(world: World) -> None:
    (world.root / "many/ppo-a/final").mkdir(parents=True)
    shutil.copytree(world.sft, world.root / "many/ppo-2/final")
    shutil.copytree(world.sft, world.root / "many/ppo-10/final")
    (world.root / "many/ppo-a/final/config.json").write_text("{}")
    command = [sys.executable, "-m", "surefoot", "chat", "many", "--rollout.response_length=3"]
    sources = str(Path(surefoot.__file__).parents[1])
    for variables in ({"PYTHONUTF8": "1"}, {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}):
        environment = os.environ | variables | {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
        said = subprocess.run(command, input=b"caf\xff \xc3\xa9\n\n", env=environment, capture_output=True)
        assert said.returncode == 0, said.stderr.decode()
        assert said.stdout.startswith(b"many/ppo-10/final: ") and b"caf" in said.stdout.splitlines()[1]


def test_a_run_cannot_go_on_with_other_data_than_it_began_with(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(Path("moving.jsonl"), ROWS[:20])
    words = ["sft", "--model.name=tiny", "--data.train=moving.jsonl", "--sft.save_every=1", "--out", "moving"]
    monkeypatch.setenv("SUREFOOT_FAULT", "optimizer:2:int")
    assert run(words) == 75
    monkeypatch.delenv("SUREFOOT_FAULT")
    write(Path("moving.jsonl"), ROWS[20:])
    assert run(words) == 2
    assert "was started with other inputs: " in capsys.readouterr().err.splitlines()[-1]
    write(Path("moving.jsonl"), ROWS[:20])
    assert run(words) == 0


def test_the_same_command_twice_writes_the_same_bytes(world: World) -> None:
    for out in ("once", "twice"):
        ppo(world, "--reward_source.source=taste:vowels", "--ppo.num_samples_per_prompt=2", out=out)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert Path("once", name).read_bytes() == Path("twice", name).read_bytes()
    assert hash_folder(Path("once/final")) == hash_folder(Path("twice/final"))


OBJECTIVES = [["--ppo.objective=clip"], ["--ppo.objective=penalty"], ["--ppo.objective=policy_gradient"]]
CHOICES = [
    *OBJECTIVES,
    *(["--ppo.objective=penalty", f"--ppo.beta_controller={rule}"] for rule in ("exponential", "doubling", "proportional")),
    *(["--ppo.objective=penalty", f"--ppo.beta_estimator={kind}"] for kind in ("exact", "k1", "k3")),
    *([f"--ppo.kl_controller={rule}"] for rule in ("exponential", "doubling", "proportional")),
    *([f"--ppo.kl_estimator={kind}"] for kind in ("exact", "k1", "k2", "k3")),
    *(["--ppo.kl_in=loss", f"--ppo.kl_estimator={kind}"] for kind in ("exact", "k2")),
    ["--ppo.kl_in=loss", "--ppo.kl_estimator=exact", "--ppo.kl_direction=sft_policy"],
    *([f"--ppo.critic={kind}"] for kind in ("detached", "shared", "adapter", "model")),
    *([f"--ppo.critic={kind}", "--model.tuning=full"] for kind in ("detached", "shared", "model")),
    ["--ppo.loss_aggregation=sequence_mean"],
    ["--ppo.reward_scale=running", "--ppo.whiten_rewards=true", "--ppo.reward_clip=1"],
    *([f"--ppo.lr_scheduler={kind}"] for kind in ("linear", "cosine")),
    ["--ppo.bootstrap_cut=true", "--ppo.cliprange_value=0.2", "--ppo.ent_coef=0.01", "--ppo.length_penalty=0.1"],
]


@pytest.mark.parametrize("words", CHOICES, ids=lambda words: ",".join(word.split(".")[1] for word in words))
def test_every_choice_trains_with_finite_figures_and_moves_what_it_says_it_moves(
    world: World, words: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    first, second = ppo(world, "--reward_source.source=taste:vowels", "--ppo.learning_rate=0.02", *words, out=str(out))
    said = {key: value for row in (first, second) for key, value in row.items()}
    assert all(math.isfinite(value) for value in said.values())
    assert said["optimizer/skipped_steps"] == 0
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)  # the first rollout is the reference's own
    assert abs(second["objective/kl"]) > 1e-4  # and two steps of this learning rate leave it
    assert first["val/first_log_ratio"] < 1e-4
    _check_rules(first, second, dict(word.removeprefix("--ppo.").split("=") for word in words))


def _check_rules(first: dict[str, float], second: dict[str, float], chosen: dict[str, str]) -> None:
    """Coefficients move towards their targets: 0.01 nats a step for beta, 6 nats a sequence for the tether."""
    if chosen.get("beta_controller", "fixed") != "fixed":
        assert (second["kl/beta"] > first["kl/beta"]) == (first["policy/kl_after"] > 0.01)
        assert second["kl/beta"] != first["kl/beta"]
    elif "kl/beta" in first:
        assert second["kl/beta"] == first["kl/beta"] == 1.0
    if chosen.get("kl_controller", "fixed") != "fixed":
        assert second["kl/coef"] < first["kl/coef"]  # the first rollout is at distance 0, far below the target
    else:
        assert second["kl/coef"] == first["kl/coef"] == 0.05
    if chosen.get("kl_in") == "loss":
        assert second["kl/in_loss"] > 0.0
    if chosen.get("lr_scheduler") in ("linear", "cosine"):
        assert second["lr"] < first["lr"]
    if chosen.get("objective") in ("penalty", "policy_gradient"):
        assert second["policy/clipfrac_avg"] == 0.0
