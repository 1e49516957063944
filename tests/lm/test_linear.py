"""Linear layers through oneDNN: what torch's own give, and the model they are in stays the model it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from surefoot.config import ModelConfig
from surefoot.lm import linear as linear_module
from surefoot.lm.adapters import add_adapter
from surefoot.lm.linear import Linear, product, use_onednn
from tiny_language import make_backbone

pytestmark = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN",
)


@pytest.fixture(autouse=True)
def on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As if this CPU were AMD's; the list of rows that were multiplied."""
    rows: list[int] = []
    plain = linear_module._by_onednn
    monkeypatch.setattr(linear_module, "has_onednn", lambda: True)
    monkeypatch.setattr(linear_module, "_by_onednn", lambda x, *rest: rows.append(x.numel() // x.shape[-1]) or plain(x, *rest))
    return rows


@pytest.mark.parametrize("shape", [(7, 64), (7, 5, 64), (3, 2, 4, 64), (0, 64)])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("learns", [("x",), ("weight", "bias"), ("x", "weight", "bias"), ()])
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], with_bias: bool, learns: tuple[str, ...], on_any_cpu: list[int]
) -> None:
    generator = torch.Generator().manual_seed(0)
    given = {"x": torch.randn(shape, generator=generator), "weight": torch.randn(48, 64, generator=generator)}
    given |= {"bias": torch.randn(48, generator=generator)} if with_bias else {}
    upstream = torch.randn(*shape[:-1], 48, generator=generator)

    def results(multiply: Any) -> list[Tensor]:
        args = {name: x.clone().requires_grad_(name in learns) for name, x in given.items()}
        out = multiply(args["x"], args["weight"], args.get("bias"))
        if any(x.requires_grad for x in args.values()):
            out.backward(upstream)
        return [out.detach(), *(x.grad for x in args.values() if x.grad is not None)]

    ours, theirs = results(product), results(linear)
    assert len(on_any_cpu) == 1
    assert len(ours) == len(theirs) == 1 + len([name for name in learns if name in given])
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.allclose(found, expected, atol=1e-4)


def test_rows_that_do_not_lie_side_by_side_in_memory() -> None:
    x, weight = torch.randn(5, 9, 64), torch.randn(48, 64)
    for view in (x.transpose(0, 1), x[:, ::2], x[1:, 3:]):
        assert torch.allclose(product(view, weight, None), linear(view, weight), atol=1e-4)


def test_what_is_not_float32_goes_torchs_way(on_any_cpu: list[int]) -> None:
    x, weight = torch.randn(7, 64), torch.randn(48, 64)
    assert product(x.bfloat16(), weight.bfloat16(), None).dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert product(x, weight, None).dtype == torch.bfloat16
    assert on_any_cpu == []


def test_a_model_keeps_its_weights_its_names_and_its_adapters(model: Any, tokenizer: Any, on_any_cpu: list[int]) -> None:
    rows = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(model)
    with torch.no_grad():
        expected = plain(rows).logits
    cfg = ModelConfig(name="tiny", lora_rank=4)
    backbone = make_backbone(copy.deepcopy(model), tokenizer, cfg)
    changed = backbone.model
    layer = changed.get_decoder().layers[0].mlp.up_proj
    assert type(layer) is Linear and isinstance(layer, nn.Linear)
    assert changed.state_dict().keys() == plain.state_dict().keys()
    on_any_cpu.clear()
    with torch.no_grad():
        assert torch.allclose(changed(rows).logits, expected, atol=1e-4)
    assert on_any_cpu == [27] * (7 * len(changed.get_decoder().layers) + 1), "every linear layer, the head among them"
    copied = copy.deepcopy(changed).get_decoder().layers[0].mlp.up_proj
    assert type(copied) is Linear and copied.weight is not layer.weight
    add_adapter(changed, "policy", cfg, seed=0)
    with torch.no_grad():
        assert torch.allclose(backbone.model(rows).logits, expected, atol=1e-4), "a new adapter changes nothing"
    assert type(backbone.merged("policy").model.lm_head) is Linear


def test_layers_of_other_classes_stay_what_they_are() -> None:
    class Other(nn.Linear):
        pass

    layers = nn.Sequential(Other(3, 3), nn.Linear(3, 3), nn.Conv1d(3, 3, 1))
    use_onednn(layers)
    assert [type(layer) for layer in layers] == [Other, Linear, nn.Conv1d]
