"""Token rows: padding, stop rules, chat templates, and THE one shift between tokens and the states that chose them.

Sampled ids are the ids that are trained: nothing here decodes and encodes again. Prompts are padded on the left while sampling
(so that all rows append at one column) and moved to the left edge for evaluation, where causal attention then needs no mask at
all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from surefoot.errors import DataError, first_line

Text = str | Sequence[dict[str, str]]  # plain text, or messages with role and content


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B P"], Bool[Tensor, "B P"]]:
    """Token rows as one tensor, padded on the left, with the mask of real tokens."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows], dtype=torch.long).reshape(len(rows), width)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) >= width - lengths[:, None]


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Token rows as one tensor, padded on the right, with the mask of real tokens."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows], dtype=torch.long).reshape(len(rows), width)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(width) < lengths[:, None]


@dataclass(frozen=True, slots=True)
class Context:
    """What a response was written in: left-padded prompts, and the mask of the response's tokens. Indexable by row.

    `begun` are the joined rows' states after the blocks that no role changes, where they are kept (else None).
    """

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    mask: Bool[Tensor, "B T"]
    begun: Float[Tensor, "B L D"] | None = None

    def __getitem__(self, rows: Tensor) -> Context:
        begun = None if self.begun is None else self.begun[rows]
        return Context(self.prompt_ids[rows], self.prompt_mask[rows], self.mask[rows], begun)

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def lengths(self) -> Int[Tensor, " B"]:
        """Tokens of prompt and response together."""
        return self.prompt_mask.sum(1) + self.mask.sum(1)


def joined_rows(context: Context, response_ids: Int[Tensor, "B T"], pad_id: int) -> tuple[Int[Tensor, "B L"], Int[Tensor, " B"]]:
    """Prompt and response of each row side by side from column 0, and the prompts' lengths.

    Padding stands on the right alone and holds `pad_id`, whatever stood in masked slots before, so that with causal attention no
    real token sees it. L is the longest row's length.
    """
    ids = torch.cat([context.prompt_ids, response_ids], dim=1)
    mask = torch.cat([context.prompt_mask, context.mask], dim=1)
    length = max(int(mask.sum(1).max()), 1)
    order = torch.argsort(~mask, dim=1, stable=True)[:, :length]  # real tokens first, in their order
    ids = torch.where(mask, ids, pad_id).gather(1, order)
    return ids, context.prompt_mask.sum(1)


def states_before(
    hidden: Float[Tensor, "B L D"], prompt_lengths: Int[Tensor, " B"], num_tokens: int
) -> Float[Tensor, "B T_plus_1 D"]:
    """THE one shift: the state that chose response token t stands at position prompt_length + t - 1 of the joined row.

    Returns the states before tokens 0..T-1 and, last, the state after token T-1, so `[:, :-1]` pairs with log-probs and values,
    `[:, 1:]` with next values. Beyond a row's end the last column is repeated; the mask hides it.
    """
    position = prompt_lengths[:, None] - 1 + torch.arange(num_tokens + 1, device=hidden.device)
    position = position.clamp(max=hidden.shape[1] - 1)
    return hidden.gather(1, position[:, :, None].expand(-1, -1, hidden.shape[2]))


def last_states(hidden: Float[Tensor, "B L D"], lengths: Int[Tensor, " B"]) -> Float[Tensor, "B D"]:
    """The state at the last real token of each right-padded row: where a reward head reads."""
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), lengths - 1]


@dataclass(frozen=True, slots=True)
class Codec:
    """Text to ids and back, for one tokenizer: special ids, the context, and how a prompt is rendered.

    `eos_ids` end a response; `pad_id` is none of them. `template` "chat" renders messages with the tokenizer's chat template.
    """

    tokenizer: Any
    pad_id: int
    eos_ids: tuple[int, ...]
    bos_id: int | None
    context: int
    template: Literal["auto", "chat", "plain"] = "auto"

    def render(self, prompt: Text) -> str:
        """The prompt as the model reads it: text as it is (plain), or the chat template with the assistant's turn opened."""
        chat = self.template == "chat" or (self.template == "auto" and not isinstance(prompt, str))
        if not chat:
            if not isinstance(prompt, str):
                raise DataError(
                    'model.template = "plain" cannot render a list of messages. Use model.template = "chat" or string prompts.'
                )
            return prompt
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        if not self.tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template, and the prompts are messages. Use string prompts, or a chat model."
            )
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # a template is somebody's program: it refuses roles, or fails
            raise DataError(
                f"the tokenizer's chat template refuses the prompt {str(prompt)[:80]!r}: {first_line(error)}. Mend either, "
                'or use string prompts with model.template = "plain".'
            ) from error

    def prompt_ids(self, prompt: Text) -> list[int]:
        """Ids of a prompt. A template that writes BOS itself is not given a second one; an empty prompt becomes BOS."""
        text = self.render(prompt)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        begins = self.tokenizer("", add_special_tokens=True)["input_ids"][
            :1
        ]  # what the tokenizer itself puts in front, if anything
        if begins and begins[0] == self.bos_id and ids[:1] != begins:
            ids = begins + ids
        if not ids:
            if self.bos_id is None:
                raise DataError(
                    "a prompt is empty and the tokenizer has no BOS token to begin from. Give every prompt at least one word."
                )
            ids = [self.bos_id]
        return ids

    def completion_ids(self, completion: Text, *, end: bool = True) -> list[int]:
        """Ids of a completion, closed with EOS unless `end` is False."""
        text = completion if isinstance(completion, str) else "".join(message["content"] for message in completion)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, self.eos_ids[0]] if end else ids

    def has_ids_of(self, tokenizer: Any) -> bool:
        """True where each of our tokens has its id in `tokenizer` too, so that our ids can be read there as they are."""
        return self.tokenizer.get_vocab().items() <= tokenizer.get_vocab().items()  # loading may add a token or two

    def text(self, ids: Sequence[int]) -> str:
        """The text of a response, without its special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text, special tokens by their name.

        A letter that takes several tokens stands at the last of them, and the others are empty.
        """
        pieces, whole = [], ""
        for count in range(1, len(ids) + 1):
            longer = str(self.tokenizer.decode(list(ids[:count]), skip_special_tokens=False))
            is_open = longer.endswith("\N{REPLACEMENT CHARACTER}") and count < len(ids)
            pieces.append("" if is_open else longer[len(whole) :])
            whole = whole if is_open else longer
        return pieces


def reward_row(prompt_ids: Sequence[int], completion_ids: Sequence[int], codec: Codec) -> list[int]:
    """The one input of a reward model: prompt, completion, EOS; cut on the left at the context.

    Training, evaluation and PPO all build their rows here, so that one pair gets one score wherever it is scored. An answer that
    length cut is closed with EOS too: a reward model that has seen closed answers alone reads noise in the middle of a sentence.
    What a cut answer should lose is said openly, by `missing_eos_penalty`.
    """
    closed = completion_ids and completion_ids[-1] in codec.eos_ids
    return [*prompt_ids, *completion_ids, *(() if closed else codec.eos_ids[:1])][-codec.context :]


def finished_rows(ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B T"], stop_ids: Sequence[int]) -> Bool[Tensor, " B"]:
    """True where a response's last real token is one of `stop_ids`; an EOS inside the prompt does not count."""
    lengths = mask.sum(1)
    last = ids.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
    return torch.isin(last, torch.tensor(list(stop_ids), device=ids.device)) & (lengths > 0)
