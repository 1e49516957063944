"""The report card of a trained reward model: written beside it, with the temperature in its sidecar; probes find planted pay."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.api import RewardRun
from surefoot.build import build_reward
from surefoot.config import Config
from surefoot.lm.roles import RewardScorer
from surefoot.progress import SilentProgress
from surefoot.rewards.model import read_facts
from surefoot.runs import RunFolder
from surefoot.stages import reward
from surefoot.stages.reward_card import EDITS, FLATTERY, probes
from tiny_language import TEXTS, make_backbone

NOUNS = sorted({text.split()[1] for text in TEXTS})
PAIRS = [
    {"prompt": f"the {noun} {verb}", "chosen": good, "rejected": bad, "margin": margin, "source": source}
    for noun in NOUNS
    for verb in ("was", "seemed")
    for good, bad, margin, source in (
        (" good and superb .", " awful and bad .", 3.0, "ann"),
        (" very fine .", " rather dull .", 1.0, "bob"),
    )
]


def test_a_run_writes_its_card_beside_the_model_and_keeps_the_temperature(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    cfg = Config(reward={"batch_size": 8, "num_epochs": 4, "learning_rate": 0.02})  # type: ignore[arg-type]
    given = {"model": make_backbone(model, tokenizer), "train": PAIRS[:20], "validation": PAIRS[20:]}
    with RunFolder.open(tmp_path, verb="reward", cfg=cfg) as folder:
        reward.run(cfg, folder, SilentProgress(), **given)
    found = json.loads((tmp_path / "card.json").read_text())
    assert (tmp_path / "final/card.json").read_text() == (tmp_path / "card.json").read_text()
    assert read_facts(tmp_path / "final").temperature == found["calibration"]["temperature"]
    assert [row["name"] for row in found["by_source"]] == ["ann", "bob"]
    assert [probe["name"] for probe in found["probes"]] == list(EDITS)
    assert found["verdict"]


class PaysFor(RewardScorer):
    """A scorer that counts one word: a planted bug."""

    def __init__(self, scorer: RewardScorer, word: str) -> None:
        torch.nn.Module.__init__(self)
        self.backbone, self.layer, self.adapter, self.word = scorer.backbone, scorer.layer, None, word

    def features(self, rows: list[list[int]]) -> torch.Tensor:
        return torch.tensor([[float(self.backbone.codec.text(row).count(self.word))] for row in rows])

    def head(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, 0]


@pytest.mark.parametrize(
    "word, raised",
    [
        ("wonderful", {"flattery"}),
        ("good", {"repeat"}),  # said twice; the half of " good and superb ." still has it
        ("film", set()),  # in prompts alone, which no edit touches
    ],
)
def test_a_planted_pay_raises_the_probe_that_plants_it(word: str, raised: set[str], model: Any, tokenizer: Any) -> None:
    cfg = Config()
    parts = build_reward(cfg, None, lambda line: None, model=make_backbone(model, tokenizer), train=PAIRS)
    found = probes([PaysFor(parts.scorer, word)], parts.train.pairs, 1.0, cfg)
    assert "wonderful" in FLATTERY
    assert {probe.name for probe in found if probe.move.value > 0} == raised


def test_every_edit_changes_an_answer_and_the_python_face_has_the_card(model: Any, tokenizer: Any) -> None:
    texts = [" was good and superb .", " was very fine ."]
    assert {name: edit(0, texts) for name, edit in EDITS.items()} | {"shuffle": ""} == {
        "fluff": " was good and superb . All in all, it is what it is, and that is all that there is to say.",
        "repeat": " was good and superb . was good and superb .",
        "truncate": " was good",
        "shuffle": "",
        "flattery": " What a wonderful question, you are so clever. was good and superb .",
        "off_topic": " was very fine .",
    }
    assert sorted(EDITS["shuffle"](0, texts).split()) == sorted(texts[0].split())
    run = RewardRun(make_backbone(model, tokenizer), train=PAIRS[:20], validation=PAIRS[20:]).fit()
    assert run.card["num_pairs"] == len(PAIRS) - 20
