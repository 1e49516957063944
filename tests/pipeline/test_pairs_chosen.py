"""Which pairs are queued: every rule against what it promises, with models of different tokenizers."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.build import build_pairs
from surefoot.cli import run
from surefoot.config_file import load_config
from surefoot.embedded.tiny_world import sentences
from surefoot.embedded.worlds import opened
from surefoot.errors import ConfigError
from surefoot.lm.tiny import tiny_model, tiny_tokenizer
from surefoot.preferences import PreferenceStore
from surefoot.rewards.novelty import TrainedOn, trained_on
from surefoot.runs import load_manifest, read_jsonl
from surefoot.stages import pairs
from surefoot.stages.answers import sequence_kl

PROMPTS = sorted({opened(text)["prompt"] for text in sentences(60, seed=3)})[:20]
SMALL = ("--rollout.response_length=6", "--rollout.batch_size=8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of three models: two of one tokenizer with other weights, and one of another tokenizer."""
    root = tmp_path_factory.mktemp("models")
    for name, vocabulary, seed in (("one", 384, 1), ("two", 384, 2), ("other", 300, 3)):
        tokenizer = tiny_tokenizer(sentences(200, seed=7), vocabulary=vocabulary)
        tiny_model(tokenizer, width=32, seed=seed).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: str(root / name) for name in ("one", "two", "other")}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))


def vowels(prompts: list[str], completions: list[str]) -> list[float]:
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]


def queued(model: str, *words: str, **given: Any) -> tuple[PreferenceStore, list[pairs.PairsStep]]:
    """The store after a run of `pairs` from Python."""
    cfg = load_config(None, [f"--model.name={model}", *SMALL, *words], verb="pairs")
    parts = build_pairs(cfg, lambda line: None, prompts=PROMPTS, **given)
    store = PreferenceStore.open("votes.db")
    return store, list(pairs.steps(parts, cfg, store))


def margins(store: PreferenceStore) -> list[float]:
    return [abs(vowels([], [str(pair.a)])[0] - vowels([], [str(pair.b)])[0]) for pair in store.pairs_without_votes()]


def test_two_models_of_different_tokenizers_answer_the_same_prompts(models: dict[str, str]) -> None:
    words = f"--pairs.models=[{models['one']}, {models['other']}]"
    assert run(["pairs", f"--model.name={models['one']}", words, "--data.prompts=prompts.jsonl", *SMALL, "--out", "run"]) == 0
    with closing(sqlite3.connect("run/preferences.db")) as reader:
        written = reader.execute("SELECT model, count(*) FROM answers GROUP BY model").fetchall()
        ids = reader.execute("SELECT content, token_ids FROM answers WHERE model = ?", (models["other"],)).fetchall()
    assert dict(written).keys() == {models["one"], models["other"]}
    assert len(list(dict(written).values())) == 2 and min(dict(written).values()) >= 18
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models["other"])
    for text, tokens in ids:  # the ids are the author's own
        assert tokenizer.decode(json.loads(tokens), skip_special_tokens=True) == json.loads(text)


def test_the_least_certain_pairs_are_those_of_the_smallest_margin(models: dict[str, str]) -> None:
    every, _ = queued(models["one"], "--pairs.num_answers=3")
    all_margins = sorted(margins(every))
    every.close()
    Path("votes.db").unlink()
    store, steps = queued(
        models["one"], "--pairs.num_answers=3", "--pairs.max_pairs=9", "--pairs.select=uncertainty", reward=vowels
    )
    assert sorted(margins(store)) == all_margins[:9]
    assert {pair.reason for pair in store.pairs_without_votes()} == {"uncertainty"}
    assert sum(step.num_pairs for step in steps) == 9


def test_a_reward_reads_the_answers_of_another_tokenizer_by_their_text(models: dict[str, str]) -> None:
    words = [f"--pairs.models=[{models['one']}, {models['other']}]", "--pairs.max_pairs=30", "--pairs.select=uncertainty"]
    seen: list[str] = []

    def watched(prompts: list[str], completions: list[str]) -> list[float]:
        seen.extend(completions)
        return vowels(prompts, completions)

    queued(models["one"], *words, reward=watched)
    with closing(sqlite3.connect("votes.db")) as reader:
        other = reader.execute("SELECT content FROM answers WHERE model = ?", (models["other"],)).fetchall()
    assert {json.loads(text) for (text,) in other} <= set(seen)


def test_best_of_n_queues_one_pair_a_prompt_of_the_best_and_another(models: dict[str, str]) -> None:
    store, _ = queued(models["one"], "--pairs.best_of=4", reward=vowels)
    found = store.pairs_without_votes()
    assert len(found) >= 18
    assert all(vowels([], [str(pair.a)])[0] >= vowels([], [str(pair.b)])[0] for pair in found)
    assert any(vowels([], [str(pair.a)])[0] > vowels([], [str(pair.b)])[0] for pair in found)
    assert {pair.reason for pair in found} == {"best of 4, random"}


