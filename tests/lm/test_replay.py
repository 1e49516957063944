"""What replay.jsonl holds of an answer, token by token, and that it stays small."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.api import PPORun
from surefoot.core import standardize
from surefoot.runs import read_jsonl
from surefoot.stages import replay
from surefoot.stages.replay import chosen_rows, is_replayed, suspicion
from tiny_language import make_backbone, their_logp

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked"]
SETTINGS = {
    "rollout.response_length": 5,
    "ppo.rollout_batch_size": 12,
    "ppo.total_episodes": 24,
    "ppo.learning_rate": 0.05,
    "model.lora_rank": 2,
}


def lengths(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(len(completion)) for completion in completions]


def vowels(texts: list[str]) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in texts]


def learned(model: Any, tokenizer: Any, out: Path, **changed: Any) -> tuple[PPORun, list[Any]]:
    run = PPORun(
        make_backbone(model, tokenizer),
        prompts=PROMPTS,
        reward=lengths,
        judges={"vowels": vowels},
        settings=SETTINGS | changed,
        out=out,
    )
    return run, list(run)


def test_a_line_holds_the_figures_of_every_token(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    """Oracles: transformers' own log-probs of SFT model and updated policy; the batch that was learned from."""
    run, steps = learned(model, tokenizer, tmp_path / "run")
    rows = read_jsonl(tmp_path / "run/replay.jsonl")
    assert [row["step"] for row in rows] == [1] * 8 + [2] * 8
    seen = steps[-1].rollout
    batch = seen.batch
    advantages = standardize(batch.advantages, batch.mask)
    merged = run.model.model
    for row in rows[8:]:
        i = row["row"]
        mask = batch.mask[i]
        prompt = seen.prompts.ids[i][seen.prompts.mask[i]].tolist()
        answer = batch.actions[i][mask].tolist()
        figures = {name: torch.tensor(column) for name, column in row["figures"].items()}
        assert row["length"] == len(row["tokens"]) == len(row["clipped"]) == len(answer)
        torch.testing.assert_close(figures["logp"], batch.logp_old[i][mask], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(figures["logp_sft"], their_logp(model, prompt, answer), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(figures["kl"], figures["logp"] - figures["logp_sft"], rtol=1e-2, atol=2e-3)  # k1
        torch.testing.assert_close(figures["value"], batch.values_old[i][mask], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(figures["advantage"], advantages[i][mask], rtol=1e-3, atol=1e-4)
        now = their_logp(merged, prompt, answer)
        torch.testing.assert_close(figures["ratio"], (now - batch.logp_old[i][mask]).exp(), rtol=2e-3, atol=1e-3)
        cut = [(a > 0 and r > 1.2) or (a < 0 and r < 0.8) for a, r in zip(advantages[i][mask], figures["ratio"], strict=True)]
        assert row["clipped"] == [int(x) for x in cut]
        assert row["judges"]["vowels"] == vowels([seen.prompts.text[i] + seen.completions.text[i]])[0]
        assert "".join(row["tokens"]) == tokenizer.decode(answer, skip_special_tokens=False)
    assert any(1 in row["clipped"] for row in rows), "no ratio left the range: the run shows nothing"


def test_half_of_the_answers_are_those_that_the_reward_prefers_most_to_the_judge(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    _, steps = learned(model, tokenizer, tmp_path / "run")
    seen = steps[0].rollout
    scores = torch.arange(12.0)
    seen = replace(seen, scores=replace(seen.scores, value=scores))
    judged = [0.0] * 12
    judged[11], judged[10] = 9.0, 8.0  # the best two by the reward are the best by the judge, the others tie
    assert chosen_rows(seen, {"j": judged}) == [0, 1, 2, 3, 7, 8, 9, 11]
    assert chosen_rows(seen, {}) == [0, 1, 2, 3, 8, 9, 10, 11]


def test_suspicion_is_the_gap_of_the_ranks_and_ties_share_theirs() -> None:
    assert suspicion([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == [-1.0, 0.0, 1.0]
    assert suspicion([5.0, 5.0, 7.0], [0.0, 1.0, 1.0]) == [0.25, -0.5, 0.25]
    assert suspicion([4.0], [2.0]) == [0.0]


@pytest.mark.parametrize("num_updates", [1, 22, 100, 101, 5_000])
def test_the_number_of_recorded_updates_is_bounded_with_the_first_and_the_last_among_them(num_updates: int) -> None:
    recorded = [update for update in range(1, num_updates + 1) if is_replayed(update, num_updates)]
    assert len(recorded) == min(num_updates, replay.MAX_UPDATES)
    assert recorded[0] == 1 and recorded[-1] == num_updates


def test_long_answers_and_prompts_are_cut_and_counted(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_TOKENS", 2)
    monkeypatch.setattr(replay, "MAX_PROMPT", 3)
    learned(model, tokenizer, tmp_path / "run")
    rows = read_jsonl(tmp_path / "run/replay.jsonl")
    assert max(len(row["tokens"]) for row in rows) == 2 < max(row["length"] for row in rows)
    assert {row["prompt"] for row in rows} == {"was", "med", "the", "ked"}


def test_pieces_add_up_to_the_text_and_a_letter_of_several_tokens_stands_once(model: Any, tokenizer: Any) -> None:
    codec = make_backbone(model, tokenizer).codec
    for text in ("the film was good", "a joy \N{SLIGHTLY SMILING FACE} z\N{LATIN SMALL LETTER E WITH ACUTE}", "\n\n", ""):
        ids = codec.completion_ids(text)
        pieces = codec.pieces(ids)
        assert len(pieces) == len(ids) and "".join(pieces[:-1]) == text
        assert pieces[-1] == tokenizer.decode([codec.eos_ids[0]])
        assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    half = codec.completion_ids("\N{SLIGHTLY SMILING FACE}", end=False)[:-1]
    assert "\N{REPLACEMENT CHARACTER}" in codec.pieces(half)[-1]  # an answer cut in the middle of a letter
