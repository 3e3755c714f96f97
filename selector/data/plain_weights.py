"""Layers with weight or spectral norm, given a plain weight while the library works on them.

Removing inputs from such a layer would change the norm of what is left, and so its weight. Pruning
therefore works on the weight that the norm makes; afterwards the layer gets parameters back that
make just that weight. Both ways of PyTorch are known: `nn.utils.parametrizations`, and the older
functions of `nn.utils` that compute the weight in a hook.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_KEPT = "_selector_norm"
_POWER_ITERATIONS = 15


@dataclass(eq=False)
class _Norm:
    """What made a layer's weight, while the layer has a plain one."""

    kind: Literal["weight", "spectral"]
    rule: Any
    """The parametrization or the hook."""
    made: Tensor
    """The weight that it made."""
    tensors: dict[str, nn.Parameter | Tensor]
    """Its own: `g` and `v`, or `weight`, `u` and `v`."""
    layer_class: type[nn.Module]
    hook: int | None
    """The hook's number among the layer's; None of a parametrization."""

    @property
    def shape_from(self) -> str:
        """Which tensor of the layer's state has the shape of its weight."""
        if self.hook is None:
            end = "original1" if self.kind == "weight" else "original"
            return f"parametrizations.weight.{end}"
        return f"{self.rule.name}_{'v' if self.kind == 'weight' else 'orig'}"


@contextmanager
def plain_weights(model: object) -> Iterator[None]:
    """Context in which the layers of a network have plain weights; it is left as it was found."""
    changed = make_plain(model) if isinstance(model, nn.Module) else []
    try:
        yield
    finally:
        for layer in changed:
            _put_back(layer, vars(layer).pop(_KEPT))


def make_plain(model: nn.Module) -> list[nn.Module]:
    """Give every layer with weight or spectral norm a plain weight, in place.

    Returns:
        The layers that had one of these.
    """
    changed = []
    for layer in model.modules():
        if _KEPT not in vars(layer) and (norm := _norm_of(layer)) is not None:
            _take_off(layer, norm)
            changed.append(layer)
    return changed


def normalise_again(model: nn.Module) -> None:
    """Give layers whose weights were made plain their norm back, in place, for the present weight.

    In evaluation mode nothing changes. In training mode spectral norm scales what is left of a
    weight to a spectral norm of one again: that is what it is for.
    """
    for layer in model.modules():
        norm: _Norm | None = vars(layer).pop(_KEPT, None)
        if norm is None:
            continue
        weight = cast(Tensor, layer.weight).detach()
        if not torch.equal(weight, norm.made.to(weight)):
            norm.tensors = _tensors_for(weight, norm)
        _put_back(layer, norm)


def weight_shapes(model: nn.Module) -> dict[str, str]:
    """Layer with a plain weight for the time -> tensor of its state that has the weight's shape."""
    return {
        name: vars(layer)[_KEPT].shape_from
        for name, layer in model.named_modules()
        if _KEPT in vars(layer)
    }


def _norm_of(layer: nn.Module) -> _Norm | None:
    """The norm of a layer's weight, if it is one that is known, and alone."""
    if parametrize.is_parametrized(layer):
        return _parametrized_norm(layer)
    for number, hook in layer._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm | SpectralNorm) and hook.name == "weight":
            return _hooked_norm(layer, number, hook)
    return None


def _parametrized_norm(layer: nn.Module) -> _Norm | None:
    lists = cast(nn.ModuleDict, layer.parametrizations)
    if list(lists) != ["weight"] or len(cast(nn.ModuleList, lists["weight"])) != 1:
        return None
    own = cast(Any, lists["weight"])
    rule = own[0]
    tensors: dict[str, nn.Parameter | Tensor]
    if isinstance(rule, parametrizations._WeightNorm):
        kind: Literal["weight", "spectral"] = "weight"
        tensors = {"g": own.original0, "v": own.original1}
    elif isinstance(rule, parametrizations._SpectralNorm) and own.original.ndim > 1:
        kind, tensors = "spectral", {"weight": own.original, "u": rule._u, "v": rule._v}
    else:
        return None
    training, rule.training = rule.training, False  # No step of the power iteration.
    try:
        with torch.no_grad():
            made = cast(Tensor, layer.weight).clone()
    finally:
        rule.training = training
    return _Norm(kind, rule, made, tensors, type(layer), None)


