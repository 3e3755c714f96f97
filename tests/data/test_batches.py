"""What comes one an image is cut by image, whatever else a batch holds."""

from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from selector.data.batches import batch_size, check_batches, check_repeatable, picked, rows
from selector.data.forward import probe_inputs
from selector.data.loss import evaluate
from selector.data.sampling import drawn_from
from selector.errors import SelectorError
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle, loss_changes
from selector.planning.choose import choose
from selector.pruning.prune import prune
from selector.saliency.scoring import score
from tests.networks import CLASSES, data, small

Batch = tuple[object, object]
TABLE = torch.eye(CLASSES, dtype=torch.float64)


class Around(nn.Module):
    """Something around the plain network."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = small("plain", norm=True)


class TableAfter(Around):
    """The plain network, whose logits go through a table that is an input."""

    def forward(self, images: Tensor, table: Tensor) -> Tensor:
        return self.inner(images) @ table


class TableBefore(Around):
    def forward(self, table: Tensor, images: Tensor) -> Tensor:
        found: Tensor = self.inner(images) @ table
        return found


class Adjacent(Around):
    """A square input whose mean is used: it runs, wrongly, on any number of its rows."""

    def forward(self, images: Tensor, table: Tensor) -> Tensor:
        return self.inner(images) * table.sum()


class Fixed(Around):
    """Runs on eight images alone."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images).view(8, CLASSES)


class TimeFirst(Around):
    """Images in the second dimension, rows of pixels in the first."""

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images.permute(1, 2, 0, 3))


class Listed(Around):
    """A list of images, as detectors take them."""

    def forward(self, images: list[Tensor]) -> Tensor:
        return self.inner(torch.stack(images))


