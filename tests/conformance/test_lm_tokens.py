"""Tokens, padding, positions: the same text gives the same numbers wherever its padding stands and whoever stands beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.api import PPORun, SFTRun
from surefoot.config import ModelConfig, RolloutConfig
from surefoot.errors import DataError, ModelError
from surefoot.lm.backbone import Backbone, from_objects
from surefoot.lm.batches import PairRow, prompt_set
from surefoot.lm.data import rows_from
from surefoot.lm.roles import RewardScorer
from surefoot.lm.tokens import reward_row
from surefoot.rewards.model import RewardFacts, SharedRewardModel, load_reward_model, save_reward_model
from surefoot.rollout.local import LocalEngine
from surefoot.stages.reward import Features, RankingTask
from surefoot.stages.rollouts import penalised
from surefoot.types import Completions, Prompts
from tiny_language import TEXTS as VOCABULARY
from tiny_language import (
    context_of,
    make_backbone,
    make_completions,
    make_policy,
    make_prompts,
    moved,
    plain_ppo,
    random_rows,
    sharpened,
    single_tokens,
    their_logp,
)

TEXTS = ("the film was", "the plot seemed rather dull and", "the")


def _prompts(backbone: Backbone, texts: tuple[str, ...] = TEXTS, extra: int = 0) -> Prompts:
    return make_prompts([backbone.codec.prompt_ids(text) for text in texts], backbone.codec.pad_id, extra)


def _eos_probability(model: Any, backbone: Backbone, text: str) -> float:
    return their_logp(model, backbone.codec.prompt_ids(text), [backbone.codec.eos_ids[0]]).exp().item()


def test_item_01_twenty_steps_on_x_eos_raise_the_probability_of_eos(model: Any, tokenizer: Any) -> None:
    rows = [{"prompt": "the film", "completion": " was"}] * 8
    settings = {
        "sft.num_epochs": 20,
        "sft.batch_size": 8,
        "sft.learning_rate": 0.01,
        "model.tuning": "full",
        "data.validation_share": 0,
    }
    run = SFTRun((copy.deepcopy(model), tokenizer), train=rows, settings=settings)
    before = _eos_probability(model, run.parts.backbone, "the film was")
    assert len([step for step in run if "loss" in step.metrics]) == 20
    assert _eos_probability(run.model.model, run.parts.backbone, "the film was") > 10 * before


def test_item_01_a_pad_that_is_eos_is_refused(model: Any, tokenizer: Any) -> None:
    same = copy.deepcopy(tokenizer)
    same.pad_token = same.eos_token
    with pytest.raises(ModelError, match="also its EOS"):
        make_backbone(model, same)


def test_item_01_a_missing_pad_is_added_and_is_not_eos_even_where_the_unknown_token_is(model: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token, bare.unk_token = None, bare.eos_token  # GPT-2's set-up
    backbone = make_backbone(model, bare)
    assert backbone.codec.pad_id not in backbone.codec.eos_ids


def test_item_01_a_pad_row_that_had_to_be_added_has_at_most_the_mean_probability(model: Any, tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.pad_token, bare.unk_token = None, None
    bare.add_special_tokens({"additional_special_tokens": [f"<extra {i}>" for i in range(3)]})
    shifted = copy.deepcopy(model)
    shifted.resize_token_embeddings(len(bare), mean_resizing=False)
    from tokenizers import Tokenizer

    text = bare.backend_tokenizer.to_str().replace("<|pad|>", "<|other|>")
    bare._tokenizer = Tokenizer.from_str(text)
    backbone = make_backbone(shifted, bare)
    size = backbone.model.get_input_embeddings().weight.shape[0]
    assert backbone.codec.pad_id == size - 1 == len(bare)
    for text in TEXTS:
        assert their_logp(backbone.model, backbone.codec.prompt_ids(text), [backbone.codec.pad_id]).exp() <= 1 / size


@pytest.mark.parametrize("extra", [5, 50])
def test_item_02_log_probs_and_values_do_not_depend_on_left_padding(backbone: Backbone, extra: int) -> None:
    policy = moved(make_policy(backbone))
    answers = make_completions(random_rows(backbone, 3, 1, 9), backbone.codec.pad_id)
    plain, padded = (
        policy.evaluate(context_of(_prompts(backbone, extra=columns), answers), answers.ids) for columns in (0, extra)
    )
    assert (plain.logp - padded.logp).abs().max() < 1e-5
    assert (plain.values - padded.values).abs().max() < 1e-5


def _absolute_positions(model: Any) -> Any:
    """A GPT-2, whose embeddings know absolute positions; a Llama's attention sees distances alone and forgives a shift."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size = model.get_input_embeddings().weight.shape[0]
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = GPT2LMHeadModel(GPT2Config(vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ids))
    return sharpened(made.eval())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_item_03_greedy_generation_is_equal_with_and_without_pads(model: Any, tokenizer: Any, kind: str) -> None:
    backbone = make_backbone(_absolute_positions(model) if kind == "gpt2" else model, tokenizer)
    engine = LocalEngine(backbone, RolloutConfig(response_length=12, top_k=1), adapter=None)
    alone = [engine.generate(_prompts(backbone, (text,)), torch.Generator()).ids[0].tolist() for text in TEXTS]
    for extra in (0, 7):
        together = engine.generate(_prompts(backbone, extra=extra), torch.Generator())
        found = [row[keep].tolist() for row, keep in zip(together.ids, together.mask, strict=True)]
        assert found == alone
    row = backbone.codec.prompt_ids(TEXTS[0])
    for token in alone[0]:  # and it is the greedy one
        assert int(backbone.model(torch.tensor([row])).logits[0, -1].argmax()) == token
        row.append(token)