def test_random_choice_takes_so_many_and_depends_on_the_seed_not_on_the_batches(models: dict[str, str]) -> None:
    taken = []
    for words in (["--rollout.batch_size=20"], ["--rollout.batch_size=20", "--seed=1"]):
        cfg = load_config(None, [f"--model.name={models['one']}", SMALL[0], "--pairs.max_pairs=6", *words], verb="pairs")
        parts = build_pairs(cfg, lambda line: None, prompts=PROMPTS)
        with PreferenceStore.open(f"{len(taken)}.db") as store:
            list(pairs.steps(parts, cfg, store))
            taken.append([pair.prompt for pair in store.pairs_without_votes()])
    assert [len(one) for one in taken] == [6, 6]
    assert taken[0] != taken[1]


def test_kl_takes_the_prompts_on_which_the_model_moved_most(models: dict[str, str]) -> None:
    words = [
        f"--model.name={models['one']}",
        *SMALL,
        "--pairs.select=kl",
        f"--pairs.against={models['two']}",
        "--pairs.max_pairs=5",
    ]
    cfg = load_config(None, words, verb="pairs")
    parts = build_pairs(cfg, lambda line: None, prompts=PROMPTS)
    with PreferenceStore.open("votes.db") as store:
        list(pairs.steps(parts, cfg, store))
        taken = {pair.prompt for pair in store.pairs_without_votes()}
    moved: dict[str, float] = {}
    for start in range(0, len(PROMPTS), 8):  # the same draws once more, measured by hand
        index = range(start, min(start + 8, len(PROMPTS)))
        chance = torch.Generator().manual_seed(start)
        author = parts.authors[0]
        for _ in range(2):
            said = author.answer(index, chance)
            kl = sequence_kl(author.backbone, parts.judgement.against, author.take(index), said, 1.0)  # type: ignore[arg-type]
            for place, number in zip(index, kl, strict=True):
                moved[PROMPTS[place]] = moved.get(PROMPTS[place], 0.0) + number / 2
    assert taken == set(sorted(moved, key=lambda prompt: -moved[prompt])[:5])


def test_an_ensemble_ranks_by_what_its_members_say_of_the_margin_and_by_distance_too(models: dict[str, str]) -> None:
    rows = [{"prompt": p, "chosen": " was superb .", "rejected": " was awful ."} for p in PROMPTS]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = f"--model.name={models['one']}"
    assert run(["reward", model, "--data.train=train.jsonl", "--reward.ensemble=3", "--out", "rm"]) == 0
    base = ["--pairs.max_pairs=4", "--pairs.num_answers=3", "--reward_source.source=rm/final", "--data.prompts=prompts.jsonl"]
    for select in ("disagreement", "distance"):
        assert run(["pairs", model, *base, f"--pairs.select={select}", *SMALL, "--out", select]) == 0
        every = read_jsonl(Path(f"{select}/samples.jsonl"))
        if select == "disagreement":
            margins = [[x - y for x, y in zip(row["a"]["members"], row["b"]["members"], strict=True)] for row in every]
            figures = [float(np.std(each)) for each in margins]
            assert {len(each) for each in margins} == {3}
        else:
            figures = [(row["a"]["distance"] + row["b"]["distance"]) / 2 for row in every]
        assert len(set(figures)) > 10  # it tells pairs apart
        with PreferenceStore.open(f"{select}/preferences.db") as store:
            texts = {(pair.a, pair.b) for pair in store.pairs_without_votes()}
        taken = [figure for figure, r in zip(figures, every, strict=True) if (r["a"]["text"], r["b"]["text"]) in texts]
        assert sorted(taken) == pytest.approx(sorted(figures)[-4:])


@pytest.mark.parametrize("method", ["head", "adapter"])
def test_distance_takes_the_answers_least_like_those_trained_on(method: str, models: dict[str, str]) -> None:
    rows = [{"prompt": p, "chosen": " was superb .", "rejected": " was awful ."} for p in PROMPTS]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = f"--model.name={models['one']}"
    assert run(["reward", model, "--data.train=train.jsonl", f"--reward.method={method}", "--out", "rm"]) == 0
    assert isinstance(TrainedOn.load(Path("rm/final")), TrainedOn)
    words = ["--pairs.select=distance", "--pairs.max_pairs=4", "--reward_source.source=rm/final", "--data.prompts=prompts.jsonl"]
    assert run(["pairs", model, *words, *SMALL, "--out", "run"]) == 0
    every = [row for row in read_jsonl(Path("run/samples.jsonl"))]
    distances = sorted((row["a"]["distance"] + row["b"]["distance"]) / 2 for row in every)
    assert distances[0] > 1  # noise of a random model is unlike sentences
    with PreferenceStore.open("run/preferences.db") as store:
        texts = {(pair.a, pair.b) for pair in store.pairs_without_votes()}
    taken = [(r["a"]["distance"] + r["b"]["distance"]) / 2 for r in every if (r["a"]["text"], r["b"]["text"]) in texts]
    assert sorted(taken) == distances[-4:]
    assert load_manifest(Path("run"))["facts"]["pairs"] == 4


