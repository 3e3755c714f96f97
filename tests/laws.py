"""What must hold of every group of every network: the law of removal, and predicted costs."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selector.network.costs import Measure, count_costs
from selector.network.groups import Group
from selector.network.masking import masked
from selector.network.surgery import apply_cuts, cuts_of, temporarily_cut
from selector.network.tracing import Groups, find_groups

MEASURES: tuple[Measure, ...] = ("macs", "parameters", "weights")


def check_law(
    model: nn.Module, images: Tensor, removals: list[tuple[Group, list[int]]], tolerance: float
) -> None:
    """Masked, cut for a while, and cut for good must give the same outputs."""
    with torch.no_grad():
        before = model(images)
        nested = [masked(model, group, channels) for group, channels in removals]
        for context in nested:
            context.__enter__()
        expected = model(images)
        for context in reversed(nested):
            context.__exit__(None, None, None)
        with temporarily_cut(model, removals):
            for_a_while = model(images)
            narrower = sum(p.numel() for p in model.parameters())
        assert torch.equal(model(images), before)
        smaller = copy.deepcopy(model)
        apply_cuts(smaller, cuts_of(removals))
        for_good = smaller(images)
    scale = float(expected.abs().max())
    assert float((for_a_while - expected).abs().max()) <= tolerance * scale
    assert float((for_good - expected).abs().max()) <= tolerance * scale
    assert narrower == sum(p.numel() for p in smaller.parameters())
    assert narrower < sum(p.numel() for p in model.parameters())


def some_channels(group: Group, generator: torch.Generator) -> list[int]:
    count = int(torch.randint(1, group.channels, (), generator=generator))
    return torch.randperm(group.channels, generator=generator)[:count].tolist()


def check_structure(model: nn.Module, groups: Groups) -> None:
    layers = dict(model.named_modules())
    roots = set()
    for name, group in groups.prunable.items():
        assert name == group.name
        assert name in group.producers
        assert group.consumers
        assert all(part.layer in layers for part in group.slices)
        roots |= set(group.producers)
    assert roots.isdisjoint(groups.refused)


def check_costs(model: nn.Module, images: Tensor) -> None:
    """As PyTorch counts them, before a cut; and after it as they were predicted."""
    groups = find_groups(model, images)
    check_totals(model, images)
    generator = torch.Generator().manual_seed(1)
    removals = [(g, some_channels(g, generator)) for g in groups.prunable.values()]
    counts = {group: len(channels) for group, channels in removals}
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of(removals))
    check_totals(smaller, images)
    for measure in MEASURES:
        predicted = groups.costs.total(measure, counts)
        assert count_costs(smaller, images).total(measure) == pytest.approx(predicted, rel=1e-9)
    for group in groups.prunable.values():
        one = copy.deepcopy(model)
        apply_cuts(one, cuts_of([(group, [group.channels - 1])]))
        now = count_costs(one, images)
        assert groups.costs.total("macs") - now.total("macs") == pytest.approx(
            group.macs_per_channel, rel=1e-9
        )
        assert groups.costs.total("parameters") - now.total("parameters") == pytest.approx(
            group.parameters_per_channel, rel=1e-9
        )


def check_totals(model: nn.Module, images: Tensor) -> None:
    costs = count_costs(model, images)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(images)
    assert costs.total("macs") * 2 * len(images) == pytest.approx(counter.get_total_flops())
    assert costs.total("parameters") == sum(p.numel() for p in model.parameters())
    convolutions = [m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    assert costs.total("weights") == sum(m.weight.numel() for m in convolutions)
