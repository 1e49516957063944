"""The page for users of TRL's PPO names every option of theirs, and no setting that is not there."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from surefoot.config import Config
from surefoot.config_file import load_config
from surefoot.config_names import members

PAGE = (Path(__file__).parents[2] / "docs/coming-from-trl.md").read_text(encoding="utf-8")
# the fields that TRL 1.12.0's PPOConfig adds to transformers' TrainingArguments, and the one of those with a row
TRL_OPTIONS = re.findall(
    r"\w+",
    """
    learning_rate dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size
    num_sample_generations response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path
    world_size num_total_batches micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size
    push_to_hub report_to reward_model_path model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator
    cliprange vf_coef cliprange_value gamma lam ds3_gather_for_generation
    """,
)
ROWS = [line.split("|")[1:4] for line in PAGE.split("## Arguments")[0].splitlines() if line.startswith("| `")]


def default_of(name: str) -> object:
    section, _, key = name.partition(".")
    part = Config.model_fields[section].annotation
    assert isinstance(part, type) and issubclass(part, BaseModel), name
    return part.model_fields[key].default


@pytest.mark.parametrize("option", TRL_OPTIONS)
def test_every_option_of_trl_has_its_row(option: str) -> None:
    assert any(f"`{option}`" in theirs for theirs, _, _ in ROWS)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:model|ppo|rollout|reward_source)\.[a-z_]+)", PAGE))))
def test_every_setting_that_the_page_names_is_there(name: str) -> None:
    default_of(name)


def test_report_to_takes_trl_s_words_and_is_off_by_default() -> None:
    row = next(ours for theirs, ours, _ in ROWS if theirs.strip() == "`report_to` (none)")
    assert row.strip() == "`report_to` (none)" and Config().report_to == ()
    note = next(note for theirs, _, note in ROWS if "report_to" in theirs)
    named = tuple(re.findall(r"tensorboard|wandb|trackio|mlflow", note))
    assert named == members(Config.model_fields["report_to"].annotation)


@pytest.mark.parametrize("name, shown", re.findall(r"`((?:ppo|rollout)\.[a-z_]+)` \(([0-9.,e-]+|off|k1)\)", PAGE))
def test_the_defaults_that_the_page_tells_are_the_schemas(name: str, shown: str) -> None:
    default = default_of(name)
    assert default == (None if shown == "off" else shown if shown == "k1" else float(shown.replace(",", "")))


def test_the_command_that_runs_what_trl_ran_is_a_valid_one() -> None:
    command = PAGE.split("```")[1].replace("\\\n", " ").split()
    cfg = load_config(None, command[2:], verb="ppo")
    assert (cfg.model.tuning, cfg.ppo.critic, cfg.ppo.vf_coef, cfg.rollout.temperature) == ("full", "model", 0.1, 0.7)
