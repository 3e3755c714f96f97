"""Laws over the table of proposals; those that refit remove what the rest can stand in for."""

from collections.abc import Mapping
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selector.network.groups import Group
from selector.network.layers import input_dimension
from selector.network.tracing import find_groups
from selector.saliency.proposals.covariance import views_of
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import METRICS
from selector.saliency.scoring import lowest
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from tests.networks import STYLES, data, small, state_of
from tests.saliency.proposals.twins import Batches, order_of, reordered

REFITTED = ("reconstruction", "reconstruction_fisher", "column_subset")
"""Proposals by what the channels left can stand in for."""

BY_DATA = (*REFITTED, "joint_0")
"""With a first order, a removal that lowers the loss goes before one that does nothing."""


NEEDS = frozenset[str]().union(*(proposal.needs for proposal in PROPOSALS.values()))

Sets = Mapping[tuple[str, int], tuple[int, ...]]


def measured(model: nn.Module, batches: Batches) -> tuple[Mapping[str, Group], dict[str, Signals]]:
    groups = find_groups(model, batches[0][0]).prunable
    return groups, measure_signals(model, batches, groups, needs=NEEDS)


@cache
def signals_of(style: str, batch: int = 5, permuted: bool = False) -> dict[str, Signals]:
    """Signals of a small network of a style; its channels may be in other orders."""
    model, batches = small(style, 5, seed=4, norm=True), data(15, batch)
    before = state_of(model)
    groups, signals = measured(model, batches)
    assert state_of(model) == before
    if permuted:
        orders = {name: order_of(group.channels) for name, group in groups.items()}
        signals = measured(reordered(model, groups, orders), batches)[1]
    return signals


def all_sets(name: str, signals: Mapping[str, Signals]) -> Sets:
    """Group and count -> what is proposed, for every count."""
    return {
        (group, count): PROPOSALS[name].checked(group, found, count)
        for group, found in signals.items()
        for count in range(1, found.channels)
    }


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PROPOSALS)
def test_sets_have_the_right_size_and_no_repeats_within_range(name: str, style: str) -> None:
    signals = signals_of(style)
    sets = all_sets(name, signals)
    assert sets
    for (group, count), found in sets.items():
        assert len(found) == len(set(found)) == count
        assert set(found) < set(range(signals[group].channels))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PROPOSALS)
def test_permuting_channels_permutes_the_sets(name: str, style: str) -> None:
    signals = signals_of(style)
    permuted = all_sets(name, signals_of(style, permuted=True))
    for (group, count), found in all_sets(name, signals).items():
        if PROPOSALS[name].kind == "ranking":
            scores = METRICS[name](signals[group]).sort().values
            if scores[count] - scores[count - 1] < 1e-9:
                continue  # A tie goes by channel number.
        order = order_of(signals[group].channels)
        assert tuple(sorted(order[c] for c in permuted[group, count])) == found


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", PROPOSALS)
def test_batch_sizes_change_nothing(name: str, style: str) -> None:
    assert all_sets(name, signals_of(style, 4)) == all_sets(name, signals_of(style, 15))


@pytest.mark.parametrize(
    "style", ["plain", "two_consumers", "flatten", "residual", "grouped", "grouped_transposed"]
)
def test_a_channel_that_nothing_reads_goes_first(style: str) -> None:
    model, batches = small(style, 5, seed=1, norm=True), data(15, 5)
    groups = find_groups(model, batches[0][0]).prunable
    with torch.no_grad():
        for part in groups["stem"].slices:
            if part.side == "in":
                layer = model.get_submodule(part.layer)
                size = layer.weight.shape[dimension := input_dimension(layer)]
                own = zip(part.indices, part.channels, strict=True)
                gone = sorted({i % size for i, c in own if c == 3})
                layer.weight.index_fill_(dimension, torch.tensor(gone), 0)
    _, signals = measured(model, batches)
    for name in BY_DATA:
        # Two channels whose effects cancel may be a better pair than one of them with none.
        largest = 1 if name.startswith("joint") else signals["stem"].channels - 1
        for count in range(1, largest + 1):
            assert 3 in PROPOSALS[name].checked("stem", signals["stem"], count)