def test_item_04_log_probs_values_and_rewards_do_not_depend_on_who_stands_beside(backbone: Backbone) -> None:
    policy = moved(make_policy(backbone, critic="adapter"))
    scorer = RewardScorer(backbone, layer=1, adapter=None, seed=0)
    prompt_rows, answer_rows = random_rows(backbone, 8, 1, 20, seed=1), random_rows(backbone, 8, 1, 12, seed=2)
    order = [5, 2, 7, 0, 1, 6, 3, 4]

    def numbers(index: list[int], size: int) -> torch.Tensor:
        out = torch.zeros(8, 3)
        for part in torch.tensor(index).split(size):
            prompts = make_prompts([prompt_rows[i] for i in part], backbone.codec.pad_id)
            answers = make_completions([answer_rows[i] for i in part], backbone.codec.pad_id)
            seen = policy.evaluate(context_of(prompts, answers), answers.ids)
            raw = SharedRewardModel(scorer, RewardFacts(), 3).score(prompts, answers).value
            out[part] = torch.stack([seen.logp.sum(1), torch.where(answers.mask, seen.values, 0.0).sum(1), raw], dim=1).detach()
        return out

    together = numbers(list(range(8)), 8)
    for shuffled in (numbers(order, 8), numbers(order, 3), numbers(order, 1)):
        assert torch.allclose(together, shuffled, atol=1e-5)


def test_item_04_a_sampled_answer_does_not_depend_on_who_is_decoded_beside_it(backbone: Backbone) -> None:
    prompts = make_prompts(random_rows(backbone, 12, 1, 20, seed=1), 0)
    stops = tuple(single_tokens(backbone.codec.tokenizer).values())[::4]  # some rows end early and leave the batch

    def answers(size: int) -> Completions:
        cfg = RolloutConfig(response_length=6, batch_size=size, stop_token=stops)
        return LocalEngine(backbone, cfg, adapter=None).generate(prompts, torch.Generator().manual_seed(3))

    together = answers(64)
    assert together.finished.any() and len(set(together.mask.sum(1).tolist())) > 2
    for size in (1, 5):
        apart = answers(size)
        assert torch.equal(apart.ids, together.ids) and torch.equal(apart.finished, together.finished)
        assert torch.allclose(apart.logp_sampler, together.logp_sampler, atol=1e-5)


def test_item_05_an_eos_inside_the_prompt_is_not_the_answers(backbone: Backbone) -> None:
    chat = [[{"role": "user", "content": "the film"}], [{"role": "user", "content": "a plot"}]]
    rows = [backbone.codec.prompt_ids(messages) for messages in chat]
    assert all(backbone.codec.eos_ids[0] in row for row in rows)
    prompts = make_prompts(rows * 40, backbone.codec.pad_id)
    engine = LocalEngine(backbone, RolloutConfig(response_length=2), adapter=None)
    answers = engine.generate(prompts, torch.Generator().manual_seed(0))
    ends = torch.tensor([row[keep][-1] == backbone.codec.eos_ids[0] for row, keep in zip(answers.ids, answers.mask, strict=True)])
    assert not ends.all() and torch.equal(answers.finished, ends)
    paid = penalised(torch.zeros(80), answers.mask, answers.finished, plain_ppo(missing_eos_penalty=1.0))
    assert torch.equal(paid, -(~ends).float())


