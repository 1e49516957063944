"""A pretrained causal language model and its tokenizer: by embedded name, folder, hub name, or as objects already loaded.

No code from a model's folder is ever run: `trust_remote_code` stays off and no setting turns it on.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.config import ModelConfig
from surefoot.errors import ModelError, first_line
from surefoot.lm.adapters import active_adapter, plain_state_dict
from surefoot.lm.attention import NAME, set_attention
from surefoot.lm.logits import Head
from surefoot.lm.padding_free import states_of_rows
from surefoot.lm.tokens import Codec
from surefoot.lm.trunk import SharedRows, cut_trunk, recomputing

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True, slots=True)
class Backbone:
    """One copy of the weights, and how text becomes its tokens. `source` says where they came from.

    `fingerprint` names the weights; "" where nothing is known of them, and then no head that was trained elsewhere is put on
    them.
    """

    model: Any
    codec: Codec
    fingerprint: str
    source: str
    autocast: torch.dtype | None = None  # compute dtype under full fine-tuning, whose weights stay float32
    recompute: bool = False  # blocks keep their inputs alone, and run again in the backward pass
    padding_free: bool = False  # rows are run without the padding between them
    shared: SharedRows = field(default_factory=SharedRows, compare=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        return int(self.model.config.get_text_config().num_hidden_layers)

    def head(self, temperature: float = 1.0) -> Head:
        """The output embedding as a distribution's head."""
        output = self.model.get_output_embeddings()
        return Head(output.weight, getattr(output, "bias", None), temperature)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[Any]:
        """The decoder with `adapter` on (None: all off), in the compute dtype."""
        decoder = self.model.get_decoder()
        with (
            active_adapter(self.model, adapter),
            torch.autocast(self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None),
            recomputing(decoder, lambda block: active_adapter(block, adapter)) if self.recompute else nullcontext(),
        ):
            yield decoder

    def hidden(
        self, rows: Int[Tensor, "B L"], adapter: str | None, layer: int | None = None, *, lengths: Int[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B L D"]:
        """Final-normed states of right-padded rows, after the last layer or after `layer`.

        No real token's state depends on padding. With the rows' `lengths` padding may be left out, and has the state 0 then.
        """
        with self.using(adapter) as decoder:
            trunk = decoder if layer is None or layer == self.num_layers else cut_trunk(decoder, layer)
            return states_of_rows(trunk, rows, self.unpadded(lengths))

    def unpadded(self, lengths: Int[Tensor, " B"] | None) -> Int[Tensor, " B"] | None:
        """`lengths` where rows are run without padding, else None."""
        return lengths if self.padding_free and self.model.config._attn_implementation == NAME else None

    def trainable_copy(self) -> Backbone:
        """The same model once more, to train every weight of it: float32 masters, computing in the dtype that they had."""
        dtype = self.autocast or (self.model.dtype if self.model.dtype != torch.float32 else None)
        model = copy.deepcopy(self.model).float().requires_grad_(False)
        return replace(self, model=model, autocast=dtype, shared=SharedRows())

    def merged(self, adapter: str | None) -> Backbone:
        """A plain backbone of its own, with `adapter` merged into the weights and none left on it."""
        plain = type(self.model)(copy.deepcopy(self.model.config)).to(self.model.dtype)
        weights = plain_state_dict(self.model, adapter)
        plain.load_state_dict(weights, strict=True)
        plain.generation_config = copy.deepcopy(self.model.generation_config)
        model = plain.to(self.device).eval().requires_grad_(False)
        set_attention(model)
        return replace(self, model=model, fingerprint="", shared=SharedRows())

    def save(self, folder: Path, *, merge: str | None = None) -> None:
        """Writes a folder that AutoModelForCausalLM and AutoTokenizer load, with adapter `merge` merged into the weights."""
        config = copy.deepcopy(self.model.config)
        config.pad_token_id = self.codec.pad_id
        save_weights(type(self.model), config, plain_state_dict(self.model, merge), folder)
        if getattr(self.model, "generation_config", None) is not None:
            generation = copy.deepcopy(self.model.generation_config)
            generation.pad_token_id = self.codec.pad_id
            generation.save_pretrained(folder)
        self.codec.tokenizer.save_pretrained(folder)


def save_weights(kind: type, config: Any, weights: dict[str, Tensor], folder: Path) -> None:
    """Saves `weights` as a plain model of class `kind`; a tied head is left to the configuration."""
    with torch.device("meta"):
        plain = kind(config)
    if config.get_text_config().tie_word_embeddings:
        weights = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    plain.save_pretrained(folder, state_dict={name: tensor.contiguous() for name, tensor in weights.items()})


def load_backbone(cfg: ModelConfig, device: torch.device | str | None = None) -> Backbone:
    """Loads `cfg.name` onto `device` (None: cfg.device).

    Weights that are trained whole stay float32 and compute in cfg.dtype; frozen ones are kept in cfg.dtype.
    """
    source = resolve(cfg.name)
    full_bf16 = cfg.tuning == "full" and cfg.dtype == "bfloat16"
    dtype = torch.float32 if full_bf16 else getattr(torch, cfg.dtype)
    model, tokenizer = _from_pretrained(source, cfg.name, dtype)
    return from_objects(model, tokenizer, cfg, source=str(source), fingerprint=_fingerprint(source), device=device)


def from_objects(
    model: Any,
    tokenizer: Any,
    cfg: ModelConfig,
    *,
    source: str = "object",
    fingerprint: str = "",
    device: torch.device | str | None = None,
) -> Backbone:
    """A backbone from objects already loaded; the model is frozen, and kept in float32 where every weight will be trained.

    Raises: ModelError where the tokenizer lacks EOS or pads with it, or the logits are more than a linear head of the last
    states.
    """
    tokenizer = copy.deepcopy(tokenizer)
    eos_ids = _eos_ids(model, tokenizer, source)
    pad_id = _pad_id(model, tokenizer, eos_ids, source)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    codec = Codec(
        tokenizer=tokenizer,
        pad_id=pad_id,
        eos_ids=eos_ids,
        bos_id=tokenizer.bos_token_id,
        context=min(limit, cfg.max_length or limit),
        template=cfg.template,
    )
    model = model.to(_device(cfg) if device is None else device).eval().requires_grad_(False)
    if cfg.tuning == "full":
        model = model.float()  # masters, whatever the object was
    autocast = torch.bfloat16 if cfg.tuning == "full" and cfg.dtype == "bfloat16" else None
    set_attention(model)
    backbone = Backbone(model, codec, fingerprint, source, autocast, cfg.activation_checkpointing, cfg.padding_free)
    _check_head(backbone)
    return backbone if _runs_without_padding(backbone) else replace(backbone, padding_free=False)


def _device(cfg: ModelConfig) -> str:
    """Raises ModelError where cfg.device is not there."""
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"model.device = 'cuda', but torch {torch.__version__} finds no GPU. Use model.device = 'cpu', or install a build of "
            "torch for CUDA and look at nvidia-smi."
        )
    return cfg.device


@torch.no_grad()
def _check_head(backbone: Backbone) -> None:
    """Some architectures cap or scale their logits; log-probs made of states and head would then be another model's."""
    row = torch.tensor([[backbone.codec.eos_ids[0]]], device=backbone.device)
    with backbone.using(None):
        theirs = backbone.model(input_ids=row, use_cache=False).logits[0].float()
    ours = backbone.head().logits(backbone.hidden(row, None)[0])
    gap, size = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    if ours.shape != theirs.shape or gap > 0.02 * max(size, 1.0):
        raise ModelError(
            f"{type(backbone.model).__name__} computes its logits by more than a linear head of its last states, such as a cap "
            f"or a scale (they differ by {gap:.2g}). Use an architecture without, for example Llama, Qwen2 or GPT-2."
        )


@torch.no_grad()
def _runs_without_padding(backbone: Backbone) -> bool:
    """Whether rows run without padding have the states that they have with it: an architecture may attend by other rules."""
    config = backbone.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not backbone.padding_free or kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return False
    lengths = torch.tensor([3, 20, 9], device=backbone.device)  # 32 tokens: no padding is read, whatever the number is rounded to
    rows = torch.arange(11, 71, device=backbone.device).reshape(3, 20) % config.vocab_size
    is_token = torch.arange(20, device=backbone.device) < lengths[:, None]
    try:
        plain = backbone.hidden(rows, None)[is_token].float()
        ours = backbone.hidden(rows, None, lengths=lengths)[is_token].float()
    except (TypeError, ValueError, RuntimeError, IndexError):  # a decoder that takes no such arguments, or other shapes
        return False
    is_half = (backbone.autocast or backbone.model.dtype) != torch.float32
    return bool((ours - plain).norm() <= (0.05 if is_half else 1e-4) * plain.norm())


def resolve(name: str) -> Path | str:
    """`embedded` and `tiny` as the folders they are cached in, a folder as its path, anything else as a hub name."""
    if name == "embedded":
        from surefoot.lm.embedded import embedded_model_folder

        return embedded_model_folder()
    if name == "tiny":
        from surefoot.lm.tiny import tiny_model_folder

        return tiny_model_folder()
    path = Path(name)
    if not path.exists():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ModelError(
                f"model.name = {name!r}: no such folder. Name a folder with weights, a hub name (owner/model), or embedded."
            )
        return name
    if not path.is_dir():
        raise ModelError(f"model.name = {name!r} is a file. Name the folder that holds it.")
    if not any(next(path.glob(pattern), None) for pattern in WEIGHT_FILES):
        raise ModelError(
            f"model.name = {name!r} holds no weights ({', '.join(WEIGHT_FILES)}). Name a folder written by save_pretrained."
        )
    return path


def _from_pretrained(source: Path | str, name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=False, output_loading_info=True
            )
            model, found = loaded
    except Exception as error:  # damaged files raise anything
        raise ModelError(
            f"model.name = {name!r} cannot be loaded as a causal language model: {first_line(error).rstrip('.')}. "
            "Name a folder, a hub name, or embedded."
        ) from error
    if missing := sorted(found["missing_keys"]):  # transformers would make them up
        raise ModelError(
            f"model.name = {name!r} lacks {len(missing)} of the tensors that its config.json asks for, {missing[0]} for one. "
            "Copy the model again, or name one of a causal language model."
        )
    return model, tokenizer


def _eos_ids(model: Any, tokenizer: Any, source: str) -> tuple[int, ...]:
    if tokenizer.eos_token_id is None:
        raise ModelError(f"the tokenizer of {source} has no EOS token, so no answer could end. Set tokenizer.eos_token.")
    generation = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    more = generation if isinstance(generation, list) else [] if generation is None else [generation]
    return (int(tokenizer.eos_token_id), *(int(i) for i in more if i != tokenizer.eos_token_id))


def _pad_id(model: Any, tokenizer: Any, eos_ids: tuple[int, ...], source: str) -> int:
    """The tokenizer's pad id, or an unused id where it has none; never EOS, whose end would be masked away with the padding."""
    if tokenizer.pad_token_id is None:
        is_free = tokenizer.unk_token is not None and tokenizer.unk_token_id not in eos_ids  # GPT-2's unknown token is its EOS
        tokenizer.add_special_tokens({"pad_token": tokenizer.unk_token if is_free else "<|pad|>"})
        if tokenizer.pad_token_id >= model.get_input_embeddings().weight.shape[0]:
            _add_rows(model, len(tokenizer))
    if tokenizer.pad_token_id in eos_ids:
        raise ModelError(
            f"the tokenizer of {source} pads with {tokenizer.pad_token!r}, which is also its EOS token: ends of answers would be "
            "masked away. Set tokenizer.pad_token to another token (an unused special one will do) and save the tokenizer."
        )
    return int(tokenizer.pad_token_id)


@torch.no_grad()
def _add_rows(model: Any, size: int) -> None:
    """Makes room for ids up to `size`. A new row is the mean of the old ones, so that its token has at most the mean probability.

    A row drawn around 0 would have a logit of about 0, and where real logits lie near -30 it would be the only token ever
    sampled.
    """
    old = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(size, mean_resizing=False)
    head = model.get_output_embeddings()
    for weight in (model.get_input_embeddings().weight, head.weight, getattr(head, "bias", None)):
        if weight is not None:
            weight[old:] = weight[:old].float().mean(0).to(weight.dtype)


def _fingerprint(source: Path | str) -> str:
    """sha256 over a folder's weight files; the name itself for a hub model."""
    path = Path(source)
    if not path.is_dir():
        return str(source)
    digest = hashlib.sha256()
    for pattern in WEIGHT_FILES:
        for file in sorted(path.glob(pattern)):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
