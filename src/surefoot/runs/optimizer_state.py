"""An optimiser's state as named tensors: every bit of it, keyed by the parameter's name and not by its place in a list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import RunError

HOW = ("fused", "foreach")  # of a group: how a step is computed, not which; this optimiser's own stay
_PLAIN = "#plain"  # a key that no state has: "exp_avg/layer.weight" is KEY/PARAMETER, "#group/0/lr" a group's tensor


def flatten_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    """All state of a torch.optim optimiser: moments and step counts as `KEY/PARAMETER`, numbers of the groups as JSON bytes.

    `names` are those of the parameters in the order of the optimiser's groups. Tensors are not copied.

    Raises:
        RunError: `names` does not fit the optimiser, or its state holds what is neither tensor nor number (LBFGS).
    """
    named = _named_parameters(optimizer, names)
    result: dict[str, Tensor] = {}
    states: dict[str, dict[str, Any]] = {}
    for name, parameter in named.items():
        if parameter in optimizer.state:
            tensors, plain = _split(optimizer.state[parameter], f"state of {name}")
            result |= {f"{key}/{name}": tensor for key, tensor in tensors.items()}
            states[name] = plain
    shapes = {name: list(parameter.shape) for name, parameter in named.items()}
    groups = []
    remaining = iter(names)
    for number, group in enumerate(optimizer.param_groups):
        tensors, plain = _split({key: value for key, value in group.items() if key != "params"}, f"parameter group {number}")
        result |= {f"#group/{number}/{key}": tensor for key, tensor in tensors.items()}
        groups.append({"names": [next(remaining) for _ in group["params"]], "values": plain})
    plain = {"class": type(optimizer).__name__, "groups": groups, "states": states, "shapes": shapes, "tensors": sorted(result)}
    text = json.dumps(plain)
    result[_PLAIN] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return result


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `flatten_optimizer` gave, bit for bit; tensors keep the dtype they were saved with.

    Raises:
        RunError: another kind of optimiser, or other parameters, groups or shapes than those saved. Nothing is created
            afresh, and the optimiser is untouched.
    """
    named = _named_parameters(optimizer, names)
    plain = _read_plain(tensors)
    _check_fit(optimizer, named, plain)
    states: dict[str, dict[str, Any]] = {name: dict(values) for name, values in plain["states"].items()}
    group_tensors: list[dict[str, Tensor]] = [{} for _ in optimizer.param_groups]
    for key, tensor in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "#group":
            number, _, field = rest.partition("/")
            group_tensors[int(number)][field] = tensor
        elif key != _PLAIN:
            states[rest][kind] = _placed(kind, tensor, named[rest], optimizer)
    optimizer.state.clear()
    for name, state in states.items():
        optimizer.state[named[name]] = state
    for group, saved, extra in zip(optimizer.param_groups, plain["groups"], group_tensors, strict=True):
        for field, value in saved["values"].items():
            if field not in HOW:
                group[field] = tuple(value) if isinstance(value, list) else value  # JSON knows no tuple; betas is one
        for field, tensor in extra.items():
            device = group[field].device if isinstance(group.get(field), Tensor) else tensor.device
            group[field] = tensor.clone().to(device)


def _read_plain(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        plain = json.loads(bytes(tensors[_PLAIN].tolist()))
        listed = set(plain["tensors"])
    except (KeyError, ValueError, TypeError) as error:
        raise RunError(
            f"the saved optimiser state was not written by flatten_optimizer: {_PLAIN!r} is missing or unreadable."
        ) from error
    present = set(tensors) - {_PLAIN}
    if listed != present:
        lacking, besides = _some(sorted(listed - present)), _some(sorted(present - listed))
        raise RunError(f"the saved optimiser state lacks {lacking} and has besides {besides}.")
    result: dict[str, Any] = plain
    return result


def _named_parameters(optimizer: torch.optim.Optimizer, names: Sequence[str]) -> dict[str, Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if len(parameters) != len(names):
        raise RunError(
            f"the optimiser holds {len(parameters)} parameters and {len(names)} names were given. Name each once, in order."
        )
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise RunError(f"parameter names occur twice: {', '.join(twice)}. Name each parameter once.")
    return dict(zip(names, parameters, strict=True))


def _split(state: Mapping[str, Any], where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, plain = {}, {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            tensors[key] = value.detach()
        elif _is_plain(value):
            plain[key] = value
        else:
            raise RunError(
                f"optimiser {where}: {key} is {type(value).__name__}; tensors, numbers, text and tuples of them can be saved."
            )
    return tensors, plain


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _check_fit(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    if plain["class"] != type(optimizer).__name__:
        raise RunError(
            f"the saved state is of {plain['class']}, the optimiser is {type(optimizer).__name__}. Resume with the same settings."
        )
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    remaining = iter(named)
    now = [[next(remaining) for _ in range(size)] for size in sizes]
    saved = [group["names"] for group in plain["groups"]]
    missing = sorted({name for group in saved for name in group} - set(named))
    extra = sorted(set(named) - {name for group in saved for name in group})
    if missing or extra:
        raise RunError(
            f"the optimiser's parameters are not those saved: {len(missing)} saved and now absent ({_some(missing)}), "
            f"{len(extra)} new ({_some(extra)}). Resume with the same model and settings."
        )
    if [set(group) for group in saved] != [set(group) for group in now]:
        raise RunError("the optimiser's parameter groups are not those saved. Resume with the same model and settings.")
    for name, parameter in named.items():
        if list(parameter.shape) != plain["shapes"][name]:
            raise RunError(
                f"parameter {name} has shape {list(parameter.shape)}, saved {plain['shapes'][name]}. Resume with the same model."
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "none"


def _placed(key: str, tensor: Tensor, parameter: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    """A copy on the device where torch keeps it: `step` counts stay on the CPU unless the step is captured or fused."""
    if key == "step":
        group = next(group for group in optimizer.param_groups if any(parameter is other for other in group["params"]))
        if not (group.get("capturable") or group.get("fused")):
            return tensor.clone().cpu()
    return tensor.clone().to(parameter.device)