@pytest.mark.parametrize("rule, bos_in_front", [("drop", False), ("cut_left", False), ("cut_left", True)])
def test_item_06_long_prompts_are_dropped_or_cut_on_the_left_with_a_count(
    model: Any, tokenizer: Any, rule: Any, bos_in_front: bool
) -> None:
    backbone = make_backbone(model, tokenizer, ModelConfig(name="tiny", max_length=16))
    room, bos = 12, tokenizer.bos_token
    texts = [(bos if bos_in_front else "") + " film" * length for length in range(0, 48)]
    rows = rows_from([{"prompt": text, "number": i} for i, text in enumerate(texts) if text], "prompts").rows
    full = {row.key: backbone.codec.prompt_ids(row.prompt) for row in rows}
    chosen = prompt_set(rows, backbone.codec, 4, rule)
    assert chosen.num_long == sum(len(ids) > room for ids in full.values()) > 0
    assert max(map(len, chosen.ids)) == room
    for ids, row in zip(chosen.ids, chosen.rows, strict=True):
        whole = full[row.key]
        kept = room - 1 if bos_in_front else room
        expected = whole if len(whole) <= room else [*whole[: room - kept], *whole[-kept:]]
        assert list(ids) == expected
    assert len(chosen) == (len(rows) - chosen.num_long if rule == "drop" else len(rows))
    engine = LocalEngine(backbone, RolloutConfig(response_length=4), adapter=None)
    assert engine.generate(chosen.take(range(len(chosen)), backbone.codec.pad_id), torch.Generator()).mask.any(1).all()


def test_item_06_an_empty_prompt_begins_with_bos_and_no_prompt_left_is_an_error(model: Any, tokenizer: Any) -> None:
    backbone = make_backbone(model, tokenizer, ModelConfig(name="tiny", max_length=16))
    assert backbone.codec.prompt_ids("") == [tokenizer.bos_token_id]
    rows = rows_from(["the film " * 20, "the plot " * 20], "prompts").rows
    with pytest.raises(DataError, match="all 2 have more than 12 tokens"):
        prompt_set(rows, backbone.codec, 4, "drop")


def test_item_07_the_ids_that_are_trained_are_those_that_were_sampled(backbone: Backbone) -> None:
    codec, policy = backbone.codec, make_policy(backbone)
    prompt_rows = [codec.prompt_ids("a joy \N{SLIGHTLY SMILING FACE}"), codec.prompt_ids("the film was")]
    emoji = codec.completion_ids("\N{SLIGHTLY SMILING FACE}", end=False)
    assert len(emoji) > 1  # an emoji is several tokens
    answer_rows = [
        [*emoji[:-1], *codec.completion_ids("the")],
        [*codec.completion_ids("t", end=False), *codec.completion_ids("he")],
    ]
    texts = [codec.text(row) for row in answer_rows]
    assert all(codec.completion_ids(text) != row for text, row in zip(texts, answer_rows, strict=True))  # text would lose them
    seen: list[list[list[int]]] = []
    watch = backbone.model.get_input_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0].tolist()))
    answers = make_completions(answer_rows, codec.pad_id)
    policy.evaluate(context_of(make_prompts(prompt_rows, codec.pad_id), answers), answers.ids)
    watch.remove()
    assert len(seen) == 1
    for row, prompt, answer in zip(seen[0], prompt_rows, answer_rows, strict=True):
        assert row[: len(prompt) + len(answer)] == [*prompt, *answer]


def test_item_08_one_pair_gets_one_score_in_training_in_evaluation_and_in_ppo(backbone: Backbone, tmp_path: Path) -> None:
    codec, scorer = backbone.codec, RewardScorer(backbone, layer=1, adapter=None, seed=3)
    prompt, answers = codec.prompt_ids("the film was"), [codec.completion_ids(text) for text in (" good", " dull and long")]
    rows = [tuple(reward_row(prompt, answer, codec)) for answer in answers]
    task_of = {
        "forward": RankingTask([PairRow((), rows[0], rows[1], 0.0, 1.0)], scorer, None, use_margin=True, center_coef=0.0),
        "features": RankingTask(
            [PairRow((), rows[0], rows[1], 0.0, 1.0)], scorer, Features(scorer, rows, None, 1), use_margin=True, center_coef=0.0
        ),
    }
    trained = {name: torch.cat(task.scores([0])).detach() for name, task in task_of.items()}
    prompts, both = make_prompts([prompt, prompt], codec.pad_id, extra=3), make_completions(answers, codec.pad_id, extra=2)
    save_reward_model(scorer, RewardFacts(), tmp_path)
    loaded = load_reward_model(tmp_path, backbone, 2, may_share=False)
    sites = {**trained, "ppo": SharedRewardModel(scorer, RewardFacts(), 2).score(prompts, both).value}
    sites["evaluation"] = loaded.score(prompts, both).value
    assert (sites["ppo"][0] - sites["ppo"][1]).abs() > 1e-3
    for found in sites.values():
        assert torch.allclose(found, sites["ppo"], atol=1e-5)


