"""Products through oneDNN: what torch's own are, of few numbers of rows, and only where they are meant."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from surefoot.lm import linear as linear_module
from surefoot.lm.linear import product
from surefoot.lm.logits import Head, token_statistics

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if this CPU were AMD's; the list of rows that were multiplied."""
    rows: list[int] = []
    plain = linear_module._by_onednn
    monkeypatch.setattr(linear_module, "has_onednn", lambda: True)
    monkeypatch.setattr(linear_module, "_by_onednn", lambda x, *rest: rows.append(len(x)) or plain(x, *rest))
    return rows


@pytest.mark.parametrize("rows", [1, 7, 16, 33])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("learns", [("x",), ("weight", "bias"), ("x", "weight", "bias"), ()])
def test_values_and_gradients_are_those_of_torch(
    rows: int, with_bias: bool, learns: tuple[str, ...], multiplied: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    given = {"x": torch.randn(rows, 64, generator=generator), "weight": torch.randn(48, 64, generator=generator)}
    given |= {"bias": torch.randn(48, generator=generator)} if with_bias else {}
    upstream = torch.randn(rows, 48, generator=generator)

    def results(multiply: Any) -> list[Tensor]:
        args = {name: x.clone().requires_grad_(name in learns) for name, x in given.items()}
        out = multiply(args["x"], args["weight"], args.get("bias"))
        if any(x.requires_grad for x in args.values()):
            out.backward(upstream)
        return [out.detach(), *(x.grad for x in args.values() if x.grad is not None)]

    ours, theirs = results(product), results(linear)
    assert multiplied == [rows]
    assert len(ours) == len(theirs) == 1 + len([name for name in learns if name in given])
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_numbers_that_do_not_lie_side_by_side_in_memory() -> None:
    x, weight, bias = torch.randn(9, 128), torch.randn(48, 128), torch.randn(96)
    for view, w, b in (
        (x[:, ::2], weight[:, ::2], bias[::2]),
        (torch.randn(64, 9).T, torch.randn(64, 48).T, bias[:1].expand(48)),
        (x[1:, 3:], weight[:, 3:], None),
    ):
        assert torch.allclose(product(view, w, b), linear(view, w, b), atol=1e-4)


def test_what_is_not_float32_goes_torchs_way(multiplied: list[int]) -> None:
    x, weight = torch.randn(7, 64), torch.randn(48, 64)
    assert product(x.bfloat16(), weight.bfloat16(), None).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x, weight, None).dtype == torch.bfloat16
    assert product(x[:0], weight, None).shape == (0, 48)
    try:
        torch._C._set_mkldnn_enabled(False)  # the user's own switch
        product(x, weight, None)
    finally:
        torch._C._set_mkldnn_enabled(True)
    assert multiplied == []
    product(x, weight, None)
    assert multiplied == [7]


def test_few_numbers_of_rows_reach_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps code for each number of rows that it sees."""
    seen: set[int] = set()
    plain = torch.ops.mkldnn._linear_pointwise

    class Ops:
        @staticmethod
        def _linear_pointwise(x: Tensor, *rest: Any) -> Tensor:
            seen.add(len(x))
            return plain(x, *rest)

    monkeypatch.setattr(linear_module.torch.ops, "mkldnn", Ops)
    weight = torch.randn(48, 64)
    for rows in range(1, 171):
        assert product(torch.randn(rows, 64), weight, None).shape == (rows, 48)
    assert seen == set(range(16, 177, 16))


def test_the_heads_logits_go_through_it(multiplied: list[int]) -> None:
    states, weight = torch.randn(13, 8), torch.randn(20, 8)
    for learns in (False, True):
        multiplied.clear()
        head = Head(weight.clone().requires_grad_(learns), None, 1.0)
        logp, _ = token_statistics(states.clone().requires_grad_(), torch.arange(13), head)
        logp.sum().backward()
        assert multiplied == ([13, 13] if learns else [13])