def test_mahalanobis_distance_is_1_on_average_over_the_answers_trained_on_and_follows_scipy() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn((400, 6), generator=draw) @ torch.randn((6, 6), generator=draw) + 3
    seen = trained_on(rows.split(64))
    assert torch.allclose(seen.covariance, torch.cov(rows.T.double(), correction=0), atol=1e-8)
    assert seen.distances(rows).square().mean().sqrt().item() == pytest.approx(1, abs=0.1)
    ridge = 1e-2 * seen.covariance.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    from scipy.spatial.distance import mahalanobis

    inverse = torch.linalg.inv(seen.covariance + ridge).numpy()
    expected = mahalanobis(rows[0].double().numpy(), seen.mean.numpy(), inverse) / 6**0.5
    assert seen.distances(rows[:1]).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--pairs.select=uncertainty"], "pairs.select = 'uncertainty' has no effect: all pairs are queued. Set max_pairs"),
        (["--pairs.select=kl", "--pairs.max_pairs=3"], 'select = "kl" needs a model to measure from'),
        (["--pairs.best_of=1"], "best_of = 1 leaves no other answer"),
        (["--pairs.best_of=4", "--pairs.num_answers=3"], "num_answers = 3 has no effect"),
        (["--pairs.best_of=4", "--pairs.models=[a, b]"], "best_of = 4 is of one model's answers, and models names 2"),
        (["--pairs.against=x"], "against = 'x' has no effect: select = \"random\" compares with no other model"),
        (["--pairs.selct=kl"], "no setting pairs.selct. Did you mean pairs.select?"),
        (["--pairs.max_pairs=3", "--pairs.select=uncertain"], "Did you mean uncertainty?"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(None, words, verb="pairs")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_reward_that_is_not_needed_and_one_that_is_missing_are_refused(models: dict[str, str]) -> None:
    for words, said in (
        (["--reward_source.source=x:y"], "reward_source.source = 'x:y' has no effect: no pair is chosen by a score"),
        (
            ["--reward_source.sources=[x:y, length:1-2]"],
            "reward_source.sources = ['x:y', 'length:1-2'] has no effect: no pair is chosen",
        ),
        (["--pairs.best_of=2"], "reward_source.source is not set"),
        (
            ["--pairs.select=distance", "--pairs.max_pairs=2", "--reward_source.sources=[regex:x, length:1-2]"],
            "reward_source.sources = ['regex:x', 'length:1-2'] does not say what it was trained on",
        ),
        (["--pairs.select=distance", "--pairs.max_pairs=2"], "reward_source.source is not set"),
        (
            ["--pairs.select=disagreement", "--pairs.max_pairs=2", "--reward_source.source=regex:x"],
            "is no ensemble, so nobody in it",
        ),
    ):
        cfg = load_config(None, [f"--model.name={models['one']}", *words], verb="pairs")
        with pytest.raises(ConfigError, match=re.escape(said)):
            build_pairs(cfg, lambda line: None, prompts=PROMPTS)


def test_an_annotator_is_asked_once_a_pair_though_the_run_is_repeated(models: dict[str, str]) -> None:
    """A kill between the store's commit and the run's own makes a batch anew; who is no function of the pair changes its mind."""
    asked: list[str] = []

    def moody(prompt: str, a: str, b: str) -> str:
        asked.append(a)
        return "a" if len(asked) <= len(PROMPTS) else "b"

    first, _ = queued(models["one"], annotator=moody)
    before, count = first.digest(), len(asked)
    first.close()
    again, steps = queued(models["one"], annotator=moody)
    assert again.digest() == before and len(asked) == count == again.counts().votes
    assert sum(step.num_votes for step in steps) == count  # of the batch, in the store: a run that was killed records the same


def test_an_annotator_may_give_a_strength_which_becomes_the_margin(models: dict[str, str]) -> None:
    def by_length(prompt: str, a: str, b: str) -> tuple[str, int]:
        return ("a" if len(a) > len(b) else "b", min(4, 1 + abs(len(a) - len(b)) // 4))

    store, _ = queued(models["one"], annotator=by_length)
    assert {vote.strength for vote in store.votes()} <= {1, 2, 3, 4}
    assert any(preference.margin for preference in store.preferences())
