"""A pruning that was stopped goes on from its last whole round; errors keep what was reached."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import selector
from selector.errors import SelectorError
from selector.planning.method import AllocationName
from tests.networks import data, small, state_of

Batches = list[tuple[Tensor, Tensor]]


class Counted:
    """Batches that count how often they are begun and how many are read."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.starts, self.read = batches, 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.starts += 1
        for batch in self.batches:
            self.read += 1
            yield batch


def values(model: nn.Module) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in model.state_dict().items()}


class StopError(Exception):
    """What a user's code may raise."""


@pytest.mark.parametrize("kind", [StopError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("failing", [1, 2, 3])
def test_whatever_stops_a_round_keeps_what_was_reached(
    kind: type[BaseException], failing: int
) -> None:
    model, batches = small("plain", 12, norm=True), data()
    untouched, before, reached = state_of(model), values(model), list[dict[str, list[float]]]()

    def finetune(network: nn.Module, number: int) -> None:
        if number == failing:
            raise kind("of the user")
        reached.append(values(network))

    with pytest.raises(selector.PruningError, match=f"round {failing} .*of the user") as caught:
        selector.prune(model, batches, keep_macs=0.5, rounds=4, finetune=finetune)
    result = caught.value.result
    assert isinstance(caught.value.__cause__, kind)
    assert len(result.rounds) == failing - 1
    assert state_of(model) == untouched
    assert values(result.model) == (reached[-1] if reached else before)


def test_a_stopped_run_goes_on_with_the_same_result(tmp_path: Path) -> None:
    model, batches = small("plain", 12, norm=True), data()
    whole = selector.prune(model, batches, keep_macs=0.5, rounds=4, finetune=lambda *_: None)
    calls: list[int] = []

    def stops(network: nn.Module, number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise StopError

    def goes_on(network: nn.Module, number: int) -> None:
        calls.append(number)

    with pytest.raises(selector.PruningError):
        selector.prune(model, batches, keep_macs=0.5, rounds=4, finetune=stops, checkpoint=tmp_path)
    result = selector.prune(
        model, batches, keep_macs=0.5, rounds=4, finetune=goes_on, checkpoint=tmp_path
    )
    assert calls[:3] == [1, 2, 3]
    assert calls[3:] == list(range(3, len(whole.rounds) + 1))
    assert values(result.model) == values(whole.model)
    assert result.plan == whole.plan
    assert result.report == whole.report
    # A run that is whole is read, not repeated.
    counted = Counted(batches)
    again = selector.prune(
        model, counted, keep_macs=0.5, rounds=4, finetune=goes_on, checkpoint=tmp_path
    )
    assert values(again.model) == values(whole.model)
    assert counted.read <= len(batches) + 2  # The unpruned network's loss, and probes.


def test_the_state_of_another_pruning_is_refused(tmp_path: Path) -> None:
    model, batches = small("plain", 12, norm=True), data()
    selector.prune(model, batches, keep_macs=0.7, rounds=2, criterion="l1", checkpoint=tmp_path)
    other = small("plain", 12, norm=True)
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    for network, images, options in (
        (other, batches, {"keep_macs": 0.7}),
        (model, [(x + 1, y) for x, y in batches], {"keep_macs": 0.7}),
        (model, batches, {"keep_macs": 0.6}),
        (model, batches, {"keep_macs": 0.7, "round_to": 2}),
    ):
        with pytest.raises(SelectorError, match="another pruning"):
            selector.prune(
                network,
                images,
                rounds=2,
                criterion="l1",
                checkpoint=tmp_path,
                **options,  # type: ignore[arg-type]
            )
    (tmp_path / "state.safetensors").write_bytes(b"not a file of ours")
    with pytest.raises(SelectorError, match="damaged"):
        selector.prune(model, batches, keep_macs=0.7, rounds=2, criterion="l1", checkpoint=tmp_path)


@pytest.mark.parametrize(
    ("criterion", "repair", "per_round", "once"),
    [("l1", False, 2, 1), ("taylor", False, 3, 1), ("selector", False, 3, 2), ("l1", True, 2, 1)],
)
def test_passes_over_the_data_are_those_that_the_docstring_states(
    criterion: str, repair: bool, per_round: int, once: int
) -> None:
    model, counted = small("plain", 12, norm=True), Counted(data())
    allocation: AllocationName = "damage" if criterion == "selector" else "auto"
    result = selector.prune(
        model,
        counted,
        keep_macs=0.6,
        rounds=2,
        criterion=criterion,
        allocation=allocation,
        repair=repair,
    )
    rounds = len(result.rounds)
    halved = sum(p.outcome.halved for p in result.rounds if p.outcome is not None)
    passes = once + per_round * rounds + 2 * halved + 3 * repair
    # And once for the first batch, which every probe uses; once more to see that it stays the same.
    assert counted.starts == passes + 1 + repair
    assert counted.read == passes * len(counted.batches) + 1 + repair
