"""Models for speed: by name, or made on the spot with random weights, which cost what trained ones do."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from surefoot.embedded.tiny_world import vocabulary_texts
from surefoot.lm.backbone import resolve
from surefoot.lm.tiny import tiny_tokenizer


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int


MADE = {
    "made-0.5b": Shape(896, 4864, 24, 14, 2, 151_936),
    "made-1.5b": Shape(1536, 8960, 28, 12, 2, 151_936),
}


@contextmanager
def model_folder(name: str) -> Iterator[Path]:
    """The folder of `embedded`, `tiny` or a folder's own name; one of MADE is there as long as the block runs."""
    if name not in MADE:
        yield Path(resolve(name))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(f"making {name} with random weights", file=sys.stderr, flush=True)
        save_made(MADE[name], Path(folder), torch.bfloat16)
        yield Path(folder)


def save_made(shape: Shape, folder: Path, dtype: torch.dtype) -> None:
    """Writes a Llama of `shape` with tied embeddings and random weights, with a tokenizer that names its first few ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer(vocabulary_texts())
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    config = LlamaConfig(**asdict(shape), max_position_embeddings=8192, tie_word_embeddings=True, **special)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
