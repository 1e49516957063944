"""The embedded model is a plain folder that loads offline, writes English and keeps its tokenizer."""

import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.lm.embedded import embedded_model_folder

pytestmark = pytest.mark.embedded


@pytest.fixture(scope="module")
def folder() -> Path:
    return embedded_model_folder()


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a cached model was loaded over the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def test_the_folder_is_plain(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not [name for name in names if name.endswith(".gguf")]
    assert "gguf" not in (folder / "config.json").read_text() + (folder / "tokenizer_config.json").read_text()


def test_weights_are_tied_float32(loaded: Any) -> None:
    model, _ = loaded
    assert model.lm_head.weight is model.model.embed_tokens.weight and model.dtype == torch.float32
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008  # SmolLM2-135M


def test_pad_is_neither_eos_nor_anything_the_model_writes(loaded: Any) -> None:
    model, tokenizer = loaded
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id != tokenizer.eos_token_id
    with torch.inference_mode():
        probability = model(**tokenizer("The film is a delight. It", return_tensors="pt")).logits.softmax(-1)
    assert probability[..., tokenizer.pad_token_id].max() < 1e-5


@pytest.mark.parametrize(
    "text", ["naïve 😀 “don't” — x\n\n  tabs\t 12345", "日本語 ½ ² 👩‍👧", "<|im_start|>user\nhi<|im_end|>\n"]
)
def test_text_survives_the_tokenizer(loaded: Any, text: str) -> None:
    _, tokenizer = loaded
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_digits_and_merges_are_those_of_the_original(loaded: Any) -> None:
    _, tokenizer = loaded
    assert tokenizer.tokenize("a  12 The film") == ["a", "ĠĠ", "1", "2", "ĠThe", "Ġfilm"]
    assert tokenizer("The film")["input_ids"][0] != tokenizer.bos_token_id, "no token is added to plain text"


def test_it_answers_a_question_and_expects_english(loaded: Any) -> None:
    model, tokenizer = loaded
    question = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
    text = tokenizer("She walked to the store to buy some milk and bread for her family.", return_tensors="pt")
    with torch.inference_mode():
        assert model(**text, labels=text["input_ids"]).loss.exp() < 40  # 28.7; scrambled layers give thousands
