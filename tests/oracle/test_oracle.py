"""The oracle is brute force, only faster: every candidate once, every loss, paired by image."""

import copy
import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from selector.data.forward import call
from selector.data.loss import Loss, evaluate
from selector.errors import SelectorError
from selector.network.batchnorm import recalibrate_batchnorm
from selector.network.groups import Group
from selector.network.surgery import apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle, loss_changes
from tests.networks import data, small, small_networks, state_of

Batches = list[tuple[Tensor, Tensor]]


def brute_force(
    model: nn.Module,
    batches: Sequence[tuple[object, object]],
    group: Group,
    channels: Sequence[int],
    loss: Loss | None = None,
) -> float:
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of([(group, channels)]))
    return evaluate(smaller, batches, loss).loss - evaluate(model, batches, loss).loss


@settings(deadline=None, max_examples=15)
@given(model=small_networks(), draw=st.data())
def test_loss_changes_equal_brute_force(model: nn.Module, draw: st.DataObject) -> None:
    batches = data(7, 3)
    groups = find_groups(model, batches[0][0]).prunable
    group = groups[draw.draw(st.sampled_from(sorted(groups)))]
    channel = st.integers(0, group.channels - 1)
    some = st.lists(channel, unique=True, min_size=1, max_size=group.channels - 1)
    sets = draw.draw(st.lists(some, min_size=1, max_size=3))
    changes = loss_changes(model, batches, group.name, sets)
    assert len(changes) == len(sets)
    for channels, change in zip(sets, changes, strict=True):
        expected = brute_force(model, batches, group, channels)
        assert change.nats == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert change.images == 7


def test_the_standard_error_is_paired_by_image() -> None:
    model, batches = small("two_consumers", norm=True), data(9, 4)
    group = find_groups(model, batches[0][0]).prunable["stem"]
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of([(group, [0, 2])]))
    differences = []
    for images, labels in batches:
        for image, label in zip(images.split(1), labels.split(1), strict=True):
            after = functional.cross_entropy(smaller(image), label)
            before = functional.cross_entropy(model(image), label)
            differences.append(float((after - before).detach()))
    mean = sum(differences) / 9
    variance = sum((d - mean) ** 2 for d in differences) / 8
    (change,) = loss_changes(model, batches, group, [[2, 0]])
    assert change.nats == pytest.approx(mean, rel=1e-6)
    assert change.standard_error == pytest.approx(math.sqrt(variance / 9), rel=1e-6)


def test_equal_sets_are_measured_once_and_all_in_one_reading() -> None:
    model, batches = small("plain"), data(8, 4)
    groups = find_groups(model, batches[0][0]).prunable
    calls, readings = [], []

    class Counted:
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield from batches
            readings.append("to the end")

    handle = model.register_forward_hook(lambda *_: calls.append(1))
    sets = [[0, 1], [1, 0], [2], (2,), [], [0, 1]]
    candidates = {groups["stem"]: sets, groups["next"]: [[0]]}
    found = Oracle(engine="masked").measure(model, Counted(), candidates)
    handle.remove()
    # The first batch twice, then, on each of two: before, and three distinct sets.
    assert len(calls) == 2 + 2 * (1 + 3)
    assert found.image_forwards == 8 * (1 + 3)
    assert found.image_forwards_saved == 0
    assert readings == ["to the end"]
    changes = found.changes[groups["stem"]]
    assert changes[0] == changes[1] == changes[5]
    assert changes[2] == changes[3] != changes[0]


def test_the_empty_set_is_zero() -> None:
    nothing, something = loss_changes(small("plain"), data(8, 4), "stem", [[], [0]])
    assert (nothing.nats, nothing.standard_error, nothing.images) == (0.0, 0.0, 8)
    assert something.nats != 0


