"""A dry run says what a run would do, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.cli import run
from surefoot.cli_run import STAGES
from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.dry_run import describe, gibibytes, sizes


@pytest.mark.parametrize("verb", sorted(STAGES))
def test_a_dry_run_writes_nothing_and_prints_a_configuration_that_loads_to_the_same(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--seed=3"]
    words += {"control": ["--control.env=Pendulum-v1"], "compare": []}.get(verb, ["--model.name=tiny"])
    words += ["--ppo.gamma=0.5"] if verb in ("ppo", "demo", "control") else []
    models = ["tiny", "tiny"] if verb == "compare" else []  # the words that name what is compared
    assert run([verb, *models, "--dry-run", *words]) == 0
    captured = capsys.readouterr()
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "again.yaml"
    path.write_text(captured.out, encoding="utf-8")
    preset = "default" if verb in ("demo", "control") else None
    assert load_config(path, [], verb=verb) == load_config(None, words, verb=verb, preset=preset)


def test_the_sizes_of_ppo_are_those_of_arithmetic():
    # 100 answers in rollouts of 48: 3 updates, 144 answers; 2 epochs x 4 minibatches of 12 rows: 8 steps each, 12 / 5 forwards
    cfg = Config.model_validate(
        {
            "ppo": {
                "total_episodes": 100, "rollout_batch_size": 48, "num_samples_per_prompt": 3,
                "num_ppo_epochs": 2, "num_mini_batches": 4, "micro_batch_size": 5,
            }
        }
    )  # fmt: skip
    assert sizes(cfg, "ppo") == [
        "PPO: 3 updates of 48 answers (16 prompts x 3), 144 answers in all",
        "PPO: an update has 2 epochs x 4 minibatches of 12 rows, 3 forwards each; 24 optimiser steps in all",
        "answers: at most 53 tokens, decoded 64 at once",
    ]


@pytest.mark.parametrize("verb", sorted(STAGES))
def test_every_verb_has_sizes_and_a_memory_plan(verb):
    cfg = Config.model_validate({"model": {"name": "tiny"}})
    assert sizes(cfg, verb)
    text = describe(cfg, verb, Path("runs/x"))
    names = [line.split()[1] for line in text.partition("\n# memory\n")[2].splitlines()]
    assert (names[0], names[-1]) == ("networks" if verb == "control" else "backbone", "together")


def test_seeds_side_by_side_need_as_much_memory_as_all_of_them(capsys):
    def together(*words):
        assert run(["control", "CartPole-v1", "--dry-run", *words]) == 0
        return float(capsys.readouterr().out.rpartition("together")[2].split()[0])

    assert together("--seeds", "16") == pytest.approx(16 * together(), rel=0.15)  # both are rounded to 0.1 MiB


def test_the_parts_of_the_memory_plan_add_up(monkeypatch):
    import surefoot.build

    monkeypatch.setattr(surefoot.build, "memory_plan", lambda cfg, verb: [("backbone", 2**30), ("cache", 2**28)])
    text = describe(Config(), "ppo", Path("x"))
    assert text.endswith("#   backbone    1.00 GiB\n#   cache      256.0 MiB\n#   together    1.25 GiB")


def test_a_plan_counts_the_adapters_that_are_there():
    from surefoot.build import memory_plan

    def trained(verb, **settings):
        cfg = Config.model_validate({"model": {"name": "tiny", **settings}})
        return dict(memory_plan(cfg, verb)).get("trained weights' gradients and Adam moments")

    every = trained("ppo", lora_rank=4)
    assert trained("ppo", lora_rank=8) == 2 * every
    assert trained("ppo", lora_rank=4, lora_layers=1) == every // 2  # the tiny model has two blocks
    assert trained("demo", lora_rank=4, lora_layers=1) == every  # its SFT adapts all of them
    assert trained("reward", lora_rank=4) is None  # a head reads frozen states


def test_a_plan_follows_the_micro_batch_and_the_checkpointing():
    from surefoot.build import memory_plan

    def kept(checkpointing=False, **ppo):
        rows = {} if "micro_batch_tokens" in ppo else {"micro_batch_size": 2}
        sizes = {"rollout_batch_size": 8, "num_mini_batches": 2, **rows, **ppo}
        given = {"model": {"name": "tiny", "activation_checkpointing": checkpointing}, "rollout": {"response_length": 18}}
        return dict(memory_plan(Config.model_validate({**given, "ppo": sizes}), "ppo"))["activations of a micro-batch"]

    two_rows = kept()
    assert kept(micro_batch_size=16) == 2 * two_rows  # a minibatch has four rows: no forward has more
    assert kept(micro_batch_tokens=150) == two_rows * 150 // 100  # a row is 32 + 18 tokens
    assert kept(micro_batch_tokens=1) == two_rows // 2  # a row that is longer stands alone
    assert 0 < kept(checkpointing=True) < two_rows  # two blocks: the inputs of both, and all of one


def test_bytes_are_said_in_the_unit_that_reads_best():
    assert [gibibytes(size) for size in (0, 2**20, 2**29 - 2**20, 2**29, 3 * 2**30)] == [
        "0.0 MiB",
        "1.0 MiB",
        "511.0 MiB",
        "0.50 GiB",
        "3.00 GiB",
    ]


def test_the_sizes_of_control_are_those_of_arithmetic():
    # 1,000 steps in rollouts of 4 x 16 = 64: 16 updates, 1,024 steps; 3 epochs x 2 minibatches of 32 steps: 6 steps each
    control = {"total_timesteps": 1_000, "num_envs": 4, "num_steps": 16, "batch_size": 32, "eval_every": 5}
    cfg = Config.model_validate({"control": control, "ppo": {"num_ppo_epochs": 3}})
    assert sizes(cfg, "control") == [
        "PPO: 16 updates of 64 steps (4 environments x 16), 1024 steps in all",
        "PPO: an update has 3 epochs x 2 minibatches of 32 steps; 96 optimiser steps in all",
        "evaluation: 10 episodes every 5 updates and at the end",
    ]
