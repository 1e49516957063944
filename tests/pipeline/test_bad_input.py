"""Every bad input is one clear line and exit status 2, and leaves nothing half written."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from transformers import AutoTokenizer

import surefoot
from surefoot.cli import run
from surefoot.config import PPOConfig
from surefoot.lm.tiny import tiny_model_folder
from surefoot.runs import load_manifest

OWN = {"config.yaml", "manifest.json", "run.lock", "events.jsonl"}  # what a folder holds before a run has done anything
TINY = "--model.name=tiny"
SMALL = ("--rollout.response_length=3", "--ppo.rollout_batch_size=4", "--ppo.total_episodes=4", "--ppo.num_ppo_epochs=1")
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with a file of each kind; modules of earlier tests are forgotten."""
    monkeypatch.chdir(tmp_path)
    write("prompts.jsonl", [{"prompt": f"the film {n}"} for n in range(4)])
    write("train.jsonl", [{"prompt": f"the film {n}", "completion": " was good ."} for n in range(8)])
    write("pairs.jsonl", [{"prompt": f"the film {n}", "chosen": " was good .", "rejected": " was bad ."} for n in range(8)])
    monkeypatch.delitem(sys.modules, "rewards", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(words)`: the line that the command line answers, once it is sure that it is one and that nothing was written."""

    def call(*words: str, out: str = "out") -> str:
        before = {path.name for path in Path().iterdir()}
        capsys.readouterr()
        assert run([*words, "--out", out]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        problems = [line for line in said.splitlines() if line.partition(":")[0].endswith("Error")]
        assert len(problems) == 1, said
        assert said.splitlines()[-1] == problems[0]
        assert {path.name for path in Path().iterdir()} - before <= {out}
        assert_nothing_half_written(Path(out))
        return problems[0]

    return call


def assert_nothing_half_written(out: Path) -> None:
    if not out.exists():
        return
    assert {path.name for path in out.iterdir() if path.is_dir() or path.stat().st_size} <= OWN
    manifest = load_manifest(out)
    assert (manifest["status"], manifest["outputs"]) == ("stopped", {})
    assert manifest["reason"]


def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def reward_module(body: str) -> str:
    Path("rewards.py").write_text(f"def score(prompts, completions):\n    {body}\n")
    return "--reward_source.source=rewards:score"


def ppo(source: str) -> list[str]:
    return ["ppo", TINY, "--data.prompts=prompts.jsonl", source, *SMALL]


@pytest.mark.parametrize(
    "words, line",
    [
        (["--ppo.clip_eps=0.2"], "ConfigError: command line: no setting ppo.clip_eps. Did you mean ppo.cliprange?"),
        (
            ["--ppo.num_mini_batches=3"],
            "ConfigError: command line: ppo.num_mini_batches = 3 does not divide the 64 rows of a rollout. "
            "Use one of 1, 2, 4, 8, 16, 32, 64.",
        ),
        (
            ["--ppo.num_samples_per_prompt=5"],
            "ConfigError: command line: ppo.num_samples_per_prompt = 5 does not divide the 64 rows of a rollout. "
            "Use one of 1, 2, 4, 8, 16, 32, 64.",
        ),
        (["none.yaml"], "ConfigError: no file none.yaml. Check the name; settings start with two dashes."),
        (["--ppo.beta=2"], 'ConfigError: command line: ppo.beta = 2.0 has no effect: objective = "clip" has no beta'),
    ],
)
def test_settings_that_cannot_be_are_refused_before_a_folder_is_made(words: list[str], line: str, refused: Refused) -> None:
    assert refused("ppo", *words).rstrip(".") == line.rstrip(".")
    assert not Path("out").exists()


def test_an_unknown_key_of_a_file_is_refused_with_its_line(refused: Refused) -> None:
    Path("run.yaml").write_text("ppo:\n  gamma: 0.9\n  clip_eps: 0.2\n")
    assert refused("ppo", "run.yaml") == "ConfigError: run.yaml line 3: no setting ppo.clip_eps. Did you mean ppo.cliprange?"
    assert not Path("out").exists()


LEGAL = {
    *(("reward", "policy_sft", estimator) for estimator in ("exact", "k1", "k2", "k3")),
    ("loss", "policy_sft", "exact"),
    ("loss", "policy_sft", "k2"),
    ("loss", "sft_policy", "exact"),
}
REASONS = {  # why a combination is refused, by what is wrong with it
    ("loss", "policy_sft", "k1"): "over the policy's own samples its expected gradient is zero",
    ("loss", "policy_sft", "k3"): "over the policy's own samples its gradient is that of KL(SFT || policy)",
}
UNDER_SFT = "KL(SFT || policy) is an expectation under the SFT model, which the policy's samples cannot estimate"


@pytest.mark.parametrize(
    "combination",
    list(
        itertools.product(
            *(get_args(PPOConfig.model_fields[name].annotation) for name in ("kl_in", "kl_direction", "kl_estimator"))
        )
    ),
)
def test_every_combination_of_the_tether_is_legal_or_refused_with_its_reason(
    combination: tuple[str, str, str], refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "ppo",
        TINY,
        *(f"--ppo.kl_{name}={value}" for name, value in zip(("in", "direction", "estimator"), combination, strict=True)),
    ]
    if combination in LEGAL:
        assert run([*words, "--dry-run"]) == 0
        assert f"kl_estimator: {combination[2]}" in capsys.readouterr().out
    else:
        line = refused(*words)
        assert REASONS.get(combination, UNDER_SFT) in line
        assert "Allowed: kl_in reward with policy_sft and exact, k1, k2 or k3; kl_in loss with policy_sft and exact or k2" in line


@pytest.mark.parametrize(
    "verb, setting", [("sft", "data.train"), ("reward", "data.train"), ("pairs", "data.prompts"), ("ppo", "data.prompts")]
)
def test_a_missing_file_and_a_forgotten_one_are_two_lines_that_name_the_setting_or_the_file(
    verb: str, setting: str, refused: Refused
) -> None:
    assert refused(verb, TINY).startswith(f"ConfigError: {setting} is not set.")
    line = refused(verb, TINY, f"--{setting}=./none.jsonl")
    assert line.startswith("DataError: no data at none.jsonl: the folder . has no none.jsonl. Did you mean pairs.jsonl")


def test_mixed_formats_name_both_rows(refused: Refused) -> None:
    write("train.jsonl", [{"prompt": "a b", "completion": " c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}])
    line = refused("sft", TINY, "--data.train=train.jsonl")
    assert line.startswith("DataError: train.jsonl line 2 is {prompt, chosen, rejected}")
    assert "but train.jsonl line 1 is {prompt, completion}" in line
    assert line.endswith("A data set has one format: split it in two.")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_empty_data_is_no_data(content: str, refused: Refused) -> None:
    Path("train.jsonl").write_text(content)
    assert refused("sft", TINY, "--data.train=train.jsonl").startswith("DataError: train.jsonl holds no rows")


def test_prompts_beyond_the_context_are_counted_when_none_is_left(refused: Refused) -> None:
    write("prompts.jsonl", [{"prompt": f"{n} " + "the film was good and " * 40} for n in range(7)])
    line = refused(*ppo(reward_module("return [0.0] * len(prompts)")))
    assert line.startswith(
        "DataError: no prompt is left: all 7 have more than 125 tokens (context 128 less rollout.response_length 3)."
    )


def test_some_prompts_beyond_the_context_are_dropped_with_a_count(capsys: pytest.CaptureFixture[str]) -> None:
    write("prompts.jsonl", [{"prompt": "the film"}, {"prompt": "the plot"}, {"prompt": "the film was good and " * 40}])
    assert run([*ppo(reward_module("return [0.0] * len(prompts)")), "--out", "out"]) == 0
    said = capsys.readouterr().err
    assert "prompts: 2 kept; 1 passed the context and were dropped" in said
    assert "memory: about " in said and "(backbone " in said  # the plan stands before the run


def test_a_tokenizer_that_pads_with_eos_is_refused(tmp_path: Path, refused: Refused) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in tiny_model_folder().iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(model)
    line = refused("sft", "--model.name=model", "--data.train=train.jsonl")
    assert line.startswith("ModelError: the tokenizer of model pads with '<|eos|>', which is also its EOS token")
    assert "Set tokenizer.pad_token to another token" in line


def test_a_folder_without_weights_is_refused(refused: Refused) -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    assert refused("sft", "--model.name=model", "--data.train=train.jsonl").startswith(
        "ModelError: model.name = 'model' holds no weights (*.safetensors, *.bin, *.gguf)."
    )
    line = refused(*ppo("--reward_source.source=model"))
    assert line.startswith("ModelError: reward_source.source = 'model'")


@pytest.mark.parametrize(
    "body, line",
    [
        ("raise KeyError('x')", "rewards:score raised KeyError: 'x'. Nothing was trained on this batch."),
        ("return [float('nan')] * len(prompts)", "rewards:score returned nan for answer 0"),
        ("return [float('inf')] * len(prompts)", "rewards:score returned inf for answer 0"),
        ("return 'good'", "rewards:score returned str 'good'; it must return a list of 4 numbers."),
        ("return ['good'] * len(prompts)", "rewards:score returned str 'good' for answer 0; a score is a number (or None)."),
        ("return [1.0]", "rewards:score returned 1 numbers for 4 answers; it must return one each."),
        ("return None", "rewards:score returned NoneType 'None'; it must return a list of 4 numbers."),
    ],
)
def test_a_reward_function_that_gives_no_numbers_is_never_trained_on(body: str, line: str, refused: Refused) -> None:
    said = refused(*ppo(reward_module(body)))
    assert said.startswith(f"RewardError: reward function {line}")


LONG = "n" * 300


@pytest.mark.parametrize(
    "words",
    [
        ["sft", TINY, f"--data.train={LONG}.jsonl"],
        ["sft", f"--model.name={LONG}", "--data.train=rows.jsonl"],
        ["sft", f"{LONG}.yaml"],
        ["ppo", TINY, "--data.prompts=prompts.jsonl", f"--reward_source.source={LONG}", *SMALL],
        ["reward", TINY, f"--reward.store={LONG}.db"],
    ],
    ids=["data", "model", "settings", "reward", "store"],
)
def test_a_name_that_no_file_can_have_is_refused(words: list[str], refused: Refused) -> None:
    assert refused(*words).startswith(f"ConfigError: {'n' * 60}... is longer than a file's name can be, 255 bytes.")


def test_a_pattern_may_be_longer_than_any_name() -> None:
    pattern = "|".join(f"word{i}" for i in range(60))
    assert run([*ppo(f"--reward_source.source=regex:{pattern}"), "--out", "long"]) == 0


@pytest.mark.parametrize(
    ("out", "said"), [("", "the run folder would be the working directory"), ("q\udcff", "is no name in UTF-8")]
)
def test_a_run_folder_that_cannot_be_one_is_refused(out: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().iterdir())
    assert run(["sft", TINY, "--data.train=rows.jsonl", "--out", out]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert sorted(Path().iterdir()) == before


def test_a_name_that_is_no_function_and_one_that_is_no_folder_are_refused(refused: Refused) -> None:
    reward_module("return [0.0]")
    assert "has no function 'scores'. Its functions: score." in refused(*ppo("--reward_source.source=rewards:scores"))
    assert "module 'nothing_here' cannot be imported" in refused(*ppo("--reward_source.source=nothing_here:score"))
    assert "no such folder, and no module:function" in refused(*ppo("--reward_source.source=nothing_here"))
    assert refused("ppo", TINY, "--data.prompts=prompts.jsonl", *SMALL).startswith(
        "ConfigError: reward_source.source is not set."
    )


def test_a_store_that_is_not_there_is_not_made_and_one_without_votes_is_named(refused: Refused) -> None:
    words = ("reward", TINY, "--reward.store=votes.db")
    assert refused(*words) == (
        "DataError: no preference store at votes.db. Make one with `surefoot pairs` or `surefoot import`, or mend the path."
    )
    assert run(["pairs", TINY, "--data.prompts=prompts.jsonl", "--rollout.response_length=3", "--pairs.store=votes.db"]) == 0
    assert refused(*words, out="other").startswith("DataError: reward.store = 'votes.db' holds no preferences (")


def test_a_best_of_n_without_a_reward_that_tells_the_best_is_refused(refused: Refused) -> None:
    words = ("evaluate", TINY, "--evaluate.against=tiny", "--data.eval_prompts=prompts.jsonl", "--evaluate.best_of=4")
    assert refused(*words) == (
        "ConfigError: evaluate.best_of = 4 has no effect without a reward that tells the best. "
        "Set reward_source.source, or evaluate.best_of = 0."
    )


def test_an_annotator_that_raises_or_prefers_nothing_known_stores_no_vote(refused: Refused) -> None:
    words = ["pairs", TINY, "--data.prompts=prompts.jsonl", "--rollout.response_length=3", "--pairs.store=votes.db"]
    Path("votes.db").touch()
    Path("raises.py").write_text("def prefer(prompt, a, b):\n    raise ValueError('no taste')\n")
    line = refused(*words, "--pairs.annotator=raises:prefer")
    assert line == (
        "RewardError: annotator raises:prefer raised ValueError: no taste. No vote of this batch of prompts was stored."
    )
    Path("arrays.py").write_text("import numpy\ndef prefer(prompt, a, b):\n    return numpy.array(['a', 'b'])\n")
    assert refused(*words, "--pairs.annotator=arrays:prefer").startswith(
        """RewardError: annotator arrays:prefer returned ndarray "['a' 'b']"; it must return 'a'"""
    )
    Path("left.py").write_text("def prefer(prompt, a, b):\n    return 'left'\n")
    assert refused(*words, "--pairs.annotator=left:prefer").startswith(
        "RewardError: annotator left:prefer returned 'left'; it must return 'a'"
    )


CONTROL = ("--control.num_envs=2", "--control.num_steps=20", "--control.batch_size=20", "--control.total_timesteps=200")


@pytest.mark.parametrize(
    "env, line",
    [
        ("cartpole", "Gymnasium knows no such environment. Did you mean CartPole-v"),
        ("HalfCheeta-v5", "Gymnasium knows no such environment. Did you mean HalfCheetah-v5"),
        ("Nothing-like-it", "Gymnasium knows no such environment. `python -c 'import gymnasium"),
        ("nowhere:Env-v0", "No module named 'nowhere'"),
    ],
)
def test_an_unknown_environment_is_refused_with_the_nearest_names(env: str, line: str, refused: Refused) -> None:
    assert refused("control", env, *CONTROL).startswith(f"ConfigError: control.env = {env!r}: {line}")


