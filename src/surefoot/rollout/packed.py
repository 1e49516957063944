"""A decoder for sampling alone: Llama's blocks from weights packed for this machine, and a cache that rows join and leave.

It computes what the transformers model computes, with fewer and larger steps: one product for query, key and value and one for
gate and up, weights laid out once for the CPU's matrix kernels, keys and values written in place. `packed_decoder` asks both
whether the result is the same, and gives None where it is not; sampling then goes through transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from surefoot.lm.backbone import Backbone
from surefoot.lm.padding_free import rounded_up
from surefoot.rollout.captured import CapturedSteps, Recorder, cuda_graph_recorder
from surefoot.rollout.products import Product, Products

ARCHITECTURES = ("llama", "mistral", "qwen2")
TOLERANCE = {
    torch.float32: 1e-4,
    torch.float16: 0.02,
    torch.bfloat16: 0.1,
}  # norm of a step's gaps over that of its states
ROUND = 32  # tokens of prompts are read by a multiple of it
PROBE = ((13, 11, 12, 14, 16, 11), (12, 15, 10, 11, 14, 13))


@dataclass(frozen=True, slots=True)
class PackedBlock:
    """One block of the decoder."""

    before_attention: Product
    before_mlp: Product
    qkv: Product
    out: Product
    gate_up: Product
    down: Product
    scaling: float


class PackedDecoder:
    """Rows that are being written: `begin` adds some, `step` goes on with all, `keep` drops some. Rows start at column 0.

    `slots` rows of up to `capacity` tokens fit; their order is that of their coming, changed by `keep`.
    """

    joins = True  # rows may begin while others are being written

    def __init__(
        self, backbone: Backbone, adapter: str | None, *, slots: int, capacity: int, products: Products | None = None
    ) -> None:
        products = products or Products()
        decoder, config = backbone.model.get_decoder(), backbone.model.config
        self.embedding, self.rotary, self.norm_weight = decoder.embed_tokens, decoder.rotary_emb, decoder.norm.weight
        self.norm = rms_norm_of(decoder.norm)
        self.dtype = backbone.autocast or decoder.norm.weight.dtype
        self.attends_in = torch.float32 if backbone.device.type == "cpu" else self.dtype  # rounds less, and is no slower there
        self.num_kv = int(config.num_key_value_heads)
        self.groups = int(config.num_attention_heads) // self.num_kv
        self.head_width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)

        def packed(*layers: Any) -> Product:
            return products.of(layers, adapter, self.dtype)

        self.blocks = [
            PackedBlock(
                before_attention=rms_norm_of(block.input_layernorm),
                before_mlp=rms_norm_of(block.post_attention_layernorm),
                qkv=packed(block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj),
                out=packed(block.self_attn.o_proj),
                gate_up=packed(block.mlp.gate_proj, block.mlp.up_proj),
                down=packed(block.mlp.down_proj),
                scaling=block.self_attn.scaling,
            )
            for block in decoder.layers
        ]
        shape = (len(self.blocks), 2, slots, self.num_kv, capacity, self.head_width)
        head = backbone.head()
        self._head_dtype = head.weight.dtype
        self._head = products.of([head], None, self._head_dtype)
        self.cache = torch.zeros(shape, dtype=self.attends_in, device=backbone.device)
        self.lengths = torch.zeros(0, dtype=torch.long, device=backbone.device)
        self._captured: CapturedSteps | None = None
        if backbone.device.type == "cuda":
            self.capture(cuda_graph_recorder())

    def capture(self, record: Recorder) -> None:
        """Steps are recorded by `record` from here on, and replayed."""
        slots, capacity = self.cache.shape[2], self.cache.shape[4]
        self._captured = CapturedSteps(slots=slots, capacity=capacity, record=record)

    def begin(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "N D"]:
        """Adds rows; the states after their last tokens. Equal rows (several samples of a prompt) are computed once."""
        distinct = list(dict.fromkeys(tuple(row) for row in rows))
        place = {row: i for i, row in enumerate(distinct)}
        device = self.cache.device
        back = torch.tensor([place[tuple(row)] for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in distinct], device=device)
        width, first, held = int(lengths.max()), len(self.lengths), len(self.lengths) + len(rows)
        ids = torch.tensor([[*row, *(row[-1:] * (width - len(row)))] for row in distinct], device=device)
        # products have tokens alone, only attention has rows of one width
        read = rounded_up(torch.arange(width, device=device) < lengths[:, None], ROUND)
        row_of, column_of = read.nonzero(as_tuple=True)
        cos, sin = self._turns(column_of)

        def attention(layer: int, qkv: Tensor, scaling: float) -> Tensor:
            heads = qkv.new_zeros(len(distinct), width, self.num_kv * (self.groups + 2), self.head_width)
            heads[row_of, column_of] = self._turned(qkv, cos, sin)
            q, kv = heads.transpose(1, 2).split([self.num_kv * self.groups, 2 * self.num_kv], dim=1)
            self.cache[layer, :, first:held, :, :width] = kv[back].unflatten(1, (2, -1)).transpose(0, 1)
            k, v = (x.repeat_interleave(self.groups, dim=1) for x in kv.chunk(2, dim=1))
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
            return out.transpose(1, 2)[row_of, column_of].flatten(1)

        states = self._through(ids[read], attention)
        self.lengths = torch.cat([self.lengths, lengths[back]])
        ends = read.flatten().cumsum(0)[torch.arange(len(distinct), device=device) * width + lengths - 1] - 1
        return self.norm(states[ends])[back]

    def step(self, tokens: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
        """Appends a token to every row; the states after it."""
        width = int(self.lengths.max()) + 1
        if self._captured is not None:
            states = self._captured(self._step, tokens, self.lengths, width)
        else:
            states = self._step(tokens, self.lengths, width)
        self.lengths = self.lengths + 1
        return states

    def _step(self, tokens: Int[Tensor, " B"], lengths: Int[Tensor, " B"], width: int) -> Float[Tensor, "B D"]:
        """The states after `tokens`, each behind the `lengths` columns of its row, of which `width` are looked at.

        Every shape is known beforehand, and nothing is asked of the device: a step can be recorded.
        """
        held = len(tokens)
        every = torch.arange(held, device=tokens.device)
        is_past = torch.arange(width, device=tokens.device) > lengths[:, None]
        hidden = torch.zeros(is_past.shape, dtype=self.attends_in, device=tokens.device).masked_fill_(is_past, -torch.inf)
        hidden = hidden.repeat_interleave(self.num_kv, dim=0)[:, None]
        cos, sin = self._turns(lengths)
        numbers = self.cache.flatten(1, -2)  # [layers, places, head_width]
        places = torch.arange(numbers.shape[1], device=tokens.device).view(self.cache.shape[1:-1])
        at = places[:, every, :, lengths].flatten()  # where a row's new keys go, then its values
        past = self.cache[:, :, :held, :, :width].flatten(2, 3).unbind(1)
        of_layer = list(zip(numbers, *past, strict=True))

        def attention(layer: int, qkv: Tensor, scaling: float) -> Tensor:
            heads = self._turned(qkv, cos, sin).to(self.attends_in)
            whole, k, v = of_layer[layer]
            q, kv = heads.split([self.num_kv * self.groups, 2 * self.num_kv], dim=1)
            whole.index_copy_(0, at, kv.reshape(-1, self.head_width))
            grouped = q.reshape(-1, self.groups, self.head_width)  # heads of one key stand where positions do
            return attended(grouped, k, v, hidden, scaling).to(self.dtype).view(held, -1)

        return self.norm(self._through(tokens, attention))

    def keep(self, index: Int[Tensor, " K"]) -> Int[Tensor, " K"]:
        """Drops all rows but `index` (ascending) and tells the new order: the last rows move to the places that fell free."""
        kept, device = len(index), index.device
        stays = index[index < kept]
        free = torch.ones(kept, dtype=torch.bool, device=device)
        free[stays] = False
        holes, moved = free.nonzero()[:, 0], index[index >= kept]
        order = torch.arange(kept, device=device)
        order[holes] = moved
        width = int(self.lengths.max())
        self.cache[:, :, holes, :, :width] = self.cache[:, :, moved, :, :width]
        self.lengths = self.lengths[order]
        return order

    def logits(self, states: Float[Tensor, "B D"], temperature: float) -> Float[Tensor, "B V"]:
        """Logits at `temperature`, float32."""
        raw = self._head(states.to(self._head_dtype)).float()
        return raw if temperature == 1 else raw / temperature

    def _through(self, ids: Tensor, attention: Callable[[int, Tensor, float], Tensor]) -> Float[Tensor, "N D"]:
        """States of tokens after the last block, before the final norm."""
        x = self.embedding(ids)
        for i, block in enumerate(self.blocks):
            heads = attention(i, block.qkv(block.before_attention(x).to(self.dtype)), block.scaling)
            x = x + block.out(heads)
            gate, up = block.gate_up(block.before_mlp(x).to(self.dtype)).chunk(2, dim=1)
            x = x + block.down(silu(gate) * up)
        return x

    def _turns(self, positions: Int[Tensor, " N"]) -> tuple[Tensor, Tensor]:
        """Cosines and sines of rotary positions, [N, 1, head_width]; the first half of a head gets -sin."""
        cos, sin = (turn.transpose(0, 1) for turn in self.rotary(self.norm_weight, position_ids=positions[None]))
        half = self.head_width // 2
        return cos, torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)

    def _turned(self, qkv: Tensor, cos: Tensor, sin: Tensor) -> Float[Tensor, "N H d"]:
        """Heads of the joint product [N, H d], queries and keys turned by their positions, values as they are."""
        heads = qkv.view(len(qkv), -1, self.head_width)
        turning = heads[:, : -self.num_kv]
        turned = torch.addcmul(turning * cos, turning.roll(self.head_width // 2, -1), sin)
        return torch.cat([turned.to(self.dtype), heads[:, -self.num_kv :]], dim=1)


def rms_norm_of(layer: Any) -> Product:
    """The RMS norm that all of these architectures share, as one call; another one as it is."""
    if not hasattr(layer, "variance_epsilon"):
        norm: Product = layer
        return norm
    weight, eps = layer.weight, layer.variance_epsilon
    return lambda x: rms_norm(x, weight.shape, weight, eps)


def attended(
    q: Float[Tensor, "N G d"],
    k: Float[Tensor, "N L d"],
    v: Float[Tensor, "N L d"],
    hidden: Float[Tensor, "N 1 L"],
    scaling: float,
) -> Float[Tensor, "N G d"]:
    """softmax(scaling q k^T + hidden) v of one position a row, the G heads that read one key together.

    On a CPU as two plain products: PyTorch's fused kernel is made for many positions and takes twice as long for one.
    """
    if q.device.type != "cpu":
        q, k, v, hidden = (x[:, None] for x in (q, k, v, hidden))  # one head a row
        return scaled_dot_product_attention(q, k, v, attn_mask=hidden, scale=scaling)[:, 0]
    weights = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=scaling).softmax(-1)
    return torch.bmm(weights, v)


def packed_decoder(
    backbone: Backbone,
    adapter: str | None,
    *,
    slots: int,
    capacity: int,
    is_known: bool = False,
    products: Products | None = None,
) -> PackedDecoder | None:
    """The decoder, or None where it does not give what the transformers model gives: that is asked of both, unless `is_known`.

    `products` keeps what is laid out of frozen weights from one decoder to the next.
    """
    config = backbone.model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if config.model_type not in ARCHITECTURES or kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        return None
    if getattr(config, "hidden_act", "silu") != "silu" or (backbone.autocast or backbone.model.dtype) not in TOLERANCE:
        return None
    packed = PackedDecoder(backbone, adapter, slots=slots, capacity=max(capacity, len(PROBE[0])), products=products)
    if not is_known and not _is_the_same(packed, backbone, adapter):
        return None
    packed.lengths = packed.lengths[:0]
    return packed


@torch.no_grad()
def _is_the_same(packed: PackedDecoder, backbone: Backbone, adapter: str | None) -> bool:
    """Whether both give the same states for a few tokens, some read together and two one by one."""
    rows = torch.tensor(PROBE[: packed.cache.shape[2]], device=backbone.device) % backbone.model.config.vocab_size
    steps = [packed.begin(rows[:, :-2].tolist()), packed.step(rows[:, -2]), packed.step(rows[:, -1])]
    theirs = backbone.hidden(rows, adapter)[:, -3:].float()
    gap = torch.linalg.vector_norm(torch.stack(steps, dim=1).float() - theirs, dim=(0, 2))
    return not bool((gap > TOLERANCE[packed.dtype] * torch.linalg.vector_norm(theirs, dim=(0, 2))).any())  # NaN: nothing to tell
