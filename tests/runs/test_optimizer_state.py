"""An optimiser that was flattened, saved and restored goes on bit for bit; one that does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from surefoot.errors import RunError
from surefoot.optim import adamw
from surefoot.runs import all_finite, flatten_optimizer, restore_optimizer

Make = Callable[[nn.Module], torch.optim.Optimizer]


def two_groups(net: nn.Module) -> list[dict[str, object]]:
    weights = [p for name, p in net.named_parameters() if name.endswith("weight")]
    biases = [p for name, p in net.named_parameters() if name.endswith("bias")]
    return [{"params": weights, "lr": 0.03, "weight_decay": 0.1}, {"params": biases, "lr": 0.007}]


def group_names(net: nn.Module) -> list[str]:
    names = [name for name, _ in net.named_parameters()]
    return sorted(names, key=lambda name: name.endswith("bias"))


OPTIMIZERS: dict[str, Make] = {
    "adam": lambda net: torch.optim.Adam(two_groups(net), betas=(0.8, 0.99), eps=1e-5),
    "adam amsgrad": lambda net: torch.optim.Adam(two_groups(net), amsgrad=True),
    "sgd with a tensor as lr": lambda net: torch.optim.SGD([{**group, "lr": torch.tensor(0.03)} for group in two_groups(net)]),
    "adamw": lambda net: torch.optim.AdamW(two_groups(net), maximize=False, foreach=False),
    "adamw fused": lambda net: torch.optim.AdamW(two_groups(net), fused=True),
    "sgd": lambda net: torch.optim.SGD(two_groups(net), lr=0.1),
    "sgd momentum": lambda net: torch.optim.SGD(two_groups(net), lr=0.1, momentum=0.9, nesterov=True),
    "adafactor": lambda net: torch.optim.Adafactor(two_groups(net)),
    "nadam": lambda net: torch.optim.NAdam(two_groups(net)),
    "rmsprop": lambda net: torch.optim.RMSprop(two_groups(net), centered=True, momentum=0.5),
    "asgd": lambda net: torch.optim.ASGD(two_groups(net)),
}


def make_net(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)).to(dtype)


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number)).to(next(net.parameters()).dtype)
        optimizer.zero_grad()
        net(x).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0.9  # what a schedule does
        optimizer.step()


def through_a_file(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    safetensors.torch.save_file(tensors, path / "optimizer.safetensors")
    return dict(safetensors.torch.load_file(path / "optimizer.safetensors"))


def everything(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, object]]:
    saved = optimizer.state_dict()
    for number, state in saved["state"].items():
        for key, value in state.items():
            yield f"{number}.{key}", (value.dtype, value.device, value.tolist()) if isinstance(value, Tensor) else value
    for number, group in enumerate(saved["param_groups"]):
        for key, value in group.items():
            yield f"group {number}.{key}", (value.dtype, value.tolist()) if isinstance(value, Tensor) else (type(value), value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_restored_optimiser_goes_on_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    make = OPTIMIZERS[kind]
    net = make_net(dtype=dtype)
    optimizer = make(net)
    steps(net, optimizer, range(5))
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    saved = through_a_file(flatten_optimizer(optimizer, group_names(net)), tmp_path)
    steps(net, optimizer, range(5, 9))

    other = make_net(seed=1, dtype=dtype)
    other.load_state_dict(weights)
    restored = make(other)
    restore_optimizer(restored, group_names(other), saved)
    steps(other, restored, range(5, 9))
    assert dict(everything(restored)) == dict(everything(optimizer))
    for name, tensor in net.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


def test_moments_in_float32_of_bfloat16_weights_keep_their_bits(tmp_path: Path) -> None:
    # torch's own load_state_dict casts state to the parameter's dtype: 1 + 2^-20 would come back as 1
    net = make_net(dtype=torch.bfloat16)
    optimizer = torch.optim.Adam(net.parameters())
    names = [name for name, _ in net.named_parameters()]
    for parameter in net.parameters():
        moment = torch.full(parameter.shape, 1 + 2**-20)
        optimizer.state[parameter] = {"step": torch.tensor(3.0), "exp_avg": moment, "exp_avg_sq": moment.clone()}
    saved = through_a_file(flatten_optimizer(optimizer, names), tmp_path)
    restored = torch.optim.Adam(net.parameters())
    restore_optimizer(restored, names, saved)
    for parameter in net.parameters():
        assert restored.state[parameter]["exp_avg"].dtype == torch.float32
        assert restored.state[parameter]["exp_avg"].flatten()[0].item() == 1 + 2**-20


def test_state_follows_the_name_and_not_the_place(tmp_path: Path) -> None:
    net = make_net()
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.Adam(net.parameters())
    steps(net, optimizer, range(3))
    saved = flatten_optimizer(optimizer, names)
    turned = torch.optim.Adam(reversed(list(net.parameters())))
    restore_optimizer(turned, names[::-1], saved)
    for parameter in net.parameters():
        assert torch.equal(turned.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_parameter_that_never_had_a_gradient_stays_without_state() -> None:
    net = make_net()
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.Adam(net.parameters())
    next(iter(net.parameters())).grad = torch.ones(5, 3)
    optimizer.step()
    restored = torch.optim.Adam(net.parameters())
    restore_optimizer(restored, names, flatten_optimizer(optimizer, names))
    assert [parameter in restored.state for parameter in net.parameters()] == [True, False, False, False]


def test_state_that_was_there_before_is_gone_after_restoring() -> None:
    net = make_net()
    names = [name for name, _ in net.named_parameters()]
    fresh = flatten_optimizer(torch.optim.Adam(net.parameters()), names)
    used = torch.optim.Adam(net.parameters())
    steps(net, used, range(2))
    restore_optimizer(used, names, fresh)
    assert len(used.state) == 0


def test_keys_are_names_a_reader_understands() -> None:
    net = make_net()
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, lr=torch.tensor(0.1))
    steps(net, optimizer, range(1))
    assert sorted(flatten_optimizer(optimizer, names)) == [
        "#group/0/lr",
        "#plain",
        "momentum_buffer/0.bias",
        "momentum_buffer/0.weight",
        "momentum_buffer/1.bias",
        "momentum_buffer/1.weight",
    ]


def refused(optimizer: torch.optim.Optimizer, names: list[str], saved: dict[str, Tensor], sentence: str) -> None:
    before = dict(everything(optimizer))
    with pytest.raises(RunError, match=sentence):
        restore_optimizer(optimizer, names, saved)
    assert dict(everything(optimizer)) == before


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    net, names = make_net(), ["a", "b", "c", "d"]
    optimizer = torch.optim.Adam(net.parameters())
    steps(net, optimizer, range(2))
    saved = flatten_optimizer(optimizer, names)
    missing = r"1 saved and now absent \(d\), 1 new \(x\)\. Resume with the same model and settings\."
    refused(optimizer, ["a", "b", "c", "x"], saved, missing)
    refused(optimizer, ["b", "a", "c", "d"], saved, r"parameter b has shape \[5, 3\], saved \[5\]")
    refused(optimizer, ["a", "b", "c"], saved, "holds 4 parameters and 3 names were given")
    refused(optimizer, ["a", "b", "b", "d"], saved, "parameter names occur twice: b")
    refused(torch.optim.SGD(net.parameters()), names, saved, "saved state is of Adam, the optimiser is SGD")
    parameters = list(net.parameters())
    fewer = torch.optim.Adam(parameters[:3])
    refused(fewer, names[:3], saved, r"1 saved and now absent \(d\), 0 new \(none\)")
    split = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])
    refused(split, names, saved, "parameter groups are not those saved")
    refused(optimizer, names, {**saved, "exp_avg/zzz": torch.zeros(1)}, "lacks none and has besides exp_avg/zzz")
    refused(
        optimizer,
        names,
        {key: tensor for key, tensor in saved.items() if key != "#plain"},
        "was not written by flatten_optimizer",
    )
    refused(
        optimizer,
        names,
        {key: tensor for key, tensor in saved.items() if key != "exp_avg/b"},
        "lacks exp_avg/b and has besides none",
    )
    refused(optimizer, names, {**saved, "#plain": torch.tensor([123], dtype=torch.uint8)}, "was not written by flatten_optimizer")


def test_state_that_cannot_be_kept_exactly_is_refused() -> None:
    net = make_net()
    names = [name for name, _ in net.named_parameters()]
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = net(torch.ones(1, 3)).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(RunError, match=r"is list; tensors, numbers, text and tuples of them can be saved"):
        flatten_optimizer(optimizer, names)


def test_how_a_step_is_computed_is_the_new_optimisers_own(tmp_path: Path) -> None:
    net = make_net()
    names = [name for name, _ in net.named_parameters()]
    plain = torch.optim.AdamW(net.parameters(), lr=0.5)
    steps(net, plain, range(3))
    fused = adamw(net.parameters(), lr=0.1, weight_decay=0.0)
    restore_optimizer(fused, names, through_a_file(flatten_optimizer(plain, names), tmp_path))
    assert fused.param_groups[0]["fused"] is True and fused.param_groups[0]["lr"] == plain.param_groups[0]["lr"] != 0.1
    steps(net, fused, range(3, 4))
    assert {state["step"].item() for state in fused.state.values()} == {4.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "odd, expected",
    [
        ((), True),
        ((6e4, 6e4, 6e4), True),  # finite, though their sum is none in float16
        ((float("nan"),), False),
        ((float("inf"),), False),
        ((float("inf"), float("-inf")), False),
    ],
)
def test_numbers_that_are_not_finite_are_found_whatever_their_sum(
    dtype: torch.dtype, odd: tuple[float, ...], expected: bool
) -> None:
    x = torch.zeros(7, 11, dtype=dtype)
    x.view(-1)[3 : 3 + len(odd)] = torch.tensor(odd, dtype=dtype)
    assert all_finite(x) is expected


def test_large_float32_numbers_are_finite_though_their_sum_is_not() -> None:
    assert all_finite(torch.full((4,), 3e38))
    assert all_finite(torch.zeros(0))


def test_numbers_that_cannot_be_summed_are_looked_at_one_by_one() -> None:
    x = torch.zeros(4).to(torch.float8_e5m2)
    assert all_finite(x)
    assert not all_finite(torch.tensor([1.0, float("inf")]).to(torch.float8_e5m2))
    assert all_finite(torch.arange(3)) and all_finite(torch.tensor([True]))
