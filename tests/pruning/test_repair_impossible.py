"""Where a network cannot be repaired, pruning goes on without, and says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selector import PruneResult, PruningError, SelectorError, prune

Batch = tuple[Tensor, Tensor]


def _network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 4)).eval()


def _batches() -> list[Batch]:
    torch.manual_seed(1)
    return [(torch.randn(16, 1, 8, 8), torch.randint(0, 4, (16,))) for _ in range(2)]


def _pruned(model: nn.Module | None = None, **options: Any) -> PruneResult:
    model = _network() if model is None else model
    return prune(model, _batches(), ratio=0.5, rounds=1, criterion="l1", **options)


@pytest.fixture
def impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every repair changes some weights and then fails."""

    def fails(_: nn.Module, pruned: nn.Module, *__: object, **___: object) -> None:
        with torch.no_grad():
            for parameter in pruned.parameters():
                parameter.add_(1)
        raise SelectorError("outputs change between two runs")

    monkeypatch.setattr("selector.pruning.repairing.reconstruct_in_place", fails)


@pytest.mark.usefixtures("impossible")
@pytest.mark.parametrize("options", [{}, {"max_loss_change": 100.0}])
def test_an_impossible_repair_is_left_out_with_a_warning(options: dict[str, float]) -> None:
    left_out, never = _pruned(**options), _pruned(repair=False, **options)
    assert left_out.report.repair is None
    assert left_out.report.unrepaired is None
    warned = [text for text in left_out.report.warnings if text not in never.report.warnings]
    assert warned == ["the network was pruned and not repaired: outputs change between two runs"]
    for name, value in never.model.state_dict().items():
        assert torch.equal(value, left_out.model.state_dict()[name])


@pytest.mark.usefixtures("impossible")
def test_a_required_repair_that_is_impossible_stops_with_the_unrepaired_network() -> None:
    with pytest.raises(PruningError, match="what follows the last round was undone") as stopped:
        _pruned(repair=True)
    assert len(stopped.value.result.rounds) == 1
    reached, expected = stopped.value.result.model, _pruned(repair=False).model
    for name, value in expected.state_dict().items():
        assert torch.equal(value, reached.state_dict()[name])


@pytest.mark.usefixtures("impossible")
def test_a_resumed_run_still_warns(tmp_path: Path) -> None:
    first, again = (_pruned(checkpoint=tmp_path) for _ in range(2))
    assert first.report.warnings == again.report.warnings
    assert any("not repaired" in text for text in again.report.warnings)


def test_a_frozen_network_is_not_refitted_and_the_report_says_why() -> None:
    report = _pruned(_network().requires_grad_(False)).report
    assert report.repair is not None
    assert len(report.repair.skipped) == 3
    assert any("frozen (requires_grad=False)" in text for text in report.warnings)
    assert not any("frozen" in text for text in _pruned().report.warnings)
