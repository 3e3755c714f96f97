"""A network that is run by the caller's own function is pruned like any other."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import selector
from selector.errors import SelectorError
from tests.networks import randomise

GENERATOR = torch.Generator().manual_seed(0)
Target = Mapping[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


class TinyDetector(nn.Module):
    """Reads a list of images of several sizes; in training mode it gives losses, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.drop = nn.Dropout(0.5)
        self.boxes = nn.Linear(6, 4)
        self.scores = nn.Linear(6, 3)

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[Target] | None = None
    ) -> list[dict[str, Tensor]] | dict[str, Tensor]:
        height = max(image.shape[1] for image in images)
        padded = [functional.pad(image, (0, 0, 0, height - image.shape[1])) for image in images]
        maps = torch.relu(self.norm(self.stem(torch.stack(padded))))
        found = self.drop(torch.relu(self.body(maps)).mean((2, 3)))
        boxes, scores = self.boxes(found), self.scores(found)
        if not self.training:
            pairs = zip(boxes, scores, strict=True)
            return [{"box": box, "label": score.argmax()} for box, score in pairs]
        if targets is None:
            raise ValueError("targets are needed for training")
        truth = torch.stack([target["box"] for target in targets])
        labels = torch.stack([target["label"] for target in targets])
        # A random part of the positions, as detectors sample their anchors.
        sampled = torch.randperm(len(boxes))[: max(1, len(boxes) // 2)]
        return {
            "boxes": functional.smooth_l1_loss(boxes[sampled], truth[sampled]),
            "labels": functional.cross_entropy(scores, labels),
        }


def losses(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    images, targets = batch
    found: dict[str, Tensor] = model.train()(images, targets)
    return found


def batches_of(count: int, images: int = 2) -> list[Batch]:
    def image(number: int) -> Tensor:
        return torch.randn(3, 6 + number % 3, 8, generator=GENERATOR)

    def target(number: int) -> Target:
        box = torch.rand(4, generator=GENERATOR)
        return {"box": box, "label": torch.tensor(number % 3)}

    return [
        ([image(n + b) for n in range(images)], [target(n + b) for n in range(images)])
        for b in range(count)
    ]


def detector() -> TinyDetector:
    return randomise(TinyDetector()).eval()  # type: ignore[return-value]


@pytest.mark.parametrize("images", [2, 3])
def test_a_detector_is_pruned_by_its_own_losses(images: int) -> None:
    model, batches = detector(), batches_of(4, images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = selector.prune(
        model, batches, ratio=0.5, rounds=2, criterion="fisher", forward=losses, repair=False
    )
    assert set(result.plan.removals) == {"stem", "body"}
    small = result.model
    assert (small.stem.out_channels, small.body.out_channels) == (4, 3)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert not model.training
    for network in (model, small):
        assert not any(name.startswith("_selector") for name in vars(network))
    assert result.report.before.loss == pytest.approx(mean_loss(model, batches), rel=1e-5)
    assert len(small(batches[0][0])) == images


def mean_loss(model: TinyDetector, batches: Sequence[Batch]) -> float:
    """With the statistics of BatchNorm, without dropout, and the same sample in every batch."""
    total = 0.0
    for images, targets in batches:
        model.eval().training = True
        torch.manual_seed(0)
        with torch.no_grad():
            total += sum(float(x) for x in model(images, targets).values())
    model.eval()
    return total / len(batches)


def test_a_detector_is_repaired() -> None:
    result = selector.prune(
        detector(), batches_of(6, 4), ratio=0.5, rounds=1, criterion="l1", forward=losses
    )
    assert result.report.repair is not None
    assert {"body", "boxes"} <= {
        one.layer for one in result.report.repair.layers if one.done in ("refitted", "kept")
    }


def test_masked_is_cut_on_fresh_images() -> None:
    model, batches = detector(), batches_of(3)
    result = selector.prune(
        model,
        batches,
        ratio=0.5,
        rounds=1,
        criterion="l1",
        forward=losses,
        repair=False,
        recalibrate=False,
    )
    gone = {cut.layer: torch.tensor(cut.indices) for cut in result.cuts if cut.side == "out"}
    (fresh,) = batches_of(1, 5)
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _, args, output, gone=gone: output.index_fill(1, gone, 0)
        )
        # What comes behind BatchNorm is what the consumers read.
        for name, gone in {"norm": gone["stem"], "body": gone["body"]}.items()
    ]
    expected = model(fresh[0])
    for handle in handles:
        handle.remove()
    for one, other in zip(result.model(fresh[0]), expected, strict=True):
        torch.testing.assert_close(one["box"], other["box"])


def test_outputs_and_a_loss_of_ones_own() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    inputs = torch.randn(8, 4, generator=GENERATOR)
    labels = torch.arange(8) % 3
    plain = selector.score(model, [(inputs, labels)], ["fisher", "l1", "taylor"])
    named = [{"x": inputs, "y": labels}]

    def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = model(batch["x"])
        return found

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return functional.cross_entropy(outputs(model, batch), batch["y"])

    by_loss = selector.score(model, named, ["fisher", "l1", "taylor"], forward=loss)
    by_pairs = selector.score(
        model,
        [(inputs, labels)],
        ["fisher", "l1", "taylor"],
        forward=lambda model, batch: model(batch[0]),
        loss=functional.cross_entropy,
    )
    for name, values in plain["0"].items():
        torch.testing.assert_close(by_pairs["0"][name], values)
        if name != "fisher":  # Of one loss for all images there is no gradient of each.
            torch.testing.assert_close(by_loss["0"][name].argsort(), values.argsort())
    change = selector.loss_changes(model, named, "0", [[1, 2]], forward=loss)[0]
    expected = selector.loss_changes(model, [(inputs, labels)], "0", [[1, 2]])[0]
    assert change.nats == pytest.approx(expected.nats, rel=1e-3)
    assert math.isnan(change.standard_error)


@pytest.mark.parametrize("criterion", ["l1", "taylor"])
def test_a_plan_is_the_same_however_the_network_is_run(criterion: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    inputs, labels = torch.randn(24, 4), torch.arange(24) % 3
    named = [{"x": inputs, "y": labels}]
    own = selector.choose(
        model,
        named,
        criterion=criterion,
        ratio=0.3,
        forward=lambda m, b: functional.cross_entropy(m(b["x"]), b["y"]),
    )
    plain = selector.choose(model, [(inputs, labels)], criterion=criterion, ratio=0.3)
    assert own.removals == plain.removals


def test_what_is_no_loss_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    with pytest.raises(SelectorError, match="return the mean loss of the batch"):
        selector.score(model, batches, ["fisher"], forward=lambda m, b: m(b[0]))
    with pytest.raises(SelectorError, match=r"forward must be a function.*forward\(model, batch\)"):
        selector.score(model, batches, ["fisher"], forward=3)  # type: ignore[arg-type]


Named = dict[str, Tensor]


def outputs_of(model: nn.Module, batch: Named) -> Tensor:
    found: Tensor = model(batch["x"])
    return found


def loss_of(model: nn.Module, batch: Named) -> Tensor:
    return functional.cross_entropy(outputs_of(model, batch), batch["y"])


@pytest.fixture(scope="module")
def run_both_ways() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[Named]]:
    """A network, its batches, and the same batches as only a `forward` can read them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    pairs = [(torch.randn(16, 4), torch.arange(16) % 3) for _ in range(4)]
    return model.eval(), pairs, [{"x": inputs, "y": labels} for inputs, labels in pairs]


Both = tuple[nn.Module, list[tuple[Tensor, Tensor]], list[Named]]


def test_groups_are_the_same_however_the_network_is_run(run_both_ways: Both) -> None:
    model, pairs, named = run_both_ways
    own = selector.find_groups(model, named[0], forward=outputs_of)
    plain = selector.find_groups(model, pairs[0][0])
    assert own.prunable == plain.prunable
    assert own.refused == plain.refused
    with pytest.raises(SelectorError, match="does not run"):
        selector.find_groups(model, named[0])


def test_losses_are_the_same_however_the_network_is_run(run_both_ways: Both) -> None:
    model, pairs, named = run_both_ways
    plain = selector.evaluate(model, pairs)
    own = selector.evaluate(model, named, forward=loss_of)
    assert own.loss == pytest.approx(plain.loss, rel=1e-6)
    one = selector.sensitivity(model, pairs, criterion="l1", ratios=[0.5]).rows
    other = selector.sensitivity(model, named, criterion="l1", ratios=[0.5], forward=loss_of).rows
    for a, b in zip(one, other, strict=True):
        assert (a.group, a.removed) == (b.group, b.removed)
        assert a.loss_change_nats == pytest.approx(b.loss_change_nats, rel=1e-4, abs=1e-6)


def test_what_is_left_is_the_same_however_the_network_is_run(run_both_ways: Both) -> None:
    model, pairs, named = run_both_ways
    plan = selector.choose(model, pairs, criterion="l1", ratio=0.3)
    cut = selector.apply_plan(model, plan, named, forward=loss_of)
    repaired = selector.reconstruct(model, cut, named, kept=plan.cuts, forward=loss_of).model
    expected = selector.reconstruct(
        model, selector.apply_plan(model, plan, pairs), pairs, kept=plan.cuts
    ).model
    for one, other in zip(repaired.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    taught = selector.distil(model, cut, named, passes=1, forward=outputs_of)
    by_pairs = selector.distil(model, cut, pairs, passes=1)
    inputs = pairs[0][0]
    torch.testing.assert_close(taught.model(inputs), by_pairs.model(inputs))
    assert not any(name.startswith("_selector") for name in vars(taught.model))


def test_methods_are_compared_and_recorded_by_ones_own_forward(run_both_ways: Both) -> None:
    model, pairs, named = run_both_ways
    how = {"methods": ["l1", "reconstruction"], "ratio": 0.3, "rounds": 1}
    plain = selector.compare_methods(model, pairs, **how)  # type: ignore[arg-type]
    own = selector.compare_methods(model, named, forward=loss_of, **how)  # type: ignore[arg-type]
    assert [row.method for row in own.rows] == [row.method for row in plain.rows]
    for one, other in zip(own.rows, plain.rows, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
    records = selector.record(model, named, network="own", contexts=0, forward=loss_of)
    assert {group.group for group, _, _ in records.decisions()} == {"0", "2"}


def test_distillation_that_cannot_be_is_refused_before_anything_is_pruned(
    run_both_ways: Both,
) -> None:
    model, _, named = run_both_ways
    calls = []

    def counted(model: nn.Module, batch: Named) -> Tensor:
        calls.append(1)
        return loss_of(model, batch)

    with pytest.raises(SelectorError, match="a loss alone will not do"):
        selector.prune(model, named, ratio=0.3, distil=0.01, forward=counted)
    assert len(calls) == 1
    with pytest.raises(SelectorError, match="lists of images"):
        selector.prune(detector(), batches_of(4, 4), ratio=0.3, distil=0.01, forward=losses)


def test_a_state_belongs_to_its_forward(run_both_ways: Both, tmp_path: Path) -> None:
    model, _, named = run_both_ways
    how = {"ratio": 0.3, "rounds": 1, "criterion": "l1", "checkpoint": tmp_path}
    selector.prune(model, named, forward=loss_of, **how)  # type: ignore[arg-type]

    def twice(model: nn.Module, batch: Named) -> Tensor:
        return 2 * loss_of(model, batch)

    with pytest.raises(SelectorError, match="another"):
        selector.prune(model, named, forward=twice, **how)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_detector_of_torchvision_is_pruned_by_its_training_losses() -> None:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, num_classes=5, min_size=96, max_size=96
    ).eval()
    box = torch.tensor([[10.0, 12.0, 70.0, 80.0]])
    batches = [
        (
            [torch.rand(3, 96, 96, generator=GENERATOR) for _ in range(2)],
            [{"boxes": box + n, "labels": torch.tensor([1 + n])} for n in range(2)],
        )
        for _ in range(2)
    ]
    result = selector.prune(
        model, batches, ratio=0.3, rounds=1, criterion="l1", forward=losses, repair=False
    )
    macs = result.report.macs
    assert macs[1] < 0.8 * macs[0]
    assert len(result.plan.removals) > 20
    assert set(losses(result.model, batches[0])) == set(losses(model, batches[0]))
    assert set(result.model.eval()(batches[0][0])[0]) == {"boxes", "labels", "scores"}
