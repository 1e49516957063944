"""Steps that are recorded once and replayed. A CUDA graph needs a GPU; what it needs of a step is held here.

That is: fixed shapes, buffers at fixed addresses, nothing asked of the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from surefoot.config import RolloutConfig
from surefoot.lm.backbone import Backbone
from surefoot.rollout.captured import COLUMNS, CapturedSteps, Replay, smallest_size
from surefoot.rollout.local import LocalEngine
from surefoot.rollout.packed import PackedDecoder
from surefoot.types import Completions
from tiny_language import make_backbone, make_policy, make_prompts, moved, random_rows


class Tape:
    """Replays by calling again, into the tensor that the first call gave; counts both."""

    def __init__(self) -> None:
        self.recorded, self.replayed = 0, 0

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        self.recorded += 1
        states = call().clone()

        def replay() -> None:
            self.replayed += 1
            states.copy_(call())

        return replay, states


class Unasked(TorchDispatchMode):
    """Fails on operations that read numbers from the device, or whose result's shape depends on them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select):
            raise AssertionError(f"{func} asks the device for numbers")
        return func(*args, **(kwargs or {}))


def engine_with(record: Any, backbone: Backbone, monkeypatch: pytest.MonkeyPatch, **rollout: Any) -> LocalEngine:
    """An engine whose decoders record by `record` (None: do not)."""
    init = PackedDecoder.__init__

    def recording(self: PackedDecoder, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        if record is not None:
            self.capture(record)

    monkeypatch.setattr(PackedDecoder, "__init__", recording)
    engine = LocalEngine(backbone, RolloutConfig(response_length=9, **rollout), adapter="policy")
    engine.stop_ids = tuple(range(3, 100, 4))  # rows end and wait, join and leave
    return engine


def answers(engine: LocalEngine, rows: list[list[int]]) -> Completions:
    prompts = make_prompts(rows, engine.backbone.codec.pad_id)
    made = engine.generate(prompts, torch.Generator().manual_seed(3))
    assert engine.packs
    return made


@pytest.mark.parametrize("slots", [1, 3, 7, 12])
def test_recorded_steps_give_the_answers_of_plain_ones(
    model: Any, tokenizer: Any, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = moved(make_policy(make_backbone(model, tokenizer))).backbone
    rows = random_rows(backbone, 12, 1, 9)
    tape = Tape()
    with monkeypatch.context() as patch:
        plain = answers(engine_with(None, backbone, patch, batch_size=slots), rows)
    recorded = answers(engine_with(tape, backbone, monkeypatch, batch_size=slots), rows)
    assert torch.equal(plain.ids, recorded.ids) and torch.equal(plain.mask, recorded.mask)
    torch.testing.assert_close(recorded.logp_sampler, plain.logp_sampler, rtol=1e-5, atol=1e-5)
    assert 0 < tape.recorded < tape.replayed, "sizes come back"
    assert len(set(plain.mask.sum(1).tolist())) > 1


def test_a_step_asks_the_device_for_nothing(model: Any, tokenizer: Any) -> None:
    backbone = moved(make_policy(make_backbone(model, tokenizer))).backbone
    with torch.no_grad():
        decoder = PackedDecoder(backbone, "policy", slots=4, capacity=20)
        decoder.begin([[5, 6, 7], [8], [9, 10]])
        with Unasked():
            states = decoder._step(torch.tensor([11, 12, 13]), decoder.lengths, 20)
            with pytest.raises(AssertionError, match="asks the device"):
                states.sum().item()
        torch.testing.assert_close(states, decoder.step(torch.tensor([11, 12, 13])))


def test_buffers_are_of_few_sizes_and_hold_zeros_beyond_the_rows() -> None:
    seen: list[tuple[list[int], list[int], int]] = []

    def step(tokens: Tensor, lengths: Tensor, width: int) -> Tensor:
        seen.append((tokens.tolist(), lengths.tolist(), width))
        return tokens[:, None].float() * 2

    steps = CapturedSteps(slots=8, capacity=100, record=Tape())
    for count, width in ((3, 10), (7, COLUMNS), (3, COLUMNS + 1), (4, 5)):
        tokens = torch.arange(1, count + 1)
        out = steps(step, tokens, tokens + 1, width)
        assert torch.equal(out, tokens[:, None].float() * 2)
        given, lengths, columns = seen[-1]
        assert given[:count] == tokens.tolist() and lengths == [*(tokens + 1).tolist(), *[0] * (len(given) - count)]
        assert (len(given), columns) == (4 if count < 5 else 8, COLUMNS if width <= COLUMNS else 100)
    assert steps.record.recorded == 3, "four rows of few columns were recorded when three were"  # type: ignore[attr-defined]


def test_a_result_outlives_the_next_replay() -> None:
    steps = CapturedSteps(slots=2, capacity=8, record=Tape())
    first = steps(lambda tokens, lengths, width: tokens[:, None].float(), torch.tensor([3, 4]), torch.tensor([1, 1]), 2)
    steps(lambda tokens, lengths, width: tokens[:, None].float(), torch.tensor([5, 6]), torch.tensor([2, 2]), 3)
    assert first[:, 0].tolist() == [3, 4]


def test_a_step_that_cannot_be_recorded_is_run_as_it_is() -> None:
    tried = []

    def refuse(call: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        tried.append(call)
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = CapturedSteps(slots=4, capacity=8, record=refuse)
    for _ in range(2):
        out = steps(lambda tokens, lengths, width: tokens[:, None] * width, torch.tensor([3, 4]), torch.tensor([1, 1]), 2)
        assert out[:, 0].tolist() == [6, 8]
    assert len(tried) == 1


@pytest.mark.parametrize(
    "rows, slots, size", [(1, 1, 1), (1, 8, 1), (3, 8, 4), (4, 8, 4), (5, 8, 8), (3, 7, 4), (2, 5, 2), (5, 5, 5)]
)
def test_sizes_are_halves(rows: int, slots: int, size: int) -> None:
    assert smallest_size(rows, slots) == size
