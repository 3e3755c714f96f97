"""An optimizer follows the surgery: training goes on as in the masked network of full size."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adafactor, Adagrad, Adam, AdamW, Optimizer, RMSprop

from selector.errors import SelectorError
from selector.network.masking import masked
from selector.network.tracing import find_groups
from selector.pruning.optimizer import kept_positions, rebind
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult
from tests.networks import STYLES, data, small

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.01, momentum=0.5),
    "adagrad": lambda p: Adagrad(p, lr=0.01),
    "adadelta": lambda p: Adadelta(p, lr=0.5),
}


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: list[tuple[Tensor, Tensor]],
    after: Callable[[], None] = lambda: None,
) -> list[float]:
    """Losses of one pass; batch statistics, where there are any."""
    losses = []
    model.train()
    for images, labels in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step()
        after()
        losses.append(float(loss.detach()))
    model.eval()
    return losses


def pruned(model: nn.Module, **options: object) -> PruneResult:
    return prune(model, data(), criterion="l1", ratio=0.5, recalibrate=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("style", ["two_consumers", "flatten"])
def test_training_goes_on_as_in_the_masked_network(kind: str, style: str) -> None:
    model, batches = small(style, 6, norm=style != "flatten"), data(24, 4)
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, batches[:3])
    result = pruned(model, rounds=2)
    groups = find_groups(model, batches[0][0]).prunable
    reference = OPTIMIZERS[kind](model.parameters())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    rebind(optimizer, result)
    got = train(result.model, optimizer, batches[3:])
    gone = [(groups[name], channels) for name, channels in result.plan.removals.items()]

    def mask() -> None:
        """What was masked stays so, whatever the optimizer adds to it."""
        for group, channels in gone:
            with masked(model, group, channels):
                zeroed = {name: model.get_submodule(name).weight.data for name in group.consumers}
            for name, weight in zeroed.items():
                model.get_submodule(name).weight.data.copy_(weight)

    mask()
    expected = train(model, reference, batches[3:], mask)
    assert got == pytest.approx(expected, rel=1e-9)
    assert len(set(got)) == len(got)


@pytest.mark.parametrize("style", STYLES)
def test_positions_are_those_of_the_values(style: str) -> None:
    model = small(style, 6, norm=True, act="prelu")
    result = pruned(model)
    full = dict(model.named_parameters())
    small_ = dict(result.model.named_parameters())
    kept = kept_positions(result)
    assert {n for n in full if full[n].shape != small_[n].shape} <= set(kept)
    for name, positions in kept.items():
        assert torch.equal(full[name].flatten()[positions], small_[name])


def test_groups_settings_and_strangers_stay() -> None:
    model = small("plain", 6, norm=True)
    stranger = nn.Parameter(torch.ones(2, dtype=torch.float64))
    head = list(model.head.parameters())
    rest = [p for p in model.parameters() if all(p is not q for q in head)]
    optimizer = SGD([{"params": rest, "lr": 0.1}, {"params": [*head, stranger]}], lr=0.2)
    result = pruned(model)
    rebind(optimizer, result)
    first, second = optimizer.param_groups
    assert (first["lr"], second["lr"]) == (0.1, 0.2)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in result.model.parameters()} | {id(stranger)}
    assert id(result.model.head.weight) in {id(p) for p in second["params"]}


def test_an_optimizer_of_another_network_is_refused() -> None:
    result = pruned(small("plain", 6))
    other = SGD(small("plain", 6).parameters(), lr=0.1)
    with pytest.raises(SelectorError, match="holds no parameter of the network that was given"):
        rebind(other, result)
    optimizer = SGD(result.unpruned.parameters(), lr=0.1)
    rebind(optimizer, result)
    with pytest.raises(SelectorError, match="once, or make a new one"):
        rebind(optimizer, result)


def test_state_of_another_shape_is_refused_and_nothing_changed() -> None:
    model = small("plain", 6)
    optimizer = Adafactor(model.parameters(), lr=0.01)
    train(model, optimizer, data())
    result = pruned(model)
    before = [id(p) for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(SelectorError, match=r"keeps 'row_var' of shape .* for parameter 'stem"):
        rebind(optimizer, result)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == before
