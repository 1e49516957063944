"""R12, R13: one process a folder, and one set of settings and inputs a run."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from surefoot.config import Config, ModelConfig, PPOConfig
from surefoot.errors import RunError
from surefoot.runs import RunFolder, State, load_manifest, read_jsonl
from surefoot.runs.manifest import read_config


def open_run(path: Path, cfg: Config | None = None, **options: Any) -> RunFolder:
    return RunFolder.open(path, **{"verb": "ppo", "cfg": cfg or Config(), **options})


def begin(path: Path, cfg: Config | None = None, **options: Any) -> None:
    with open_run(path, cfg, **options) as folder:
        folder.record(1, {"loss": 1.0})
        folder.save(1, State({}, {"step": 1}))


def test_a_second_process_is_refused_within_a_second_and_told_the_owner(forks: Any, tmp_path: Path, appears: Any) -> None:
    child = forks.start("hold", tmp_path)
    appears(tmp_path / "held")
    started = time.monotonic()
    with pytest.raises(RunError) as caught:
        open_run(tmp_path)
    assert time.monotonic() - started < 1.0
    owner = f"process {child.pid} on {socket.gethostname()} (surefoot ppo)"
    assert str(caught.value) == f"{tmp_path} is in use by {owner}. Wait for it, stop it, or choose another --out."
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    open_run(tmp_path).close()  # the lock died with its holder


def test_a_second_folder_in_the_same_process_is_refused_as_well(tmp_path: Path) -> None:
    with open_run(tmp_path), pytest.raises(RunError, match=f"in use by process {os.getpid()} "):
        open_run(tmp_path)
    open_run(tmp_path).close()


def test_the_refused_process_leaves_no_trace(tmp_path: Path) -> None:
    with open_run(tmp_path):
        before = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
        with pytest.raises(RunError):
            open_run(tmp_path, Config(seed=5))
        assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == before


def test_an_owner_that_did_not_write_its_name_does_not_make_the_second_wait_for_ever(tmp_path: Path) -> None:
    with open_run(tmp_path):
        (tmp_path / "run.lock").write_bytes(b"")
        with pytest.raises(RunError, match="in use by a process that did not write its name"):
            open_run(tmp_path)


def test_a_worker_that_outlives_a_killed_run_does_not_hold_its_lock(forks: Any, tmp_path: Path, appears: Any) -> None:
    child = forks.start("hold", tmp_path, orphan=True)
    appears(tmp_path / "held")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    open_run(tmp_path).close()


def test_a_dtype_that_auto_settled_elsewhere_is_named(tmp_path: Path) -> None:
    begin(tmp_path, Config(model=ModelConfig(dtype="bfloat16")))
    with pytest.raises(RunError, match=r"same settings \(auto differs from machine to machine: --model\.dtype bfloat16\)\.$"):
        open_run(tmp_path, Config(model=ModelConfig(dtype="float32")))


def test_other_settings_are_refused_with_each_key_old_and_new(tmp_path: Path) -> None:
    begin(tmp_path, Config(seed=1, ppo=PPOConfig(kl_coef=0.05)))
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, Config(seed=2, ppo=PPOConfig(kl_coef=0.1, cliprange_high=0.3)))
    assert str(caught.value) == (
        f"{tmp_path} was started with other settings: seed 1 -> 2, ppo.cliprange_high None -> 0.3, ppo.kl_coef 0.05 -> 0.1. "
        "Choose another --out, or go on with the same settings."
    )
    assert read_config(tmp_path)["seed"] == 1
    open_run(tmp_path, Config(seed=1, ppo=PPOConfig(kl_coef=0.05))).close()  # the refusal gave the lock back


def test_more_than_eight_changes_are_counted(tmp_path: Path) -> None:
    begin(tmp_path)
    other = PPOConfig(
        kl_coef=0.2,
        vf_coef=2.0,
        gamma=0.9,
        lam=0.9,
        ent_coef=0.1,
        total_episodes=7,
        num_ppo_epochs=2,
        micro_batch_size=4,
        save_every=9,
    )
    with pytest.raises(RunError, match=r"ppo\.kl_coef 0\.05 -> 0\.2, .* and 1 more\. Choose"):
        open_run(tmp_path, Config(ppo=other))


def test_a_setting_that_this_version_does_not_have_any_more_is_a_difference(tmp_path: Path) -> None:
    begin(tmp_path)
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    content["ppo"]["old_knob"] = 3
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RunError, match=r"settings: ppo\.old_knob 3 -> \(not set\)\."):
        open_run(tmp_path)


def test_a_setting_that_came_with_a_later_version_is_no_difference_at_its_default(tmp_path: Path) -> None:
    begin(tmp_path)
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del content["ppo"]["gamma"], content["pairs"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(RunError, match=r"settings: ppo\.gamma \(not set\) -> 0\.9\. Choose"):
        open_run(tmp_path, Config(ppo=PPOConfig(gamma=0.9)))
    open_run(tmp_path).close()
    message = read_jsonl(tmp_path / "events.jsonl")[0]["message"]
    assert "ppo.gamma" in message and message.endswith(": unknown to the version that began this run, at their defaults")
    assert read_config(tmp_path)["ppo"]["gamma"] == 1.0


def test_threads_may_change_and_it_is_noted(tmp_path: Path) -> None:
    begin(tmp_path, Config(threads=1))
    open_run(tmp_path, Config(threads=2)).close()
    assert read_jsonl(tmp_path / "events.jsonl")[0]["message"] == "threads changed from 1 to 2: allowed; the last bits may differ"
    assert read_config(tmp_path)["threads"] == 2


def test_a_run_in_which_nothing_happened_yet_takes_other_settings(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_run(tmp_path):
        raise ZeroDivisionError  # say, the data were not found
    with open_run(tmp_path, Config(seed=4), verb="sft"):
        assert read_config(tmp_path)["seed"] == 4
        assert load_manifest(tmp_path)["verb"] == "sft"


def test_a_demo_whose_stages_have_begun_does_not_take_other_settings(tmp_path: Path) -> None:
    with open_run(tmp_path, verb="demo"):
        begin(tmp_path / "sft", verb="sft")
    with pytest.raises(RunError, match=r"was started with other settings: seed 0 -> 1"):
        open_run(tmp_path, Config(seed=1), verb="demo")
    with pytest.raises(RunError, match=r"holds a run already \(sft/\)"):
        open_run(tmp_path, verb="demo", resume="never")


@pytest.mark.parametrize(
    "cfg", [Config(), Config(ppo=PPOConfig(learning_rate=1e-5, kl_target=1.0 / 3, kl_controller="exponential"))]
)
def test_the_same_settings_are_the_same_after_a_trip_through_yaml(cfg: Config, tmp_path: Path) -> None:
    begin(tmp_path, cfg)
    open_run(tmp_path, cfg).close()
    assert Config.model_validate(read_config(tmp_path)) == cfg


def test_another_verb_is_refused_and_named(tmp_path: Path) -> None:
    begin(tmp_path, verb="sft")
    with pytest.raises(RunError, match=r"holds a run of surefoot sft, not ppo\. Choose another --out\."):
        open_run(tmp_path)


def test_never_refuses_a_folder_that_holds_a_run_and_says_what(tmp_path: Path) -> None:
    open_run(tmp_path, resume="never").close()  # nothing recorded: nothing to lose
    begin(tmp_path, resume="never")
    with pytest.raises(RunError) as caught:
        open_run(tmp_path, resume="never")
    assert str(caught.value) == (
        f"{tmp_path} holds a run already (metrics.jsonl, checkpoint-1). Choose another --out, or --resume auto to go on with it."
    )


def test_inputs_that_changed_since_the_run_began_are_refused(tmp_path: Path) -> None:
    begin(tmp_path, extra={"data": {"train": "aaa", "prompts": "ccc"}})
    with pytest.raises(RunError, match=r"was started with other inputs: data\.train aaa -> bbb\. Choose another --out"):
        open_run(tmp_path, extra={"data": {"train": "bbb", "prompts": "ccc"}})
    open_run(tmp_path, extra={"data": {"train": "aaa", "prompts": "ccc"}}).close()
    open_run(tmp_path).close()
    assert load_manifest(tmp_path)["inputs"] == {"data": {"train": "aaa", "prompts": "ccc"}}


def test_inputs_may_be_declared_after_opening(tmp_path: Path) -> None:
    with open_run(tmp_path) as folder:
        folder.declare({"world_size": 1})
        folder.declare({"model": "aaa"})
        folder.save(1, State({}, {}))
    assert load_manifest(tmp_path)["inputs"] == {"world_size": 1, "model": "aaa"}
    with open_run(tmp_path) as folder, pytest.raises(RunError, match=r"other inputs: world_size 1 -> 2\."):
        folder.declare({"world_size": 2})


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"a: [", b"\xff", b"!!python/object/apply:os.mkdir [canary]\n"])
def test_a_config_yaml_that_is_no_settings_is_one_line_and_executes_nothing(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begin(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.yaml (cannot be read|holds no settings)"):
        open_run(tmp_path / "run")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_a_manifest_that_is_none_is_one_line(content: bytes, tmp_path: Path) -> None:
    begin(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(RunError, match=r"manifest\.json is (damaged|not the manifest)"):
        open_run(tmp_path)
