"""A tiny language model made on the spot:

for tests, and for `demo --preset tiny`. Random weights, a byte-level BPE of its own.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 384
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|bos|>{{ message['role'] }}\n{{ message['content'] }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)


def tiny_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer trained on `texts`: any text round-trips; pad, BOS and EOS are three different tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_model(tokenizer: Any, *, width: int = 64, layers: int = 2, context: int = 128, seed: int = 0) -> Any:
    """A Llama of a few ten thousand weights with tied embeddings, drawn from `seed`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def tiny_model_folder() -> Path:
    """The folder of the tiny model, made at first use in the cache (SUREFOOT_CACHE, or XDG_CACHE_HOME/surefoot)."""
    from surefoot.embedded.tiny_world import vocabulary_texts

    cache = Path(
        os.environ.get("SUREFOOT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "surefoot"
    )
    folder = cache / "tiny-2"
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".tiny-", dir=cache))
    tokenizer = tiny_tokenizer(vocabulary_texts())
    tiny_model(tokenizer).save_pretrained(fresh)
    tokenizer.save_pretrained(fresh)
    try:
        fresh.rename(folder)
    except OSError:  # another process made it first: the same bytes
        shutil.rmtree(fresh)
    return folder