@pytest.fixture(scope="session")
def wordpiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with one label and a WordPiece tokenizer that frames a text in [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    raw.train_from_iterator(VOCABULARY, trainers.WordPieceTrainer(vocab_size=120, special_tokens=special, show_progress=False))
    raw.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, **names)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            max_position_embeddings=32, num_labels=1, pad_token_id=0, initializer_range=0.2,
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
    folder = tmp_path_factory.mktemp("wordpiece")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _texts(texts: list[str], prompts: list[str], backbone: Backbone) -> tuple[Prompts, Completions]:
    pad = backbone.codec.pad_id
    given = make_prompts([backbone.codec.prompt_ids(p) for p in prompts], pad)
    answers = make_completions([backbone.codec.completion_ids(t) for t in texts], pad)
    return (
        Prompts(given.ids, given.mask, tuple(prompts), tuple(prompts)),
        Completions(answers.ids, answers.mask, answers.logp_sampler, answers.finished, tuple(texts), 0),
    )


def test_item_09_a_reward_model_with_another_tokenizer_reads_text(backbone: Backbone, wordpiece_folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    prompts, texts = ["the film was", "the plot", "the cast seemed"], [" superb .", " looked rather dull and long .", " fine ."]
    found = load_reward_model(wordpiece_folder, backbone, 3, may_share=True).score(*_texts(texts, prompts, backbone)).value
    model = AutoModelForSequenceClassification.from_pretrained(wordpiece_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(wordpiece_folder)
    alone = [model(**tokenizer(p + t, return_tensors="pt")).logits.item() for p, t in zip(prompts, texts, strict=True)]
    assert found.tolist() == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 1e-3


def test_item_09_such_a_reward_model_drives_ppo_with_the_scores_it_gives_alone(
    backbone: Backbone, wordpiece_folder: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(wordpiece_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(wordpiece_folder)
    settings = {"rollout.response_length": 6, "ppo.rollout_batch_size": 4, "ppo.total_episodes": 8, "ppo.learning_rate": 0.02}
    before = {name: p.clone() for name, p in backbone.model.named_parameters()}
    for step in PPORun(backbone, prompts=["the film was", "the plot"], reward=wordpiece_folder, settings=settings):
        seen = step.rollout
        texts = [p + c for p, c in zip(seen.prompts.text, seen.completions.text, strict=True)]
        alone = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
        assert seen.scores.value.tolist() == pytest.approx(alone, abs=1e-5)
        assert step.metrics["objective/scores"] == pytest.approx(sum(alone) / len(alone), abs=1e-5)
        assert step.stats.steps == 4
    assert all(torch.equal(weight, before[name]) for name, weight in backbone.model.named_parameters() if name in before)


def test_item_09_a_text_beyond_its_context_is_cut_at_its_beginning(backbone: Backbone, wordpiece_folder: Path) -> None:
    source = load_reward_model(wordpiece_folder, backbone, 2, may_share=True)
    long = "the film was long and " * 12
    good, bad = source.score(*_texts([" superb .", " awful ."], [long, long], backbone)).value.tolist()
    assert abs(good - bad) > 1e-4


def test_item_10_bos_is_not_doubled(model: Any, tokenizer: Any) -> None:
    from tokenizers import processors

    adding = copy.deepcopy(tokenizer)
    bos = adding.bos_token_id
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{adding.bos_token} $A", special_tokens=[(adding.bos_token, bos)]
    )
    codec = from_objects(copy.deepcopy(model), adding, ModelConfig(name="tiny")).codec
    assert codec.prompt_ids("the film").count(bos) == 1
    assert codec.prompt_ids(f"{adding.bos_token}the film").count(bos) == 1
    assert codec.prompt_ids("") == [bos]
    chat = codec.prompt_ids([{"role": "user", "content": "the film"}])
    assert chat.count(bos) == codec.render([{"role": "user", "content": "the film"}]).count(adding.bos_token) == 2
    assert codec.completion_ids(" was good").count(bos) == 0
    plain = from_objects(copy.deepcopy(model), tokenizer, ModelConfig(name="tiny")).codec
    assert plain.prompt_ids("the film").count(bos) == 0  # the tokenizer puts none in front, so neither do we