def _hooked_norm(layer: nn.Module, number: int, hook: Any) -> _Norm:
    own = {**layer._parameters, **layer._buffers}
    if isinstance(hook, WeightNorm):
        kind: Literal["weight", "spectral"] = "weight"
        names = {"g": "weight_g", "v": "weight_v"}
    else:
        kind = "spectral"
        names = {"weight": "weight_orig", "u": "weight_u", "v": "weight_v"}
    with torch.no_grad():
        made = hook.compute_weight(layer, *([] if kind == "weight" else [False])).clone()
    tensors = {short: cast(Tensor, own[name]) for short, name in names.items()}
    return _Norm(kind, hook, made, tensors, type(layer), number)


def _take_off(layer: nn.Module, norm: _Norm) -> None:
    if norm.hook is None:
        vars(layer)[_KEPT + "s"] = layer._modules.pop("parametrizations")
        layer.__class__ = type(layer).__bases__[0]
    else:
        del layer._forward_pre_hooks[norm.hook]
        for name in ("weight_g", "weight_v", "weight_orig", "weight_u"):
            layer._parameters.pop(name, None)
            layer._buffers.pop(name, None)
        vars(layer).pop("weight", None)
    trained = any(t.requires_grad for t in norm.tensors.values())
    layer._parameters["weight"] = nn.Parameter(norm.made.clone(), trained)
    vars(layer)[_KEPT] = norm


def _put_back(layer: nn.Module, norm: _Norm) -> None:
    """Give a layer the norm with the tensors that it has now."""
    plain = cast(nn.Parameter, layer._parameters.pop("weight")).detach()
    found = norm.tensors
    if norm.hook is None:
        layer.__class__ = norm.layer_class
        lists = layer._modules["parametrizations"] = vars(layer).pop(_KEPT + "s")
        own = lists["weight"]._parameters
        if norm.kind == "weight":
            own.update(original0=found["g"], original1=found["v"])
        else:
            own.update(original=found["weight"])
            lists["weight"][0]._buffers.update(_u=found["u"], _v=found["v"])
    else:
        if norm.kind == "weight":
            layer.register_parameter("weight_g", cast(nn.Parameter, found["g"]))
            layer.register_parameter("weight_v", cast(nn.Parameter, found["v"]))
        else:
            layer.register_parameter("weight_orig", cast(nn.Parameter, found["weight"]))
            layer._buffers.update(weight_u=found["u"], weight_v=found["v"])
        vars(layer)["weight"] = plain
        layer._forward_pre_hooks[norm.hook] = norm.rule
        # Before any other, as when it was registered.
        cast(OrderedDict[int, Any], layer._forward_pre_hooks).move_to_end(norm.hook, last=False)


def _tensors_for(weight: Tensor, norm: _Norm) -> dict[str, nn.Parameter | Tensor]:
    """Tensors of the norm that make this weight."""
    flags = {name: tensor.requires_grad for name, tensor in norm.tensors.items()}
    if norm.kind == "weight":
        dimension = norm.rule.dim
        scale = torch.norm_except_dim(weight, 2, -1 if dimension is None else dimension)
        scale = scale.view(norm.tensors["g"].shape) if norm.tensors["g"].ndim == 0 else scale
        # Of a filter that is zero any direction will do, but one of length zero.
        direction = torch.where(scale == 0, torch.ones_like(weight), weight)
        return {
            "g": nn.Parameter(scale.clone(), flags["g"]),
            "v": nn.Parameter(direction.clone(), flags["v"]),
        }
    dimension = norm.rule.dim
    # At the scale that the parameter had, so that steps of training stay as large.
    size = _ratio(norm.tensors["weight"], norm.made)
    raw = weight * size
    matrix = raw.movedim(dimension, 0).flatten(1)
    right = torch.nn.functional.normalize(matrix.sum(0) + 1e-3, dim=0)
    for _ in range(_POWER_ITERATIONS):
        right = torch.nn.functional.normalize(matrix.mT @ (matrix @ right), dim=0)
    left = matrix @ right
    squared = left @ left
    # The norm divides by left' W right: with this left it is the size, and the weight as it was.
    left = left * (size / squared) if float(squared) > 0 else left
    return {"weight": nn.Parameter(raw.clone(), flags["weight"]), "u": left, "v": right}


def _ratio(raw: Tensor, made: Tensor) -> Tensor:
    """The norm by which a weight was divided."""
    raw = raw.detach()
    return (raw * made).sum() / made.square().sum().clamp_min(torch.finfo(made.dtype).tiny)
