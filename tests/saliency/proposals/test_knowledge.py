"""What is known of sets: one pass where another has measured the pairs, and outputs of any kind."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.planning.description import describe_network
from selector.saliency.proposals.knowledge import gives_logits, measure_sets, set_proposals
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import METRICS, first_order_metrics
from selector.statistics.collect import measure_signals
from tests.networks import data, small


def test_sets_measured_with_the_description_are_those_measured_alone() -> None:
    model, batches = small("residual", 6, norm=True), data(32, 8)
    calibration, groups = Calibration(batches), find_groups(model, batches[0][0])
    metrics = [METRICS[name] for name in first_order_metrics()]
    alone = measure_sets(model, calibration, groups.prunable, set_proposals())
    views = describe_network(model, groups, calibration, metrics, macs_kept=1.0)
    both = describe_network(model, groups, calibration, metrics, set_proposals(), macs_kept=1.0)
    for name, group in groups.prunable.items():
        assert views[name].facts == both[name].facts
        for metric, scores in views[name].scores.items():
            assert both[name].scores[metric] == pytest.approx(scores, rel=1e-9, abs=1e-12)
        sets = both[name].sets
        assert sets is not None
        for count in range(1, group.channels):
            proposed = alone[name].proposed(count)
            assert sets.proposed(count) == proposed
            assert sets.errors(proposed) == pytest.approx(alone[name].errors(proposed), rel=1e-9)
        # And both proposals of the loss and of the softened outputs are among them.
        assert {PROPOSALS[p].gradients for p in proposed} == {"labels", "softened"}


def test_orders_made_for_all_groups_are_those_that_each_proposal_gives() -> None:
    model, batches = small("residual", 6, norm=True), data(32, 8)
    groups = find_groups(model, batches[0][0]).prunable
    found = measure_sets(model, Calibration(batches), groups, set_proposals())
    nested = [one for one in PROPOSALS.values() if one.orders is not None]
    assert {one.name for one in nested} == {one.name for one in PROPOSALS.values() if one.nested}
    for proposal in nested:
        for name, group in groups.items():
            own = replace(found[name].signals["softened"], memo={})
            for count in range(1, group.channels):
                gone = tuple(sorted(proposal.propose(own, count)))
                assert found[name].proposed(count)[proposal.name] == gone


def test_the_group_at_fault_is_named_though_all_are_asked_at_once() -> None:
    model, batches = small("residual", 6, norm=True), data(32, 8)
    groups = find_groups(model, batches[0][0]).prunable
    found = measure_sets(model, Calibration(batches), groups, set_proposals(["reconstruction"]))
    first, *_, last = groups
    for consumer in found[last].signals["softened"].consumer_inputs:
        consumer.products["input_products"][0, 0, 0] = torch.nan
    assert len(found[first].proposed(1)["reconstruction"]) == 1
    with pytest.raises(SelectorError, match=f"'reconstruction', in group '{last}'"):
        found[last].proposed(1)


class Regression(nn.Module):
    """One number an image."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = small("plain", 6, norm=True), nn.Linear(5, 1).double()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images))


@pytest.mark.parametrize("own_loss", [False, True])
def test_what_cannot_be_softened_goes_by_the_loss(own_loss: bool) -> None:
    model = small("plain", 6, norm=True) if own_loss else Regression()
    batches = data(24, 8) if own_loss else [(x, torch.randn(len(x), 1)) for x, _ in data(24, 8)]

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.square().mean()

    calibration = Calibration(batches, loss)
    assert gives_logits(model, calibration) is own_loss
    groups = find_groups(model, batches[0][0]).prunable
    found = measure_sets(model, calibration, groups, set_proposals(["reconstruction_fisher"]))
    expected = measure_signals(
        model,
        batches,
        groups,
        needs=PROPOSALS["reconstruction_fisher"].needs,
        loss=loss,
    )
    for name, group in groups.items():
        count = group.channels // 2
        proposed = PROPOSALS["reconstruction_fisher"].checked(name, expected[name], count)
        assert found[name].proposed(count) == {"reconstruction_fisher": proposed}
