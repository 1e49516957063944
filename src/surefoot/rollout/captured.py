"""A decode step recorded once and replayed: on a GPU its 1,500 small operations cost more to launch than to compute.

A recording (a CUDA graph) has fixed shapes and addresses. So tokens and lengths are copied into buffers of a few sizes, and rows
and columns beyond what is held are computed and thrown away: a row beyond the last writes into a place that is free, a column
beyond a row's end is masked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

Step = Callable[[Tensor, Tensor, int], Tensor]  # tokens [R], lengths [R] and a width to the states [R, D]
Replay = Callable[[], None]
Recorder = Callable[[Callable[[], Tensor]], tuple[Replay, Tensor]]  # gives what replays it, and where the result will be

COLUMNS = 64  # widths are multiples of it


@dataclass(frozen=True, slots=True)
class _Recording:
    tokens: Int[Tensor, " R"]
    lengths: Int[Tensor, " R"]
    replay: Replay
    states: Float[Tensor, "R D"]


class CapturedSteps:
    """Steps of up to `slots` rows of up to `capacity` tokens, recorded for each size when it is first needed.

    Where a step cannot be recorded, as one that asks the device for a number, it is run as it is from then on.
    """

    def __init__(self, *, slots: int, capacity: int, record: Recorder) -> None:
        self.slots, self.capacity, self.record = slots, capacity, record
        self.records = True
        self._recordings: dict[tuple[int, int], _Recording] = {}

    def __call__(self, step: Step, tokens: Int[Tensor, " B"], lengths: Int[Tensor, " B"], width: int) -> Float[Tensor, "B D"]:
        """What `step` gives, by its recording; it must be the same step every time."""
        if not self.records:
            return step(tokens, lengths, width)
        rows, columns = smallest_size(len(tokens), self.slots), min(-(-width // COLUMNS) * COLUMNS, self.capacity)
        recording = self._recordings.get((rows, columns))
        if recording is None:
            buffers = tokens.new_zeros(rows), lengths.new_zeros(rows)
            self._fill(*buffers, tokens, lengths)
            try:
                replay, states = self.record(lambda: step(*buffers, columns))
            except RuntimeError:
                self.records = False
                return step(tokens, lengths, width)
            recording = self._recordings[rows, columns] = _Recording(*buffers, replay, states)
        self._fill(recording.tokens, recording.lengths, tokens, lengths)
        recording.replay()
        return recording.states[: len(tokens)].clone()

    @staticmethod
    def _fill(into_tokens: Tensor, into_lengths: Tensor, tokens: Tensor, lengths: Tensor) -> None:
        into_tokens[: len(tokens)], into_lengths[: len(tokens)] = tokens, lengths
        into_lengths[len(tokens) :] = 0


def smallest_size(rows: int, slots: int) -> int:
    """The smallest of slots, slots / 2, slots / 4, ... (rounded up) that holds `rows`."""
    size = slots
    while (half := -(-size // 2)) >= rows and half < size:
        size = half
    return size


def cuda_graph_recorder() -> Recorder:
    """Records what is called as a CUDA graph; all graphs of one recorder share a pool of memory."""
    stream, pool = torch.cuda.Stream(), torch.cuda.graph_pool_handle()

    def record(call: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()  # libraries make their handles and choose their kernels, which no recording may do
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            states = call()
        return graph.replay, states

    return record