class Named(nn.Module):
    """Two inputs by name, and outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3)
        self.right = nn.Conv2d(3, 4, 3)
        self.value = nn.Linear(4, 1)
        self.kind = nn.Linear(4, 3)

    def forward(self, one: Tensor, other: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.left(one)) + torch.relu(self.right(other))
        x = x.mean((2, 3))
        return {"value": self.value(x), "kind": self.kind(x)}


def test_any_inputs_outputs_and_loss() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Named().double().eval()
    chance = torch.Generator().manual_seed(0)

    def images() -> Tensor:
        return torch.randn(3, 3, 8, 8, generator=chance, dtype=torch.float64)

    batches = [
        (
            {"one": images(), "other": images()},
            {
                "value": torch.randn(3, 1, generator=chance, dtype=torch.float64),
                "kind": torch.tensor([0, 1, 2]),
            },
        )
        for _ in range(2)
    ]

    def both(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
        regression = functional.mse_loss(outputs["value"], targets["value"])
        return regression + functional.cross_entropy(outputs["kind"], targets["kind"])

    group = find_groups(model, batches[0][0]).prunable["left"]
    assert set(group.producers) == {"left", "right"}
    assert set(group.consumers) == {"value", "kind"}
    (change,) = loss_changes(model, batches, "left", [[1, 3]], loss=both)
    assert change.images == 6
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of([(group, [1, 3])]))
    with torch.no_grad():
        gaps = [
            float(both(call(smaller, x), y) - both(call(model, x), y))  # type: ignore[arg-type]
            for x, y in batches
        ]
    assert change.nats == pytest.approx(sum(gaps) / 2, rel=1e-6)


def test_regression() -> None:
    model = small("flatten")
    batches = [(x, torch.full((len(x), 5), 0.5, dtype=torch.float64)) for x, _ in data(6, 4)]
    group = find_groups(model, batches[0][0]).prunable["hidden"]
    (change,) = loss_changes(model, batches, group, [[0]], loss=functional.mse_loss)
    expected = brute_force(model, batches, group, [0], functional.mse_loss)
    assert change.nats == pytest.approx(expected, rel=1e-6)


def test_maps_of_labels() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)).double()
    labels = torch.arange(64).view(1, 8, 8).expand(4, -1, -1) % 5
    batches = [(images, labels) for images, _ in data(8, 4)]
    (change,) = loss_changes(model, batches, "0", [[1]])
    group = find_groups(model, batches[0][0]).prunable["0"]
    smaller = copy.deepcopy(model)
    apply_cuts(smaller, cuts_of([(group, [1])]))
    with torch.no_grad():
        gaps = [
            float(functional.cross_entropy(smaller(x), y) - functional.cross_entropy(model(x), y))
            for x, y in batches
        ]
    assert change.nats == pytest.approx(sum(gaps) / 2, rel=1e-6)
    assert change.images == 8


def test_the_network_is_left_as_found() -> None:
    model = small("residual", norm=True).train()
    model.stem.weight.requires_grad_(False)
    before = state_of(model)
    loss_changes(model, data(), "stem", [[0], [1, 2]])
    assert state_of(model) == before


def test_train_mode_changes_nothing() -> None:
    model = small("plain", norm=True)
    expected = loss_changes(model, data(), "stem", [[0]])
    assert loss_changes(model.train(), data(), "stem", [[0]]) == expected


@pytest.mark.parametrize(
    ("group", "channels", "culprit"),
    [
        ("nowhere", [0], "unknown group 'nowhere'; known: stem, next"),
        ("stem", [7], "no channel 7; it has 0 to 3"),
        ("stem", [0, 1, 2, 3], "leave at least one"),
        ("stem", [1, 1], "named twice"),
    ],
)
def test_what_cannot_be_measured_is_named(group: str, channels: list[int], culprit: str) -> None:
    with pytest.raises(SelectorError, match=culprit):
        loss_changes(small("plain"), data(), group, [channels])


def test_the_recalibrated_loss_is_that_of_a_cut_and_recalibrated_copy() -> None:
    model, batches, calibration = small("residual", 6, norm=True), data(8, 4), data(12, 6, seed=1)
    group = find_groups(model, batches[0][0]).prunable["stem"]
    before = state_of(model)
    sets: list[list[int]] = [[0, 3], [1], [3, 0], []]
    changes = loss_changes(
        model, batches, group, sets, mode="recalibrated", calibration=calibration
    )
    assert state_of(model) == before
    whole = evaluate(model, batches).loss
    for channels, change in zip(sets, changes, strict=True):
        smaller = copy.deepcopy(model)
        apply_cuts(smaller, cuts_of([(group, channels)]) if channels else ())
        recalibrate_batchnorm(smaller, calibration)
        assert change.nats == pytest.approx(evaluate(smaller, batches).loss - whole, rel=1e-6)
    assert changes[0] == changes[2]
