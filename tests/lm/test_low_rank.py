"""An adapter's change inside the layer's product: PEFT's own figures and gradients, and PEFT's own way for any other case."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from surefoot.lm.low_rank import FusedLinear, fuse


def layer_of(*, bias: bool = True, dtype: torch.dtype = torch.float32, **lora: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 40, bias=bias)).to(dtype).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=12, target_modules=["0"], **lora), model, adapter_name="a")
    layer: Any = model[0]
    for parameter in [*layer.lora_A.parameters(), *layer.lora_B.parameters()]:
        parameter.data = torch.randn(parameter.shape) * 0.3
        parameter.requires_grad_(True)
    return layer


def fused(layer: Any) -> Any:
    other = copy.deepcopy(layer)
    fuse(other)
    assert type(other) is FusedLinear
    return other


def said(layer: Any, x: Tensor, upstream: Tensor, *, input_gradient: bool = True) -> dict[str, Tensor]:
    x = x.clone().requires_grad_(input_gradient)
    y = layer(x)
    y.backward(upstream)
    out = {"y": y.detach(), "down": layer.lora_A["a"].weight.grad, "up": layer.lora_B["a"].weight.grad}
    return out | ({"x": x.grad} if x.grad is not None else {})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (3, 5, 24), (1, 1, 24), (2, 0, 24)])
@pytest.mark.parametrize("input_gradient", [True, False])
def test_figures_and_gradients_are_those_of_peft(bias: bool, shape: tuple[int, ...], input_gradient: bool) -> None:
    layer = layer_of(bias=bias)
    x, upstream = torch.randn(shape), torch.randn((*shape[:-1], 40))
    theirs = said(copy.deepcopy(layer), x, upstream, input_gradient=input_gradient)
    ours = said(fused(layer), x, upstream, input_gradient=input_gradient)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5)


def test_in_half_precision_it_is_float32_to_the_rounding_of_its_operands() -> None:
    half = layer_of(dtype=torch.bfloat16)
    exact = copy.deepcopy(half).float()
    x, upstream = torch.randn(64, 24).bfloat16(), torch.randn(64, 40).bfloat16()
    truth = said(exact, x.float(), upstream.float())
    ours = said(fused(half), x, upstream)
    assert ours["y"].dtype == torch.bfloat16 and ours["down"].dtype == ours["up"].dtype == torch.float32
    for name, value in truth.items():
        assert ((ours[name].float() - value).norm() / value.norm()).item() < 2**-7, name


def test_off_it_is_the_bare_layer() -> None:
    layer, x = fused(layer_of()), torch.randn(5, 24)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.get_base_layer()(x))


@pytest.mark.parametrize("case", ["dropout", "dora", "two adapters", "bias of its own", "autocast", "merged"])
def test_any_other_case_is_as_peft_computes_it(case: str) -> None:
    lora = {"dropout": {"lora_dropout": 0.5}, "dora": {"use_dora": True}, "bias of its own": {"lora_bias": True}}
    layer = layer_of(**lora.get(case, {}))
    if case == "two adapters":
        layer.update_layer("b", 4, lora_alpha=8, config=LoraConfig(r=4))
        layer.lora_B["b"].weight.data.normal_()
        layer.set_adapter(["a", "b"])
    if case == "bias of its own":
        layer.lora_B["a"].bias.data.normal_()
    if case == "merged":
        layer.merge()
    layer.eval()
    x = torch.randn(5, 24)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert torch.equal(fused(layer)(x), layer(x))


def test_what_a_layer_gives_may_be_written_into() -> None:
    layer, x = layer_of(), torch.randn(2, 5, 24)
    clamped = [one(x).clamp_(-0.1, 0.1) for one in (layer, fused(layer))]
    torch.testing.assert_close(clamped[1], clamped[0])


@pytest.mark.parametrize("touched", ["hook", "forward", "trained bias"])
def test_what_is_attached_to_the_base_layer_still_acts(touched: str) -> None:
    layer = fused(layer_of())
    base = layer.get_base_layer()
    if touched == "hook":
        base.register_forward_hook(lambda module, given, out: out * 2)
    if touched == "forward":
        base.forward = lambda x: nn.functional.linear(x, base.weight) * 3
    base.bias.requires_grad_(touched == "trained bias")
    x = torch.randn(5, 24)
    out = layer(x)
    torch.testing.assert_close(out, LoraLinear.forward(layer, x))
    out.sum().backward()
    assert (base.bias.grad is not None) == (touched == "trained bias")


def test_layers_that_are_not_plainly_linear_stay_as_they_are() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Scaled(24, 40))
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["0"]), model, adapter_name="a")
    fuse(model[0])
    assert type(model[0]) is LoraLinear
