"""A reward model of another architecture and another tokenizer: a BERT with word pieces pays a Llama with byte pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import BertWordPieceTokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
)

from surefoot.api import PPORun
from surefoot.rewards.model import SIDECAR
from tiny_language import TEXTS, make_backbone, sharpened

PROMPTS = ["the film was", "the plot seemed", "the", "the cast looked rather"]
MEAN, DEVIATION = 0.25, 2.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with one label, scores that differ from text to text, and the unit of its scores."""
    path = tmp_path_factory.mktemp("bert")
    pieces = BertWordPieceTokenizer()
    pieces.train_from_iterator(TEXTS, vocab_size=90, min_frequency=1, show_progress=False)
    pieces.save_model(str(path))
    tokenizer = BertTokenizerFast(vocab=str(path / "vocab.txt"), model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = sharpened(BertForSequenceClassification(config), 12.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / SIDECAR).write_text(json.dumps({"mean": MEAN, "deviation": DEVIATION}), encoding="utf-8")
    return path


def alone(folder: Path, texts: Sequence[str]) -> list[float]:
    """What transformers says of each text, one at a time, in the model's unit."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        raw = [float(model(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]
    return [(score - MEAN) / DEVIATION for score in raw]


def test_its_scores_in_ppo_are_those_of_the_model_alone_and_move_the_policy(folder: Path, model: Any, tokenizer: Any) -> None:
    backbone = make_backbone(model, tokenizer)
    assert not backbone.codec.has_ids_of(AutoTokenizer.from_pretrained(folder))
    settings = {
        "rollout.response_length": 8,
        "ppo.rollout_batch_size": 8,
        "ppo.total_episodes": 16,
        "ppo.learning_rate": 0.02,
        "reward_source.batch_size": 3,
    }
    run = PPORun(backbone, prompts=PROMPTS, reward=folder, settings=settings)
    before = [weight.detach().clone() for _, weight in run.parts.policy.named_policy_parameters()]
    for step in run:
        paid = step.rollout.scores.value.tolist()
        texts = [p + c for p, c in zip(step.rollout.prompts.text, step.rollout.completions.text, strict=True)]
        assert len(set(texts)) > 4 and max(paid) - min(paid) > 0.1
        assert paid == pytest.approx(alone(folder, texts), abs=1e-5)
    after = [weight for _, weight in run.parts.policy.named_policy_parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
