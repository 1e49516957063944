"""Data rows as token rows, and the orders in which stages draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from surefoot.errors import DataError
from surefoot.lm.backbone import Backbone
from surefoot.lm.data import CompletionRow, PreferenceRow, PromptRow
from surefoot.lm.logits import token_statistics
from surefoot.lm.tokens import Codec, pad_left, pad_right, reward_row, states_before
from surefoot.types import Prompts


@dataclass(frozen=True, slots=True)
class TokenRow:
    """A sequence whose first `prompt_length` tokens carry no loss."""

    ids: tuple[int, ...]
    prompt_length: int


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts as token rows, with how many were dropped or cut because they pass the context."""

    ids: tuple[tuple[int, ...], ...]
    rows: tuple[PromptRow, ...]
    num_long: int

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Sequence[int], pad_id: int) -> Prompts:
        """The prompts at `index` as a left-padded batch; columns that all of them have are kept."""
        ids, mask = pad_left([self.ids[i] for i in index], pad_id)
        rows = [self.rows[i] for i in index]
        names = [name for name in rows[0].columns if all(name in row.columns for row in rows)] if rows else []
        columns: dict[str, tuple[Any, ...]] = {name: tuple(row.columns[name] for row in rows) for name in names}
        return Prompts(ids, mask, tuple(text_of(row.prompt) for row in rows), tuple(row.key for row in rows), columns)

    def cyclic(self, start: int, count: int, seed: int) -> list[int]:
        """`count` indices from position `start` of an endless shuffle:

        every prompt once an epoch, each epoch in its own order.
        """
        out: list[int] = []
        while len(out) < count:
            epoch, place = divmod(start + len(out), len(self))
            order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
            out += order[place : place + count - len(out)]
        return out


def text_of(prompt: Any) -> str:
    """What a judge or a text reward sees before the answer: the prompt as it is, or the contents of its messages, a line each."""
    return prompt if isinstance(prompt, str) else "".join(f"{message['content']}\n" for message in prompt)


def prompt_set(
    rows: Sequence[PromptRow], codec: Codec, response_length: int, long_prompts: Literal["drop", "cut_left"]
) -> PromptSet:
    """Tokenises prompts. Those that leave no room for `response_length` tokens in the context are dropped, or cut on the left."""
    room = codec.context - response_length
    if room < 1:
        raise DataError(
            f"rollout.response_length = {response_length} leaves no room for a prompt in the context of {codec.context} tokens."
        )
    encoded = [codec.prompt_ids(row.prompt) for row in rows]
    num_long = sum(len(ids) > room for ids in encoded)
    if long_prompts == "cut_left":
        return PromptSet(tuple(_cut_left(ids, room, codec.bos_id) for ids in encoded), tuple(rows), num_long)
    kept = [i for i, ids in enumerate(encoded) if len(ids) <= room]
    if not kept:
        raise DataError(
            f"no prompt is left: all {len(rows)} have more than {room} tokens (context {codec.context} less "
            f"rollout.response_length {response_length}). Shorten them, lower rollout.response_length, "
            "or set data.long_prompts = cut_left."
        )
    return PromptSet(tuple(tuple(encoded[i]) for i in kept), tuple(rows[i] for i in kept), num_long)


def _cut_left(ids: Sequence[int], room: int, bos_id: int | None) -> tuple[int, ...]:
    """The last `room` ids; a BOS in front stays in front, since many models are lost without it."""
    if len(ids) <= room:
        return tuple(ids)
    return (ids[0], *ids[len(ids) - room + 1 :]) if ids[0] == bos_id else tuple(ids[-room:])


class CompletionTask:
    """SFT: mean negative log-likelihood of completion tokens, nats a token, over the tokens of the whole batch."""

    def __init__(self, rows: Sequence[TokenRow], backbone: Backbone, adapter: str | None) -> None:
        self.rows, self.backbone, self.adapter = rows, backbone, adapter

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, item: int) -> int:
        return len(self.rows[item].ids)

    def weight(self, items: Sequence[int]) -> float:
        return float(sum(len(self.rows[i].ids) - self.rows[i].prompt_length for i in items))

    def loss(self, items: Sequence[int]) -> tuple[Tensor, dict[str, float]]:
        rows = [self.rows[i] for i in items]
        device = self.backbone.device
        self.backbone.model.train(torch.is_grad_enabled())  # dropout is on while it learns, and only then
        ids, mask = pad_right([row.ids for row in rows], self.backbone.codec.pad_id)
        lengths = torch.tensor([row.prompt_length for row in rows])
        answers, answer_mask = pad_right([row.ids[row.prompt_length :] for row in rows], self.backbone.codec.pad_id)
        hidden = self.backbone.hidden(ids.to(device), self.adapter, lengths=mask.sum(1).to(device))
        states = states_before(hidden, lengths.to(device), answers.shape[1])[:, :-1]
        answer_mask = answer_mask.to(device)
        logp, _ = token_statistics(
            states[answer_mask], answers.to(device)[answer_mask], self.backbone.head(), entropy_gradient=False
        )
        return -logp.sum(), {}


@dataclass(frozen=True, slots=True)
class TooLong:
    """How many rows passed the context: cut on the right, or dropped where the prompt left no room for a completion."""

    cut: int = 0
    dropped: int = 0

    def __str__(self) -> str:
        """What to say of them behind a count of sequences; nothing where all fit."""
        cut = f"; {self.cut} passed the context and were cut on the right" if self.cut else ""
        return cut + (f"; {self.dropped} were dropped, since their prompts alone fill the context" if self.dropped else "")


def completion_rows(rows: Sequence[CompletionRow], codec: Codec, *, completion_only: bool) -> tuple[list[TokenRow], TooLong]:
    """Token rows of prompt and completion, closed with EOS and at most as long as the context, and how many were longer.

    Without `completion_only` the loss begins at the second token, since nothing precedes the first.
    """
    out, cut, dropped = [], 0, 0
    for row in rows:
        prompt = codec.prompt_ids(row.prompt)
        ids = [*prompt, *codec.completion_ids(row.completion)]
        begin = len(prompt) if completion_only else 1
        if begin < codec.context:
            cut += len(ids) > codec.context
            out.append(TokenRow(tuple(ids[: codec.context]), begin))
        else:
            dropped += 1
    if not out:
        raise DataError(f"no row is left: the prompts of all {len(rows)} fill the context of {codec.context} tokens.")
    return out, TooLong(cut, dropped)


@dataclass(frozen=True, slots=True)
class PairRow:
    """The two rows of a preference, as a reward model reads them.

    `target` is the share of votes for the first; `margin` may be 0. `prompt` tells which pairs belong together. `source` is the
    row's column of that name: whose votes they are.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    margin: float
    target: float
    source: str = ""


def pair_rows(rows: Sequence[PreferenceRow], codec: Codec) -> tuple[list[PairRow], int]:
    """Token rows of both answers to each prompt, built by the one function that PPO uses too, and how many answers passed the
    context and lost their beginning."""
    out, num_long = [], 0
    for row in rows:
        prompt = codec.prompt_ids(row.prompt)
        answers = [codec.completion_ids(content) for content in (row.chosen, row.rejected)]
        num_long += sum(len(prompt) + len(ids) > codec.context for ids in answers)
        chosen, rejected = (tuple(reward_row(prompt, ids, codec)) for ids in answers)
        target, source = 1.0 if row.target is None else row.target, str(row.columns.get("source") or "")
        out.append(PairRow(tuple(prompt), chosen, rejected, row.margin or 0.0, target, source))
    return out, num_long
