"""Several sources of gradients share a forward pass: each has what a pass of its own gives it."""

import pytest
import torch
from torch import Tensor, nn

from selector.network.tracing import find_groups
from selector.saliency.proposals.set_errors import NEEDS
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import Asked, measure_signals, measure_sources
from selector.statistics.leaves import lowest_leaves
from selector.statistics.statistic import PAIRS, first_order_needs
from tests.networks import STYLES, data, randomise, small, state_of
from tests.scored import close
from tests.statistics.test_collect import InPlace
from tests.statistics.test_recomputation import Parts, not_reentrant, ones_own, reentrant

OF_LOSS, OF_OUTPUTS = first_order_needs() | PAIRS, frozenset(NEEDS)
NETWORKS = {
    **{style: lambda style=style: small(style, norm=True) for style in STYLES},
    "in place": lambda: InPlace(True),
    "checkpointed": lambda: Parts(not_reentrant),
    "checkpointed, reentrant": lambda: Parts(reentrant),
    "recomputed by its own function": lambda: Parts(ones_own),
}


def network(name: str) -> nn.Module:
    return randomise(NETWORKS[name]().double()).eval()


def assert_same(found: Signals, expected: Signals) -> None:
    for one, other in (
        (found.at_consumers, expected.at_consumers),
        (found.at_producers, expected.at_producers),
    ):
        assert one.positions == other.positions
        for quantity, moments in other.quantities.items():
            for field in ("sum", "absolute", "square", "square_of_sum"):
                assert close(getattr(one[quantity], field), getattr(moments, field), 1e-9)
        for name, values in other.statistics.items():
            assert close(one.statistics[name], values, 1e-9)
    for side, known in zip(found.consumer_inputs, expected.consumer_inputs, strict=True):
        for name, values in known.products.items():
            assert close(side.products[name], values, 1e-9)
    for mode, pairs in expected.pairs.items():
        assert close(torch.tensor(found.pairs[mode].second), torch.tensor(pairs.second), 1e-9)
    assert found.run == expected.run


@pytest.mark.parametrize("name", NETWORKS)
def test_each_source_has_what_a_pass_of_its_own_gives(name: str) -> None:
    model, batches = network(name), data(10, 4)
    groups = find_groups(model, batches[0][0]).required()
    before = state_of(model)
    asked = {"labels": Asked(OF_LOSS), "softened": Asked(OF_OUTPUTS)}
    found = measure_sources(model, batches, groups, asked)
    assert state_of(model) == before
    of_loss = measure_signals(model, batches, groups, needs=OF_LOSS)
    # With "backward" all weights' gradients are computed, and so all activations' in any case.
    whole = OF_OUTPUTS | {"backward"}
    of_outputs = measure_signals(model, batches, groups, needs=whole, gradients="softened")
    for group in groups:
        assert_same(found["labels"][group], of_loss[group])
        assert_same(found["softened"][group], of_outputs[group])
        assert close(found["labels"][group].weight_gradient, of_loss[group].weight_gradient, 1e-9)
        assert of_outputs[group].row_gradients is not None


def test_one_forward_pass_serves_both() -> None:
    model, batches = small("residual", norm=True), data(8, 4)
    groups = find_groups(model, batches[0][0]).required()
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    with model.register_forward_hook(count):
        asked = {"labels": Asked(OF_LOSS), "softened": Asked(OF_OUTPUTS)}
        measure_sources(model, batches, groups, asked)
    assert calls == len(batches)


def test_what_is_the_same_for_both_is_held_once() -> None:
    model, batches = small("residual", norm=True), data(8, 4)
    groups = find_groups(model, batches[0][0]).required()
    asked = {"labels": Asked(OF_LOSS), "softened": Asked(OF_OUTPUTS)}
    found = measure_sources(model, batches, groups, asked)
    for group in groups:
        one, other = (found[source][group] for source in asked)
        assert one.rows is other.rows
        for side, again in zip(one.consumer_inputs, other.consumer_inputs, strict=True):
            assert side.weight is again.weight
            assert side.products["input_products"] is again.products["input_products"]
            assert "gradient_products" not in side.products


def test_second_order_has_a_pass_of_its_own() -> None:
    model, batches = small("plain"), data(8, 4)
    groups = find_groups(model, batches[0][0]).required()
    needs = OF_LOSS | {"second_order"}
    asked = {"labels": Asked(needs), "softened": Asked(OF_OUTPUTS)}
    found = measure_sources(model, batches, groups, asked)
    expected = measure_signals(model, batches, groups, needs=needs)
    for group in groups:
        assert_same(found["labels"][group], expected[group])
        assert close(
            found["labels"][group].weight_curvature, expected[group].weight_curvature, 1e-9
        )


def test_the_lowest_parameters_lead_gradients_past_everything() -> None:
    first, second, beside = (nn.Parameter(torch.rand(3, 3)) for _ in range(3))
    images = torch.rand(2, 3)
    hidden = torch.relu(images @ first)
    output = (hidden @ second + images @ beside).sum()
    every = [first, second, beside]
    assert lowest_leaves(output, every) == {id(first), id(beside)}
    # Where the first is not to be trained, gradients end at the second.
    assert lowest_leaves(output, [second, beside]) == {id(second), id(beside)}
    assert lowest_leaves(torch.rand(()), every) == set()
    seen: list[Tensor] = []
    hidden.register_hook(seen.append)
    torch.autograd.grad(output, [first, beside])
    assert len(seen) == 1
