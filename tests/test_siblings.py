"""Siblings of the faults that people met, through the public face, each with its right value."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from selector import (
    SelectorError,
    choose,
    distil,
    evaluate,
    find_groups,
    loss_changes,
    prune,
    record,
    score,
)
from tests.networks import data, small


def _complex_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, labels) * 1j


WRONG: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "a channel that is a word": (lambda m: loss_changes(m, data(), "stem", [["a"]]), "whole"),  # type: ignore[list-item]
    "a channel with a point": (lambda m: loss_changes(m, data(), "stem", [[1.0]]), "1.0"),  # type: ignore[list-item]
    "a channel that is true": (lambda m: loss_changes(m, data(), "stem", [[True]]), "True"),
    "a group by number": (lambda m: loss_changes(m, data(), 0, [[0]]), "group"),  # type: ignore[arg-type]
    "a seed for a generator": (lambda m: score(m, data(), generator=3), "generator"),  # type: ignore[arg-type]
    "a word for yes": (lambda m: prune(m, data(), ratio=0.3, recalibrate="no"), "recalibrate"),  # type: ignore[arg-type]
    "one for true": (lambda m: prune(m, data(), ratio=0.3, compensate=1), "compensate"),  # type: ignore[arg-type]
    "a checkpoint by number": (lambda m: prune(m, data(), ratio=0.3, checkpoint=3), "checkpoint"),  # type: ignore[arg-type]
    "a journal by number": (lambda m: record(m, data(), network="n", journal=3), "journal"),  # type: ignore[arg-type]
    "contexts by name": (lambda m: record(m, data(), network="n", contexts="two"), "contexts"),  # type: ignore[arg-type]
    "TorchScript": (
        lambda _: find_groups(torch.jit.script(nn.ReLU()), data()[0][0]),
        "TorchScript",
    ),
    "TorchScript inside": (
        lambda m: choose(nn.Sequential(m, torch.jit.script(nn.ReLU())), data(), ratio=0.3),
        "layer '1' is TorchScript",
    ),
    "no values": (lambda m: prune(m.to("meta"), data(), ratio=0.3), "no values"),
    "a complex loss": (
        lambda m: prune(
            m, data(), ratio=0.3, loss=lambda o, t: functional.cross_entropy(o, t) * 1j
        ),
        "complex",
    ),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    action, culprit = WRONG[name]
    with pytest.raises(SelectorError, match=culprit):
        action(small("plain").eval())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_labels_without_a_sign_are_labels(dtype: torch.dtype) -> None:
    model = small("plain").eval()
    right = evaluate(model, data()).loss
    unsigned = [(images, labels.to(dtype)) for images, labels in data()]
    assert evaluate(model, unsigned).loss == right


READINGS: dict[str, Callable[[nn.Module], object]] = {
    "prune": lambda m: prune(m, data(), ratio=0.3, rounds=1, criterion="l1").plan.choices,
    "choose": lambda m: choose(m, data(), ratio=0.3, criterion="taylor").choices,
    "score": lambda m: {k: v["taylor"].tolist() for k, v in score(m, data(), ["taylor"]).items()},
    "find_groups": lambda m: sorted(find_groups(m, data()[0][0]).prunable),
    "record": lambda m: len(record(m, data(), network="n", contexts=0, ratios=(0.25,)).candidates),
}


@pytest.mark.parametrize("name", READINGS)
def test_inference_mode_around_a_call_changes_nothing(name: str) -> None:
    model = small("plain").eval()
    right = READINGS[name](model)
    with torch.inference_mode():
        assert READINGS[name](model) == right


def test_what_is_pruned_in_inference_mode_can_be_trained() -> None:
    model = small("plain").eval()
    with torch.inference_mode():
        pruned = prune(model, data(), ratio=0.3, rounds=1, criterion="l1").model
    images, labels = data()[0]
    functional.cross_entropy(pruned(images), labels).backward()  # type: ignore[no-untyped-call]
    assert all(
        math.isfinite(float(p.grad.sum())) for p in pruned.parameters() if p.grad is not None
    )


class _TimeFirst(nn.Module):
    """Reads series of shape (time, images, channels)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv1d(6, 12, 3), nn.Conv1d(12, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, series: Tensor) -> Tensor:
        """Logits."""
        hidden = self.second(self.first(series.permute(1, 2, 0)).relu()).relu()
        logits: Tensor = self.head(hidden.mean(2))
        return logits


def test_a_repair_counts_images_where_time_comes_first() -> None:
    torch.manual_seed(1)
    batches = [(torch.randn(9, 16, 6), torch.randint(0, 5, (16,))) for _ in range(3)]
    pruned = prune(_TimeFirst().eval(), batches, ratio=0.5, rounds=1, criterion="l1")
    assert pruned.report.repair is not None
    assert pruned.report.repair.images == 48
    assert not pruned.report.repair.skipped


@dataclass
class _Answer:
    """What many networks of libraries return."""

    logits: Tensor


class _Answering(nn.Module):
    """Gives its logits inside an object."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small("plain")

    def forward(self, images: Tensor) -> _Answer:
        """Logits."""
        return _Answer(self.inner(images))


def test_logits_inside_an_object_are_imitated() -> None:
    model = _Answering().float().eval()
    batches = [(images.float(), None) for images, _ in data()]
    student = prune(model, batches, ratio=0.3, rounds=1, criterion="l1", repair=False).model
    report = distil(model, student, batches, passes=2).report
    plain = distil(model.inner, student.inner, batches, passes=2).report
    assert report.divergence_before == plain.divergence_before
