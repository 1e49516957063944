"""R5: NaN or infinity at twelve places of a PPO run. A bad step costs one step, bad state rolls back, no checkpoint holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

import surefoot.ppo
from surefoot.api import PPORun
from surefoot.config import Config
from surefoot.errors import Diverged, RewardError, TrainingError
from surefoot.rollout.packed import PackedDecoder
from surefoot.runs import RunFolder, State, checkpoint, read_jsonl
from surefoot.stages import ppo_lm
from tiny_language import make_backbone, make_model, make_tokenizer

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
UPDATES, EPOCHS = 4, 2
SMALL: dict[str, Any] = {
    "rollout.response_length": 4,
    "ppo.rollout_batch_size": 4,
    "ppo.total_episodes": 4 * UPDATES,
    "ppo.num_ppo_epochs": EPOCHS,
    "ppo.learning_rate": 0.01,
}
BAD = [float("nan"), float("inf")]


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


class Once:
    """True at the call of number `at` alone: a fault that passes, as a flipped bit or a driver's hiccup does."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self) -> bool:
        self.calls += 1
        return self.calls == self.at


@pytest.fixture(scope="module")
def given() -> tuple[Any, Any]:
    tokenizer = make_tokenizer()
    return make_model(tokenizer), tokenizer


Start = Callable[..., PPORun]


@pytest.fixture
def start(tmp_path: Path, given: tuple[Any, Any]) -> Start:
    """A run of 4 updates of 2 steps in tmp_path/run; called again, the same run from its last checkpoint."""

    def begin(reward: Any = lengths, **changed: Any) -> PPORun:
        return PPORun(make_backbone(*given), prompts=PROMPTS, reward=reward, settings=SMALL | changed, out=tmp_path / "run")

    return begin


def events(folder: Path) -> str:
    return " ".join(row["message"] for row in read_jsonl(folder / "events.jsonl"))


def assert_all_finite(folder: Path) -> None:
    files = [*folder.glob("checkpoint-*/*.safetensors"), *folder.glob("final/*.safetensors")]
    assert files
    for file in files:
        for name, tensor in load_file(file).items():
            assert bool(tensor.isfinite().all()), f"{file}: {name}"


def assert_one_step_lost(run: PPORun, folder: Path) -> None:
    """Seven steps of eight were taken, the run is whole, and nothing was rolled back."""
    stats = [step.stats for step in run]
    assert [(s.steps, s.skipped) for s in stats] == [(2, 0), (1, 1), (2, 0), (2, 0)]
    assert "Going back" not in events(folder)
    assert_all_finite(folder)


def assert_rolled_back(run: PPORun, folder: Path, why: str) -> None:
    """All updates were made in the end; metrics.jsonl holds each once, and tells of the roll-back."""
    run.learn()
    rows = read_jsonl(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, UPDATES + 1))
    assert [row["optimizer/rollbacks"] for row in rows] == [0, 1, 1, 1]
    assert why in events(folder) and "Going back to checkpoint-1 with other seeds, 1 of 1 times" in events(folder)
    assert_all_finite(folder)


