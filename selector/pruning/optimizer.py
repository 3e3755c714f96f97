"""`rebind`: an optimizer made for a network goes on with the network that pruning left of it."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from selector.data.checks import check_kind
from selector.errors import SelectorError
from selector.network.surgery import apply_cuts
from selector.pruning.result import PruneResult


def rebind(optimizer: Optimizer, result: PruneResult) -> None:
    """Let an optimizer follow the surgery, in place, so that training can go on as it was.

    Its groups get the parameters of the pruned network, in their places and with their settings.
    State of a parameter's shape (momentum, first and second moments, whatever an optimizer keeps)
    loses the positions that the parameter lost; counters stay.

    Args:
        optimizer: Made for the parameters of the network that was given to `prune`.
        result: What `prune` returned.

    Raises:
        SelectorError: An optimizer of another network, or one that keeps state of another shape
            than its parameters'; it is then as it was.
    """
    check_kind("optimizer", optimizer, Optimizer, "call rebind(optimizer, result)")
    check_kind("result", result, PruneResult, "pass what prune returned")
    names = _names(result.unpruned)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in names for p in held):
        raise SelectorError(
            "the optimizer holds no parameter of the network that was given to prune; rebind the "
            "one that was made for it, once, or make a new one for result.model"
        )
    kept = kept_positions(result)
    small = dict(result.model.named_parameters(remove_duplicate=False))
    new = {id(p): small[names[id(p)]] for p in held if id(p) in names}
    state = {
        p: _sliced(optimizer.state[p], p, kept.get(names[id(p)]), names[id(p)])
        for p in held
        if id(p) in names and p in optimizer.state
    }
    for group in optimizer.param_groups:
        group["params"] = [new.get(id(p), p) for p in group["params"]]
    for p in held:
        old = optimizer.state.pop(p, None)
        if p in state:
            optimizer.state[new[id(p)]] = state[p]
        elif old is not None:
            optimizer.state[p] = old


def kept_positions(result: PruneResult) -> dict[str, Tensor]:
    """Of each parameter that lost something, the positions in the flattened original, in its shape.

    Layers that number their own weights are cut as the network was: one way of cutting for both.

    Returns:
        Name -> int64 positions, of the shape that the parameter has now.
    """
    layers = dict.fromkeys(cut.layer for cut in result.cuts)
    numbered = nn.Module()
    places: dict[str, str] = {}
    for count, name in enumerate(layers):
        places[name] = f"layer{count}"
        numbered.add_module(places[name], _numbered(result.unpruned.get_submodule(name)))
    cuts = [type(cut)(places[cut.layer], cut.side, cut.indices) for cut in result.cuts]
    apply_cuts(numbered, cuts)
    return {
        f"{name}.{kind}" if name else kind: p.detach().long()
        for name, place in places.items()
        for kind, p in numbered.get_submodule(place).named_parameters(recurse=False)
    }


def _numbered(layer: nn.Module) -> nn.Module:
    """A copy in which every parameter holds its own positions, exact up to 2 to the 53."""
    found = copy.deepcopy(layer).cpu().double()
    for parameter in found.parameters(recurse=False):
        numbers = torch.arange(parameter.numel(), dtype=torch.float64)
        parameter.data = numbers.view(parameter.shape)
    return found


def _names(model: nn.Module) -> Mapping[int, str]:
    found: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), name)
    return found


def _sliced(
    state: Mapping[str, object], parameter: Tensor, kept: Tensor | None, name: str
) -> dict[str, object]:
    """The state with what belongs to the positions that are left."""
    if kept is None:
        return dict(state)
    found: dict[str, object] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.numel() == 1 != parameter.numel():
            found[key] = value
        elif value.shape == parameter.shape:
            found[key] = value.flatten()[kept.to(value.device).flatten()].view(kept.shape).clone()
        else:
            raise SelectorError(
                f"the optimizer keeps {key!r} of shape {tuple(value.shape)} for parameter {name!r} "
                f"of shape {tuple(parameter.shape)}, and its channels cannot be found; make a new "
                "optimizer for result.model"
            )
    return found
