"""Repaired removal: one answer from all engines, exact where it can be, and read as it is left."""

import copy

import pytest
import torch
from torch import Tensor, nn

from selector.data.loss import evaluate
from selector.errors import SelectorError
from selector.network.batchnorm import batch_statistics
from selector.network.compensation import shifted
from selector.network.folding import Prediction, folded
from selector.network.groups import Group
from selector.network.masking import masked
from selector.network.surgery import apply_cuts, cuts_of, outputs_gone
from selector.network.tracing import find_groups
from selector.oracle.fast_engine import Fast
from selector.oracle.masked_engine import Masked, Removal
from selector.oracle.oracle import Oracle, loss_changes
from tests.networks import STYLES, data, small

Batches = list[tuple[Tensor, Tensor]]


def repaired(model: nn.Module, batches: Batches, groups: list[Group], **how: object) -> Oracle:
    prediction = Prediction.measured(model, batches, groups)
    return Oracle("repaired", prediction=prediction, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("norm", [True, False])
def test_masked_with_the_fold_equals_cut_with_the_fold(style: str, norm: bool) -> None:
    model, batches = small(style, 6, norm=norm), data(32, 16)
    before = copy.deepcopy(model.state_dict())
    groups = list(find_groups(model, batches[0][0]).prunable.values())
    sets = {group: [(0,), tuple(range(1, group.channels - 1))] for group in groups}
    for by_batch in (False, True):
        found = [
            repaired(model, batches, groups, engine=engine, batch_statistics=by_batch).measure(
                model, batches, sets, reference=model
            )
            for engine in ("reference", "masked", "fast")
        ]
        for group in groups:
            for number in range(2):
                right = found[0].changes[group][number], found[0].divergences[group][number]
                for one in found[1:]:
                    mine = one.changes[group][number], one.divergences[group][number]
                    for a, b in zip(mine, right, strict=True):
                        assert a.nats == pytest.approx(b.nats, rel=1e-6, abs=1e-9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("style", ["plain", "residual", "flatten", "grouped"])
def test_the_fast_engine_runs_folds_itself(style: str) -> None:
    model, images = small(style, 6, norm=True), data(8, 8)[0][0]
    groups = list(find_groups(model, images).prunable.values())
    prediction = Prediction.measured(model, data(), groups)
    with torch.no_grad():
        fast, whole = Fast(model, together=3), Masked(model)
        fast.load(images)
        whole.load(images)
        for group in groups:
            removals = []
            for channels in ((0,), (1,), (0, 2, 3, 4)):
                folds, shifts = prediction.of(model, group, channels)
                removals.append(Removal(channels, shifts, folds))
            pairs = zip(fast.outputs(group, removals), whole.outputs(group, removals), strict=True)
            for mine, right in pairs:
                assert torch.allclose(mine, right, rtol=1e-9)  # type: ignore[arg-type]
    assert not fast.fallen_back


class Twins(nn.Module):
    """Channel 3 of the first layer is always channel 0 minus twice channel 1, plus a constant."""

    def __init__(self, *, norm: bool, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 5, 1, bias=bias)
        self.norm = nn.BatchNorm2d(5) if norm else nn.Identity()
        self.last = nn.Linear(5, 4)
        with torch.no_grad():
            self.first.weight[3] = self.first.weight[0] - 2 * self.first.weight[1]
            self.last.weight *= 20
            shift = 0.7 if norm or bias else 0.0
            self.first.bias[3] = self.first.bias[0] - 2 * self.first.bias[1] + shift

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(self.second(self.first(images))).relu().mean((2, 3)))


@pytest.mark.parametrize("by_batch", [False, True])
@pytest.mark.parametrize(("norm", "bias"), [(True, False), (False, True), (False, False)])
def test_a_channel_that_others_add_up_to_costs_nothing(
    norm: bool, bias: bool, by_batch: bool
) -> None:
    torch.manual_seed(0)
    model = Twins(norm=norm, bias=bias).double().eval()
    batches = data(48, 24, classes=4)
    group = find_groups(model, batches[0][0]).prunable["first"]
    prediction = Prediction.measured(model, batches, [group], ridge=1e-10)
    oracle = Oracle("repaired", prediction=prediction, batch_statistics=by_batch)
    found = oracle.measure(model, batches, {group: [(3,), (2,)]}, reference=model)
    free, dear = found.divergences[group]
    assert abs(found.changes[group][0].nats) < 1e-6
    assert abs(free.nats) < 1e-6
    assert dear.nats > 1e-4
    plain = Oracle().measure(model, batches, {group: [(3,)]}, reference=model)
    assert plain.divergences[group][0].nats > 1e-3


def test_the_fold_is_least_squares_on_the_inputs_of_the_consumer() -> None:
    """The slow twin: regression on every position, by numpy's rules."""
    model, batches = small("plain", 6, norm=False), data(24, 12)
    group = next(iter(find_groups(model, batches[0][0]).prunable.values()))
    prediction = Prediction.measured(model, batches, [group], ridge=1e-12)
    folds, shifts = prediction.of(model, group, (1, 4))
    consumer = group.consumers[0]
    layer = model.get_submodule(consumer)
    seen: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    handle.remove()
    inputs = torch.cat(seen)
    assert inputs[0, 0].numel() <= 64
    rows = inputs.transpose(0, 1).flatten(1).T
    kept = [c for c in range(rows.shape[1]) if c not in (1, 4)]
    ones = torch.ones(len(rows), 1, dtype=rows.dtype)
    table = torch.cat([rows[:, kept], ones], 1)
    solved = torch.linalg.lstsq(table, rows[:, [1, 4]]).solution
    weight = layer.weight.detach().clone()
    lost = weight[:, [1, 4]]
    weight[:, kept] += torch.einsum("os...,ks->ok...", lost, solved[:-1])
    weight[:, [1, 4]] = 0
    assert torch.allclose(folds[0].weight, weight, atol=1e-6)
    constant = torch.einsum("os...,s->o...", lost, solved[-1]).flatten(1).sum(1)
    assert torch.allclose(shifts[0].values, constant, atol=1e-6)


def test_losses_are_read_as_the_cut_and_folded_network_has_them() -> None:
    model, batches = small("residual", 6, norm=True), data(64, 32)
    group = next(iter(find_groups(model, batches[0][0]).prunable.values()))
    oracle = repaired(model, batches, [group], batch_statistics=True)
    assert oracle.prediction is not None
    (change,) = oracle.measure(model, batches, {group: [(0, 2)]}).changes[group]
    cut = copy.deepcopy(model)
    folds, shifts = oracle.prediction.of(model, group, (0, 2))
    in_biases = [shift for shift in shifts if shift.absorber == shift.layer]
    cuts = cuts_of([(group, (0, 2))])
    apply_cuts(cut, cuts)
    with (
        folded(cut, folds, cuts),
        shifted(cut, in_biases, outputs_gone(cuts)),
        batch_statistics(cut),
    ):
        after = evaluate(cut, batches).loss
    with batch_statistics(model):
        before = evaluate(model, batches).loss
    assert change.nats == pytest.approx(after - before, abs=1e-9)
    assert loss_changes(model, batches, group, [(0, 2)], mode="repaired") == [change]


def test_small_batches_are_read_with_the_running_statistics() -> None:
    model, batches = small("plain", 6, norm=True), data(24, 8)
    group = next(iter(find_groups(model, batches[0][0]).prunable.values()))
    prediction = Prediction.measured(model, batches, [group])
    (change,) = (
        Oracle("repaired", prediction=prediction, batch_statistics=True)
        .measure(model, batches, {group: [(1,)]})
        .changes[group]
    )
    folds, shifts = prediction.of(model, group, (1,))
    with masked(model, group, (1,)), folded(model, folds):
        bare = evaluate(model, batches).loss
    assert shifts
    assert change.nats != pytest.approx(bare - evaluate(model, batches).loss, abs=1e-9)


def test_a_prediction_belongs_to_its_mode() -> None:
    with pytest.raises(SelectorError, match="prediction belongs to mode='repaired'"):
        Oracle("repaired")
    with pytest.raises(SelectorError, match="prediction belongs to mode='repaired'"):
        Oracle(prediction=Prediction({}, {}))
    with pytest.raises(SelectorError, match="known: plain, compensated, repaired"):
        Oracle("mended")  # type: ignore[arg-type]
