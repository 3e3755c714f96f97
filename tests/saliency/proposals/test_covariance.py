"""What consumers see of a group, against loops; approximations give what their words say."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector.errors import SelectorError
from selector.network import input_products
from selector.network.groups import Group
from selector.network.input_products import RIDGE
from selector.network.layers import CONVOLUTION
from selector.network.tracing import find_groups
from selector.saliency.proposals import covariance as module
from selector.saliency.proposals.covariance import views_of
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from selector.typing import Matrix
from tests.networks import STYLES, data, small
from tests.saliency.proposals.twins import Batches, covariance, places, reading_weights, seen

NEEDS = ("input_products", "gradient_products")


def measured(model: nn.Module, batches: Batches) -> tuple[Mapping[str, Group], dict[str, Signals]]:
    groups = find_groups(model, batches[0][0]).prunable
    return groups, measure_signals(model, batches, groups, needs=NEEDS)


def expected_views(
    model: nn.Module, group: Group, layer: str, batches: Batches
) -> list[tuple[Matrix, Matrix, Matrix]]:
    """A, W W^T and the gradients' products in units of A, for every block of a consumer."""
    inputs, slopes = seen(model, layer, batches)
    consumer = model.get_submodule(layer)
    blocks = consumer.groups if isinstance(consumer, CONVOLUTION) else 1
    found, total = [], 0.0
    for block in range(blocks):
        own = [
            place
            for of_channel in places(group, layer)
            for place in np.array_split(of_channel, blocks)[block].tolist()
        ]
        columns = [np.concatenate([image[place] for image in inputs]) for place in own]
        spread = np.array([column.std() for column in columns])
        weights = np.array([reading_weights(consumer, place) for place in own])
        positions = inputs[0].shape[1]
        gradients = sum(image[own] @ image[own].T for image in slopes) / len(slopes) / positions
        outer = np.outer(spread, spread)
        a = covariance(columns)
        b = weights @ weights.T * outer
        total += float((a * b).sum())
        found.append((a, b, gradients * outer * positions / 2))
    return [(a, b / total, g) for a, b, g in found]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_views_equal_loops(style: str, norm: bool) -> None:
    model, batches = small(style, 4, seed=3, norm=norm), data(7, 3)
    groups, signals = measured(model, batches)
    for name, group in groups.items():
        expected = [
            view
            for layer in group.consumers
            for view in expected_views(model, group, layer, batches)
        ]
        errors, damages = views_of(signals[name]), views_of(signals[name], by_gradient=True)
        assert len(errors) == len(damages) == len(expected)
        for error, damage, (a, b, g) in zip(errors, damages, expected, strict=True):
            np.testing.assert_allclose(error.inputs, a, atol=1e-9)
            np.testing.assert_allclose(error.outputs, b, atol=1e-9 * b.max())
            np.testing.assert_allclose(damage.inputs, a, atol=1e-9)
            np.testing.assert_allclose(damage.outputs, g, atol=1e-9 * g.max())


def test_gradients_at_a_linear_layers_inputs_are_weights_times_those_at_its_outputs() -> None:
    model, batches = small("flatten", 3, seed=1), data(6, 3)
    _, signals = measured(model, batches)
    (consumer,) = signals["hidden"].consumer_inputs
    outputs: list[Tensor] = []
    for images, labels in batches:
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            logits = model(image)
            loss = functional.cross_entropy(logits, label)
            outputs.append(torch.autograd.grad(loss, logits)[0][0])
    of_outputs = torch.stack([torch.outer(g, g) for g in outputs]).mean(0)
    weight = model.head.weight.detach()
    expected = weight.T @ of_outputs @ weight
    found = consumer.products["gradient_products"][0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_batch_sizes_change_nothing() -> None:
    model = small("flatten", 4)
    one, other = (measured(model, data(12, size))[1]["stem"] for size in (12, 5))
    for name in NEEDS:
        torch.testing.assert_close(
            one.consumer_inputs[0].products[name], other.consumer_inputs[0].products[name]
        )


def test_inputs_of_a_channel_are_positions_where_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = small("flatten", 4), data(9, 4)
    exact = views_of(measured(model, batches)[1]["stem"])[0]
    assert exact.inputs.shape == (16, 16)
    monkeypatch.setattr(input_products, "EXACT", 15)
    groups, signals = measured(model, batches)
    (rough,) = views_of(signals["stem"])
    inputs, _ = seen(model, "hidden", batches)
    by_channel = [
        np.concatenate([image[own].ravel() for image in inputs])
        for own in places(groups["stem"], "hidden")
    ]
    np.testing.assert_allclose(rough.inputs, covariance(by_channel), atol=1e-9)
    weights = np.array(
        [
            np.concatenate([reading_weights(model.hidden, place) for place in own])
            for own in places(groups["stem"], "hidden")
        ]
    )
    spread = np.array([column.std() for column in by_channel])
    b = weights @ weights.T * np.outer(spread, spread)
    np.testing.assert_allclose(rough.outputs, b / (covariance(by_channel) * b).sum(), atol=1e-9)


def test_some_positions_of_a_map_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small("plain", 4), data(9, 4)
    whole = measured(model, batches)[1]["stem"].consumer_inputs[0].products
    monkeypatch.setattr(input_products, "POSITIONS", 16)
    some = measured(model, batches)[1]["stem"].consumer_inputs[0].products
    # The corner counts positions: 64 in an image, however many are read.
    assert float(some["input_products"][0, -1, -1]) == pytest.approx(64)
    for name in NEEDS:
        one, other = whole[name].diagonal(dim1=1, dim2=2), some[name].diagonal(dim1=1, dim2=2)
        assert bool((one != other).any())
        assert float((other.sum() / one.sum()).log().abs()) < 0.5


def test_a_small_spread_around_a_large_mean_is_kept_in_single_precision() -> None:
    model, batches = small("plain", 6), data(16, 5)
    with torch.no_grad():
        model.stem.bias += 3000.0
    (exact,) = views_of(measured(model, batches)[1]["stem"])
    single = [(images.float(), labels) for images, labels in batches]
    (found,) = views_of(measured(model.float(), single)[1]["stem"])
    np.testing.assert_allclose(found.inputs, exact.inputs, atol=2e-3)
    assert float(torch.linalg.eigvalsh(found.inputs)[0]) > 0


def test_a_constant_channel_has_no_correlation_and_costs_nothing() -> None:
    model = small("plain", 4)
    with torch.no_grad():
        model.stem.weight[2] = 0
        model.stem.bias[2] = 3.0
    (view,) = views_of(measured(model, data(8, 4))[1]["stem"])
    assert view.inputs[2].tolist() == [0, 0, 1 + RIDGE, 0]
    assert view.outputs[2].abs().max() == 0


def test_statistics_that_were_not_measured_are_named() -> None:
    model, batches = small("plain"), data()
    groups = find_groups(model, batches[0][0]).prunable
    signals = measure_signals(model, batches, groups, needs="input_products")["stem"]
    with pytest.raises(SelectorError, match="hold no gradient_products"):
        views_of(signals, by_gradient=True)
    with pytest.raises(SelectorError, match="hold no input_products"):
        views_of(measure_signals(model, batches, groups)["stem"])


def test_a_group_too_wide_for_pairs_is_refused_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WIDEST", 3)
    with pytest.raises(SelectorError, match=r"4 channels is too wide .* name it in ignore"):
        measured(small("plain", 4), data())