def test_spaces_that_no_network_here_reads_are_refused(refused: Refused) -> None:
    assert refused("control", "FrozenLake-v1", *CONTROL).startswith(
        "ConfigError: Observations are Discrete(16). Box is supported"
    )


def test_settings_that_control_does_not_read_are_refused_before_a_folder_is_made(refused: Refused) -> None:
    line = refused("control", "CartPole-v1", "--ppo.kl_coef=0.2")
    assert line.startswith("ConfigError: command line: ppo.kl_coef = 0.2 has no effect in surefoot control: an agent in an")
    line = refused("control", "CartPole-v1", "--control.batch_size=60", "--control.num_steps=32")
    assert line.startswith("ConfigError: command line: control.batch_size = 60 does not divide the 256 steps of a rollout")
    assert refused("control", "CartPole-v1", "--control.env=Pendulum-v1").startswith(
        "ConfigError: command line: control.env is given twice."
    )
    assert not Path("out").exists()


def test_an_environment_whose_physics_are_not_installed_says_which_extra_holds_them() -> None:
    code = "import sys; sys.modules['mujoco'] = None; from surefoot.cli import run; sys.exit(run(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "control", "Hopper-v5", *CONTROL, "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1])}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    needed = "ConfigError: control.env = 'Hopper-v5' needs MuJoCo, which is not installed: pip install 'surefoot[control]'."
    assert done.stderr.splitlines()[-1] == needed
    assert_nothing_half_written(Path("out"))


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_an_environment_that_gives_no_number_ends_the_run_and_keeps_its_last_checkpoint(
    what: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"broken_{what}.py").write_text(
        f"import functools, gymnasium, walks\n"
        f"make = functools.partial(walks.Broken, {what}=float('nan'), at=50)\n"
        f"gymnasium.register('Broken_{what}-v0', entry_point=make, disable_env_checker=True)\n"
    )
    words = ["control", f"broken_{what}:Broken_{what}-v0", *CONTROL, "--ppo.save_every=1", "--out", "out"]
    assert run(words) == 3
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(
        f"TrainingError: The environment gave {'an' if what == 'observation' else 'a'} {what} that is not finite"
    )
    assert {path.name for path in Path("out").glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2"}
    assert not Path("out/final").exists() and load_manifest(Path("out"))["status"] == "stopped"


def test_with_the_input_mended_the_same_command_and_folder_run(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sft", TINY, "--data.train=rows.jsonl", "--out", "out"]
    assert run(words) == 2
    write("rows.jsonl", [{"prompt": f"the film {n}", "completion": " was good ."} for n in range(8)])
    assert run(words) == 0
    assert load_manifest(Path("out"))["status"] == "done"
    capsys.readouterr()
    assert run([*words, "--sft.num_epochs=2"]) == 2
    assert "was started with other settings: sft.num_epochs 1 -> 2" in capsys.readouterr().err


def test_a_second_process_on_a_run_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text(
        "import pathlib, time\ndef score(prompts, completions):\n    pathlib.Path('scoring').touch()\n    time.sleep(100)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(surefoot.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "surefoot", *ppo("--reward_source.source=rewards:score"), "--out", "out"]
    with subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 90
        while not Path("scoring").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        before = load_manifest(Path("out"))
        second = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=90, check=False)
        assert second.returncode == 2
        assert second.stderr.splitlines()[-1].startswith(f"RunError: {tmp_path / 'out'} is in use by process {first.pid} on ")
        assert "Traceback" not in second.stderr
        assert load_manifest(Path("out")) == before
        first.kill()