def poisoned(function: Any, poison: Callable[[Any], Any], once: Once) -> Any:
    """`function`, whose result is poisoned once."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        return poison(result) if once() else result

    return wrapped


IN_UPDATE_2 = EPOCHS + 1  # the number of the first minibatch of update 2


@pytest.mark.parametrize("bad", BAD)
def test_loss(bad: float, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(result: Any) -> Any:
        loss, parts = result
        return loss * bad, dataclasses.replace(parts, loss_total=parts.loss_total * bad)

    monkeypatch.setattr(surefoot.ppo, "ppo_loss", poisoned(surefoot.ppo.ppo_loss, poison, Once(IN_UPDATE_2)))
    assert_one_step_lost(start(), tmp_path / "run")


@pytest.mark.parametrize("bad", BAD)
def test_gradient(bad: float, start: Start, tmp_path: Path) -> None:
    run, once = start(), Once(IN_UPDATE_2)
    run.parts.policy.value_head.weight.register_hook(lambda gradient: gradient + bad if once() else gradient)
    assert_one_step_lost(run, tmp_path / "run")
    assert "the gradient norm is" in events(tmp_path / "run")


@pytest.mark.parametrize("field", ["logp", "values"])  # logp: the ratio is made of it
@pytest.mark.parametrize("bad", BAD)
def test_ratio_and_value_in_the_update(bad: float, field: str, start: Start, tmp_path: Path) -> None:
    run, once = start(), Once(IN_UPDATE_2)
    policy = run.parts.policy

    def hook(module: Any, args: Any, said: Any) -> Any:
        learning = torch.is_grad_enabled()
        return dataclasses.replace(said, **{field: getattr(said, field) * bad}) if learning and once() else said

    policy.register_forward_hook(hook)
    assert_one_step_lost(run, tmp_path / "run")


@pytest.mark.parametrize("bad", BAD)
def test_advantage(bad: float, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every minibatch of the update reads it, so all its steps are left out, and the next update goes on."""

    def poison(seen: Any) -> Any:
        return dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, advantages=seen.batch.advantages + bad))

    monkeypatch.setattr(ppo_lm, "rollout", poisoned(ppo_lm.rollout, poison, Once(2)))
    stats = [step.stats for step in start()]
    assert [(s.steps, s.skipped) for s in stats] == [(2, 0), (0, 2), (2, 0), (2, 0)]
    assert "nor is the rollout's advantages" in events(tmp_path / "run")
    assert_all_finite(tmp_path / "run")


@pytest.mark.parametrize("bad", BAD)
def test_logits(bad: float, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start()
    spoil = Once(1)
    plain = PackedDecoder.logits

    def logits(decoder: PackedDecoder, states: Any, temperature: float) -> Any:
        at_update_2 = (tmp_path / "run/checkpoint-1").exists()
        return plain(decoder, states, temperature) + (bad if at_update_2 and spoil() else 0)

    monkeypatch.setattr(PackedDecoder, "logits", logits)
    assert_rolled_back(run, tmp_path / "run", "log-probabilities are not finite at token 1")


@pytest.mark.parametrize(("field", "why"), [("values_old", "The critic's values of"), ("logp_old", "The policy's log-probs")])
@pytest.mark.parametrize("bad", BAD)
def test_figures_of_the_rollout(
    bad: float, field: str, why: str, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poison(seen: Any) -> Any:
        return dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, **{field: getattr(seen.batch, field) + bad}))

    monkeypatch.setattr(ppo_lm, "rollout", poisoned(ppo_lm.rollout, poison, Once(2)))
    assert_rolled_back(start(), tmp_path / "run", why)


@pytest.mark.parametrize("bad", BAD)
def test_reference(bad: float, start: Start, tmp_path: Path) -> None:
    run = start()
    policy = run.parts.policy

    def poison(said: Any) -> Any:
        return said[0] + bad, said[1]

    policy.reference = poisoned(policy.reference, poison, Once(2))  # type: ignore[method-assign]
    assert_rolled_back(run, tmp_path / "run", "The reference's log-probs, KLs to the reference of the rollout of update 2")