Made = Callable[[Tensor, Tensor], Batch]
ODD: dict[str, tuple[type[Around], Made]] = {
    "table after": (TableAfter, lambda x, y: ((x, TABLE), y)),
    "table before": (TableBefore, lambda x, y: ((TABLE, x), y)),
    "table by name": (TableAfter, lambda x, y: ({"table": TABLE, "images": x}, y)),
    "list of arguments": (TableAfter, lambda x, y: ([x, TABLE], y)),
    "as long by chance": (Adjacent, lambda x, y: ((x, torch.eye(8).double() / 8), y)),
    "as long before": (TableBefore, lambda x, y: ((TABLE, x), y)),
    "fixed": (Fixed, lambda x, y: (x, y)),
    "time-first": (TimeFirst, lambda x, y: (x.permute(2, 0, 1, 3), y)),
    "a bare list": (Listed, lambda x, y: (list(x), y)),
    "listed": (Listed, lambda x, y: ((list(x),), y)),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_inputs_give_the_numbers_of_plain_ones(name: str) -> None:
    kind, made = ODD[name]
    size = CLASSES if name == "as long before" else 8
    plain = data(4 * size, size)
    model, inner = kind().eval(), small("plain", norm=True).eval()
    odd = [made(x, y) for x, y in plain]
    assert evaluate(model, odd) == evaluate(inner, plain)
    right = score(inner, plain, ["taylor", "fisher", "l1"])
    found = score(model, odd, ["taylor", "fisher", "l1"])
    for group, metrics in right.items():
        for metric, values in metrics.items():
            torch.testing.assert_close(found[f"inner.{group}"][metric], values)
    sets = [[0], [1, 2]]
    for engine in ("fast", "masked"):
        changes = loss_changes(model, odd, "inner.stem", sets, engine=engine)  # type: ignore[arg-type]
        for one, other in zip(changes, loss_changes(inner, plain, "stem", sets), strict=True):
            assert one.nats == pytest.approx(other.nats, rel=1e-6)
            assert one.standard_error == pytest.approx(other.standard_error, rel=1e-6)
            assert one.images == other.images == 4 * size
    one_plan, other_plan = (choose(m, b, ratio=0.4) for m, b in ((model, odd), (inner, plain)))
    assert {f"inner.{n}": r for n, r in other_plan.removals.items()} == one_plan.removals
    assert prune(model, odd, ratio=0.4, criterion="l1", rounds=1).plan.choices


@pytest.mark.parametrize("name", ["table before", "as long by chance", "fixed", "listed"])
def test_little_memory_changes_nothing(name: str) -> None:
    """Batches are read in parts where they come one an image, and whole where they do not."""
    kind, made = ODD[name]
    model, odd = kind().eval(), [made(x, y) for x, y in data(16, 8)]
    group = find_groups(model, probe_inputs(model, odd)).prunable["inner.stem"]
    wide, narrow = (
        Oracle(memory_bytes=size).measure(model, odd, {group: [[0], [1]]}).changes[group]
        for size in (2**31, 1)
    )
    for one, other in zip(wide, narrow, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-9)


def test_the_probe_is_of_a_few_images_where_it_can_be() -> None:
    few, whole = 4, 8
    for name, right in {"table after": few, "table before": few, "fixed": whole}.items():
        kind, made = ODD[name]
        probe = probe_inputs(kind().eval(), [made(x, y) for x, y in data(16, 8)])
        leaves = [probe] if isinstance(probe, Tensor) else list(probe)  # type: ignore[call-overload]
        assert right in {len(leaf) for leaf in leaves}
        assert all(len(leaf) == CLASSES for leaf in leaves if leaf.ndim == 2)


IMAGES = torch.zeros(8, 3, 4, 4)


@pytest.mark.parametrize(
    ("inputs", "targets", "outputs", "right"),
    [
        (IMAGES, None, None, 8),
        (IMAGES, torch.zeros(8), None, 8),
        ((torch.eye(5), IMAGES), torch.zeros(8), None, 8),
        ((torch.eye(5), IMAGES), None, torch.zeros(8, 10), 8),
        ((torch.eye(5), IMAGES), None, {"logits": torch.zeros(8, 10)}, 8),
        ({"table": torch.eye(5), "x": IMAGES}, {"label": torch.zeros(8)}, None, 8),
        (torch.zeros(20, 8, 3), torch.zeros(8), None, 8),
        ((list(IMAGES),), [{"boxes": torch.zeros(3, 4)}] * 8, None, 8),
        (IMAGES, [torch.zeros(k % 3, 4) for k in range(8)], None, 8),
        (IMAGES, list(range(8)), None, 8),
        (IMAGES, (torch.zeros(8), torch.zeros(8, 2)), None, 8),
        (torch.zeros(8, 12), torch.zeros(8 * 12), torch.zeros(8 * 12, 50), 8),
        (IMAGES, torch.zeros(()), None, 8),
    ],
)
def test_the_number_of_images(inputs: object, targets: object, outputs: object, right: int) -> None:
    assert batch_size(inputs, targets, outputs) == right


def test_nothing_to_count() -> None:
    with pytest.raises(SelectorError, match="no tensor with an image dimension"):
        batch_size(torch.zeros(()), None)


@settings(deadline=None, max_examples=40)
@given(st.data(), st.integers(1, 9))
def test_rows_of_any_structure(chance: st.DataObject, images: int) -> None:
    start = chance.draw(st.integers(0, images - 1))
    stop = chance.draw(st.integers(start + 1, images))
    column = torch.arange(images)
    table = torch.zeros(images + 1, images)
    values = {"x": (column, table), "y": [column * 2, column], "z": 3, "s": torch.tensor(1.0)}
    found = rows(values, start, stop, images)
    assert isinstance(found, dict)
    assert torch.equal(found["x"][0], column[start:stop])
    assert found["x"][1] is table
    assert torch.equal(found["y"][0], column[start:stop] * 2)
    assert (found["z"], float(found["s"])) == (3, 1.0)
    boxes = [torch.full((k + 1, 4), k) for k in range(images)]
    some = picked(boxes, [stop - 1, start], images)
    if images > 1:
        assert isinstance(some, list)
        assert [len(b) for b in some] == [stop, start + 1]


def test_images_are_drawn_and_joined_with_their_tables() -> None:
    plain = data(20, 8)
    odd: list[Batch] = [((TABLE, x), [{"label": one} for one in y]) for x, y in plain]
    for seed in range(3):
        draws = [
            drawn_from(b)(11, torch.Generator().manual_seed(seed))  # type: ignore[arg-type]
            for b in (plain, odd)
        ]
        right, found = (list(draw) for draw in draws)
        assert len(right) == len(found)
        for (x, y), (inputs, targets) in zip(right, found, strict=True):
            table, images = cast(tuple[Tensor, Tensor], inputs)
            assert torch.equal(table, TABLE)
            assert torch.equal(images, x)
            assert [int(t["label"]) for t in targets] == y.tolist()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ("images/train", "not the path 'images/train'.*read_images"),
        (Path("images"), "not the path 'images'"),
        (IMAGES, "not one Tensor"),
        ({"inputs": IMAGES}, "not one dict"),
        (TensorDataset(IMAGES, torch.zeros(8)), r"TensorDataset holds single images.*DataLoader\("),
        ([IMAGES], r"must be a pair \(inputs, targets\), not a Tensor; .* \(inputs, None\)"),
    ],
)
def test_what_holds_no_batches(batches: object, message: str) -> None:
    with pytest.raises(SelectorError, match=message):
        check_batches(batches)  # type: ignore[arg-type]


def test_what_is_read_twice_is_compared_by_value() -> None:
    inputs = {"x": np.arange(3), "y": torch.tensor([1.0, float("nan")]), "z": "text"}
    check_repeatable([(inputs, None)])
    check_repeatable(DataLoader(TensorDataset(IMAGES, torch.zeros(8)), batch_size=4))