class Parallel(nn.Module):
    """Four channels: planes 0, 0 again, 1 and 2 of the image, all read alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.stem.weight.copy_(torch.eye(3)[[0, 0, 1, 2]][:, :, None, None])
            mixing = torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, 0.5], [0.5, 0.5, 1, -1]])
            self.head.weight.copy_(mixing[:, :, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images)).mean((2, 3))


@pytest.mark.parametrize("name", REFITTED)
def test_a_duplicate_goes_before_an_independent_channel_of_the_same_energy(name: str) -> None:
    model, batches = Parallel().double().eval(), data(64, 16, classes=3)
    for channels in ((0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0)):
        copied = Parallel().double().eval()
        with torch.no_grad():
            copied.stem.weight.copy_(model.stem.weight[list(channels)])
            copied.head.weight.copy_(model.head.weight[:, list(channels)])
        _, signals = measured(copied, batches)
        (gone,) = PROPOSALS[name].checked("stem", signals["stem"], 1)
        assert channels[gone] in (0, 1)


def test_scaling_that_the_next_layer_undoes_changes_nothing() -> None:
    model, batches = small("two_consumers", 6, seed=5, act="relu"), data(15, 5)
    _, before = measured(model, batches)
    with torch.no_grad():
        for channel, scale in enumerate((0.1, 1.0, 30.0, 5.0, 0.2, 1.0)):
            model.stem.weight[channel] *= scale
            model.stem.bias[channel] *= scale
            model.first.weight[:, channel] /= scale
            model.second.weight[:, channel] /= scale
    _, after = measured(model, batches)
    for name in REFITTED:
        assert all_sets(name, after) == all_sets(name, before)


def test_the_ranking_is_its_metrics_lowest_channels() -> None:
    signals = signals_of("plain")
    for (group, count), found in all_sets("rank_mean", signals).items():
        assert found == lowest(METRICS["rank_mean"](signals[group]), count)


def test_reconstruction_reads_no_labels() -> None:
    model, batches = small("residual", 6), data()
    groups = find_groups(model, batches[0][0]).prunable
    unlabelled = [(images, None) for images, _ in batches]
    one, other = (
        measure_signals(model, some, groups, needs="input_products")
        for some in (batches, unlabelled)
    )
    for name in ("reconstruction", "column_subset"):
        assert all_sets(name, one) == all_sets(name, other)


@pytest.mark.parametrize(
    "style", ["plain", "two_consumers", "flatten", "grouped", "grouped_transposed"]
)
def test_column_subset_keeps_what_the_kept_explain_least(style: str) -> None:
    found = signals_of(style)["stem"]
    channels = found.channels
    # Columns whose products are the weighted covariance, one set after the other.
    table = np.zeros((channels, channels))
    for view in views_of(found):
        norms = np.sqrt(np.diag(view.outputs.numpy()))
        products = view.inputs.numpy() * np.outer(norms, norms)
        width = len(norms) // channels
        for c in range(channels):
            for d in range(channels):
                for i in range(width):
                    table[c, d] += products[c * width + i, d * width + i]
    columns = np.linalg.cholesky(table).T
    kept: list[int] = []
    while len(kept) < channels - 1:
        fitted = np.linalg.lstsq(columns[:, kept], columns, rcond=None)[0]
        left = np.square(columns - columns[:, kept] @ fitted).sum(0)
        left[kept] = -1
        kept.append(int(left.argmax()))
        expected = tuple(sorted(set(range(channels)) - set(kept)))
        assert PROPOSALS["column_subset"].checked("stem", found, channels - len(kept)) == expected


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", [p.name for p in PROPOSALS.values() if p.nested])
def test_the_order_of_a_nested_proposal_answers_for_every_number(name: str, style: str) -> None:
    for group, found in signals_of(style).items():
        order = PROPOSALS[name].ordered(group, found, found.channels - 1)
        for count in range(1, found.channels):
            assert tuple(sorted(order[:count])) == PROPOSALS[name].checked(group, found, count)
