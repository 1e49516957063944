"""What a reward model reads."""

from __future__ import annotations

import pytest

from surefoot.lm.tiny import tiny_tokenizer
from surefoot.lm.tokens import Codec, reward_row


@pytest.fixture(scope="module")
def codec() -> Codec:
    tokenizer = tiny_tokenizer(["the film was good"])
    return Codec(tokenizer, tokenizer.pad_token_id, (tokenizer.eos_token_id, 7), tokenizer.bos_token_id, context=6)


def test_an_answer_that_length_cut_is_read_like_the_same_answer_closed(codec: Codec) -> None:
    eos = codec.eos_ids[0]
    assert reward_row([40, 41], [50, 51], codec) == reward_row([40, 41], [50, 51, eos], codec) == [40, 41, 50, 51, eos]


def test_an_answer_closed_by_another_of_the_models_ends_keeps_its_own(codec: Codec) -> None:
    assert reward_row([40], [50, 7], codec) == [40, 50, 7]


def test_an_empty_answer_is_the_prompt_closed(codec: Codec) -> None:
    assert reward_row([40, 41], [], codec) == [40, 41, codec.eos_ids[0]]


def test_a_row_beyond_the_context_loses_its_beginning_and_keeps_its_end(codec: Codec) -> None:
    assert reward_row([40, 41, 42, 43], [50, 51], codec) == [41, 42, 43, 50, 51, codec.eos_ids[0]]