@pytest.mark.parametrize("bad", BAD)
def test_score_is_an_error_of_the_reward_and_never_trained_on(bad: float, start: Start, tmp_path: Path) -> None:
    once = Once(2)

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [bad] * len(prompts) if once() else lengths(prompts, completions)

    with pytest.raises(RewardError, match="a score is finite"):
        start(reward).learn()
    assert_all_finite(tmp_path / "run")
    start().learn()  # the same run, with a reward that is mended
    assert [row["step"] for row in read_jsonl(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", BAD)
def test_weights(bad: float, start: Start, tmp_path: Path) -> None:
    run, once = start(), Once(IN_UPDATE_2 + 1)  # the last step of update 2: no later minibatch can refuse it

    def spoil(optimizer: Any, args: Any, kwargs: Any) -> None:
        if once():
            optimizer.param_groups[0]["params"][3].data[0, 0] = bad

    handle = register_optimizer_step_post_hook(spoil)
    try:
        assert_rolled_back(run, tmp_path / "run", "(weights) are not finite after update 2")
    finally:
        handle.remove()


@pytest.mark.parametrize("bad", BAD)
def test_optimizer_state(bad: float, start: Start, tmp_path: Path) -> None:
    run, once = start(), Once(IN_UPDATE_2 + 1)

    def spoil(optimizer: Any, args: Any, kwargs: Any) -> None:
        if once():
            weight = optimizer.param_groups[0]["params"][0]
            optimizer.state[weight]["exp_avg_sq"][0, 0] = bad

    handle = register_optimizer_step_post_hook(spoil)
    try:
        assert_rolled_back(run, tmp_path / "run", "(optimizer) are not finite after update 2")
    finally:
        handle.remove()


@pytest.mark.parametrize("bad", BAD)
def test_embedding_that_is_trained_rolls_back(bad: float, start: Start, tmp_path: Path) -> None:
    run, once = start(**{"model.tuning": "full", "ppo.learning_rate": 1e-3}), Once(2)
    embedding = run.parts.policy.model.get_input_embeddings().weight

    def reward(prompts: Any, completions: Any) -> Any:
        if once():
            embedding.data[:, 0] = bad
        return inner.score(prompts, completions)

    inner = run.parts.reward
    run.parts = dataclasses.replace(run.parts, reward=type("Spoiling", (), {"score": staticmethod(reward)})())
    assert_rolled_back(run, tmp_path / "run", "The policy's log-probs")


@pytest.mark.parametrize("bad", BAD)
def test_embedding_that_is_frozen_stops_the_run_and_is_named(bad: float, start: Start, tmp_path: Path) -> None:
    run, once = start(), Once(2)
    embedding = run.parts.policy.model.get_input_embeddings().weight

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        if once():
            embedding.data[:, 0] = bad
        return lengths(prompts, completions)

    run.parts = dataclasses.replace(run.parts, reward=start(reward).parts.reward)
    with pytest.raises(TrainingError, match=r"embed_tokens.weight is frozen and not finite.*loads it anew") as stopped:
        run.learn()
    assert "checkpoint-1. " in str(stopped.value) and stopped.value.exit_status == 3
    assert_all_finite(tmp_path / "run")
    start().learn()
    assert [row["step"] for row in read_jsonl(tmp_path / "run/metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("file", ["weights", "optimizer"])
def test_checkpoint_with_a_bad_number_is_neither_written_nor_trusted(
    bad: float, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = State({"weights": {"w": torch.ones(2)}, "optimizer": {"exp_avg/w": torch.ones(2)}}, {})
    spoiled = State({**good.tensors, file: {"w": torch.tensor([1.0, bad])}}, {})
    with RunFolder.open(tmp_path / "run", verb="ppo", cfg=Config()) as folder:
        folder.restore()
        folder.save(1, good)
        with pytest.raises(Diverged, match=rf"1 of 2 numbers of w \({file}\) are not finite, so checkpoint-2 was not written"):
            folder.save(2, spoiled)
        assert not (tmp_path / "run/checkpoint-2").exists()
        with monkeypatch.context() as patched:
            patched.setattr(checkpoint, "not_finite_in", lambda state: "")  # as an older version would have written it
            folder.save(2, spoiled)
    with RunFolder.open(tmp_path / "run", verb="ppo", cfg=Config()) as folder:
        state = folder.restore()
        assert state is not None and folder.newest == "checkpoint-1"
        assert torch.equal(state.tensors["weights"]["w"], torch.ones(2))
    assert "checkpoint-2 is damaged (1 of 2 numbers" in events(tmp_path / "run")


def test_weights_that_are_finite_and_say_nan_are_never_saved(start: Start, tmp_path: Path) -> None:
    """Weights of 1e38 are numbers; the states that they make are not."""
    run, once = start(), Once(IN_UPDATE_2 + 1)

    def spoil(optimizer: Any, args: Any, kwargs: Any) -> None:
        if once():
            for weight in optimizer.param_groups[0]["params"]:
                weight.data.fill_(1e38)

    handle = register_optimizer_step_post_hook(spoil)
    try:
        assert_rolled_back(run, tmp_path / "run", "The weights after update 2 are finite, but the log-probs")
    finally:
        handle.remove()


def always_bad(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From update 3 on every loss is NaN; it is a function of the state, as real divergence is."""
    plain = surefoot.ppo.ppo_loss

    def loss(*args: Any, **kwargs: Any) -> Any:
        value, parts = plain(*args, **kwargs)
        is_bad = (folder / "checkpoint-2").exists()
        return value, dataclasses.replace(parts, loss_total=parts.loss_total * torch.nan) if is_bad else parts

    monkeypatch.setattr(surefoot.ppo, "ppo_loss", loss)


@pytest.mark.parametrize("rollbacks", [0, 1, 2])
def test_a_run_that_diverges_again_stops_with_the_reason_and_where_to_go_on_from(
    rollbacks: int, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(**{"ppo.max_skipped_steps": 2, "ppo.max_rollbacks": rollbacks})
    always_bad(monkeypatch, tmp_path / "run")
    with pytest.raises(TrainingError) as stopped:
        run.learn()
    said = str(stopped.value)
    assert stopped.value.exit_status == 3 and not isinstance(stopped.value, Diverged)
    assert "2 optimizer steps in a row were refused (ppo.max_skipped_steps = 2): loss_total not finite" in said
    assert f"(ppo.max_rollbacks = {rollbacks}). Last good checkpoint: {tmp_path / 'run/checkpoint-2'}." in said
    assert events(tmp_path / "run").count("Going back to checkpoint-2") == rollbacks
    assert_all_finite(tmp_path / "run")


def test_without_a_checkpoint_the_first_bad_update_stops_the_run(start: Start, given: Any, tmp_path: Path) -> None:
    for run in (start(), PPORun(make_backbone(*given), prompts=PROMPTS, reward=lengths, settings=SMALL)):
        run.parts.policy.value_head.weight.data.fill_(torch.nan)
        with pytest.raises(TrainingError, match=r"There is no checkpoint to go back to\. Nothing was saved yet"):
            run.learn()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_run_killed_after_its_rollback_comes_the_same_way_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Update 3 diverges by the seeds of the run and not by others. Left in the middle, resumed, it ends with the same bytes."""
    plain = ppo_lm.check_rollout
    first_answers: list[Any] = []

    def check(seen: Any, update: int) -> None:
        plain(seen, update)
        if update == 3 and not first_answers:
            first_answers.append(seen.completions.ids)
        if update == 3 and torch.equal(seen.completions.ids, first_answers[0]):
            raise Diverged("These answers lead astray.")

    monkeypatch.setattr(ppo_lm, "check_rollout", check)
    settings = {"ppo.save_every": 2, "ppo.total_episodes": 20}
    start(**settings).learn()
    whole = {name: (tmp_path / "run" / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl", "replay.jsonl")}
    weights = (tmp_path / "run/checkpoint-5/weights.safetensors").read_bytes()
    (tmp_path / "run").rename(tmp_path / "whole")
    left = iter(start(**settings))
    for step in left:
        if step.update == 3:  # made after the rollback, and not saved
            break
    left.close()  # type: ignore[attr-defined]
    assert "Going back to checkpoint-2" in events(tmp_path / "run")
    start(**settings).learn()
    assert events(tmp_path / "run").count("Going back to checkpoint-2") == 2
    assert {name: (tmp_path / "run" / name).read_bytes() for name in whole} == whole
    assert (tmp_path / "run/checkpoint-5/weights.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("ppo.ratio_max", 1.0001, r"The ratio exploded at update 1: one token's passed ppo.ratio_max = 1.0001 \(ratio max "),
        ("ppo.grad_norm_max", 1e-4, r"The gradient exploded at update 1: its mean norm passed ppo.grad_norm_max = 0.0001"),
        ("ppo.kl_max", 1e-6, r"nats a sequence passed ppo.kl_max = 1e-06 at update 2. Last good checkpoint: .*checkpoint-1"),
    ],
)
def test_an_explosion_stops_the_run_before_it_is_saved(
    setting: str, value: float, said: str, start: Start, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=said) as stopped:
        start(**{setting: value, "ppo.kl_estimator": "exact"}).learn()
    assert stopped.value.exit_status == 3
    stopped_at = 2 if setting == "ppo.kl_max" else 1
    assert read_jsonl(tmp_path / "run/metrics.jsonl")[-1]["step"] == stopped_at  # what led there can be read
    assert not (tmp_path / f"run/checkpoint-{stopped_at}").exists()
