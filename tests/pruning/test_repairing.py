"""Repair inside `prune`: the same as alone, towards the right network, and reported honestly."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

import selector
from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.planning.plan import Plan
from selector.pruning.repairing import Repaired, Repairer, RepairOption, when_to_repair
from selector.repair.report import RepairReport
from tests.networks import data, small
from tests.pruning.test_resume import Counted

TARGET = {"keep_macs": 0.6, "rounds": 2, "criterion": "l1"}


def values(model: nn.Module) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("norm", [False, True])
def test_repair_in_prune_is_repair_alone(norm: bool) -> None:
    model, batches = small("residual", 12, norm=norm), data(64, 16)
    target = {**TARGET, "rounds": 2 if norm else 1}  # Without, every round is repaired.
    bare = selector.prune(model, batches, repair=False, **target)
    whole = selector.prune(model, batches, **target)
    assert whole.plan.removals == bare.plan.removals
    alone = selector.reconstruct(model, bare, batches)
    assert values(whole.model) == values(alone.model)
    assert whole.report.repair == alone.report
    assert whole.report.unrepaired == bare.report.after
    assert bare.report.repair is None
    assert bare.report.unrepaired is None
    assert "accuracy, not repaired" in str(whole.report)
    assert "not repaired" not in str(bare.report)


def test_repair_restores_what_can_be_restored(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Every channel of the first layer exists twice: half of them can go without a loss.
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3)
    with torch.no_grad():
        first.weight[4:] = first.weight[:4] * 0.5
        first.bias[4:] = first.bias[:4] * 0.5
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    images = torch.randn(64, 3, 8, 8)
    batches = [(part, torch.zeros(16, dtype=torch.long)) for part in images.split(16)]
    asked = {"ratios": {"0": 0.5}, "criterion": "l1", "rounds": 1}
    with torch.no_grad():
        before = model(images)
        bare = selector.prune(model, batches, repair=False, **asked).model(images)
        after = selector.prune(model, batches, **asked).model(images)
    assert float((bare - before).abs().max()) > 0.05 * float(before.abs().max())
    assert float((after - before).abs().max()) < 1e-3 * float(before.abs().max())


def test_fine_tuned_networks_are_repaired_towards_themselves() -> None:
    model, batches = small("plain", 12, norm=True), data(64, 16)
    left: list[dict[str, list[float]]] = []

    def finetune(network: nn.Module, number: int) -> None:
        with torch.no_grad():
            for layer in network.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.weight.mul_(3.0)
        left.append(values(network))

    result = selector.prune(model, batches, finetune=finetune, **TARGET)
    # What the last fine-tuning left is what is returned.
    assert values(result.model) == left[-1]
    # And the second repair keeps what the first fine-tuning did, instead of undoing it.
    bare = selector.prune(model, batches, finetune=finetune, repair=False, **TARGET)
    scale = [
        float(next(m.parameters()).detach().abs().mean()) for m in (result.model, bare.model, model)
    ]
    assert scale[0] > 4 * scale[2]
    assert scale[0] == pytest.approx(scale[1], rel=0.5)


@pytest.mark.parametrize("apart", [False, True])
def test_not_repaired_is_the_network_after_the_cut(apart: bool) -> None:
    model, batches = small("residual", 12), data(64, 16)
    asked = {**TARGET, "rounds": 1, "test_batches": data(32, 16) if apart else None}
    bare = selector.prune(model, batches, repair=False, **asked).report
    for wish in ({"max_loss_change": 100.0}, {"finetune": lambda network, number: None}):
        report = selector.prune(model, batches, **asked, **wish).report
        assert report.unrepaired == bare.after
        assert report.unrepaired not in (report.before, report.after)


def test_an_undone_round_leaves_no_trace_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = small("residual", 12), data(64, 16)
    made: list[tuple[dict[str, list[float]], RepairReport | None]] = []
    repair = Repairer.repair

    def noted(
        self: Repairer, network: nn.Module, plans: Sequence[Plan], calibration: Calibration
    ) -> Repaired:
        found = repair(self, network, plans, calibration)
        # Now, for the next cut is made in place.
        made.append((values(found.model), found.report))
        return found

    monkeypatch.setattr(Repairer, "repair", noted)
    asked = {"keep_macs": 0.2, "rounds": 3, "criterion": "l1"}
    whole = selector.prune(model, batches, **asked, max_loss_change=100.0).report
    first, *_, last = [cut.loss for cut in whole.steps]
    assert first is not None
    assert last is not None
    made.clear()
    limit = (first + last) / 2 - whole.before.loss
    result = selector.prune(model, batches, **asked, max_loss_change=limit)
    kept = [report for left, report in made if left == values(result.model)]
    assert kept == [result.report.repair]
    assert made[-1][1] != result.report.repair


def test_test_images_are_read_as_often_however_many_rounds() -> None:
    model, batches = small("residual", 12), data(64, 16)
    reads = []
    for rounds in (1, 3):
        images = Counted(data(32, 16))
        selector.prune(model, batches, **{**TARGET, "rounds": rounds}, test_batches=images)
        reads.append(images.starts)
    assert reads[0] == reads[1]


@pytest.mark.parametrize("criterion", ["l1", "mean_activation"])
def test_unlabelled_images_are_enough(criterion: str) -> None:
    model = small("plain", 12, norm=True)
    batches = [(inputs, None) for inputs, _ in data(64, 16)]
    result = selector.prune(model, batches, keep_macs=0.6, criterion=criterion)
    assert result.plan.choices
    assert result.report.repair is not None
    assert any("no labels" in text for text in result.report.warnings)
    labelled = selector.prune(model, data(64, 16), keep_macs=0.6, criterion=criterion)
    assert values(result.model) == values(labelled.model)
    with pytest.raises(SelectorError, match="no labels"):
        selector.prune(model, batches, keep_macs=0.6, criterion=criterion, max_loss_change=1.0)


def test_distillation_follows_the_repair() -> None:
    model, batches = small("plain", 12, norm=True), data(64, 16)
    result = selector.prune(model, batches, distil=0.02, **TARGET)
    repaired = selector.prune(model, batches, **TARGET)
    report = result.report
    assert report.undistilled == repaired.report.after
    assert report.distillation is not None
    assert report.distillation.divergence_after <= report.distillation.divergence_before
    assert "not distilled" in str(report)


@pytest.mark.parametrize(
    ("repair", "recalibrate", "normalised", "finetuned", "when"),
    [
        ("auto", True, True, False, "end"),
        ("auto", True, False, False, "rounds"),
        ("auto", False, True, False, "never"),
        ("auto", True, True, True, "rounds"),
        (True, False, True, False, "rounds"),
        (True, True, True, False, "end"),
        (False, True, False, True, "never"),
    ],
)
def test_when_repair_happens(
    repair: RepairOption, recalibrate: bool, normalised: bool, finetuned: bool, when: str
) -> None:
    found = when_to_repair(
        repair, recalibrate=recalibrate, normalised=normalised, finetuned=finetuned
    )
    assert found == when


def test_without_batchnorm_every_round_begins_with_a_network_that_works() -> None:
    """Each round leaves a repaired network: its outputs are nearer to the unpruned one's."""
    model, batches = small("plain", 12), data(64, 16)
    asked = {"keep_macs": 0.4, "rounds": 3, "criterion": "l1"}  # The same channels go at first.
    errors: dict[bool, list[float]] = {True: [], False: []}

    class Outputs(selector.Callback):
        @torch.no_grad()
        def on_round_end(self, end: selector.RoundEnd) -> None:
            apart = [(end.model(x) - model(x)).square().mean() for x, _ in batches]
            errors[repair].append(float(torch.stack(apart).mean()))

    for repair in errors:
        option = "auto" if repair else False
        selector.prune(model, batches, repair=option, callbacks=[Outputs()], **asked)  # type: ignore[arg-type]
    assert len(errors[True]) == len(errors[False]) == 3
    assert all(one < other for one, other in zip(errors[True], errors[False], strict=True))


@pytest.mark.parametrize("wrong", [1, 0, "yes", None, 0.5])
def test_a_wrong_wish_is_refused(wrong: object) -> None:
    with pytest.raises(SelectorError, match="repair="):
        selector.prune(small("plain", 12), data(), repair=wrong, **TARGET)  # type: ignore[arg-type]
    if wrong is not None and wrong not in (1, 0.5):
        with pytest.raises(SelectorError, match="distil="):
            selector.prune(small("plain", 12), data(), distil=wrong, **TARGET)  # type: ignore[arg-type]
