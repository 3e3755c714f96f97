"""The loss that is measured is the user's, whatever it does with the images of a batch."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from selector.data.loss import Objective, evaluate, measure_losses, summary
from selector.errors import SelectorError
from selector.network.surgery import apply_cuts, cuts_of
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle, loss_changes
from selector.planning.choose import choose
from selector.pruning.prune import prune
from selector.saliency.scoring import score
from tests.networks import CLASSES, data, small

WEIGHTS = torch.tensor([50.0, 1.0, 2.0, 0.5, 1.0], dtype=torch.float64)


def weighted(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, weight=WEIGHTS)


def ignoring(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, ignore_index=2)


def contrastive(outputs: Tensor, targets: Tensor) -> Tensor:
    """Every image against all others of its batch."""
    unit = F.normalize(outputs, dim=1)
    return F.cross_entropy(unit @ unit.T / 0.1, torch.arange(len(outputs)))


def ranked(outputs: Tensor, targets: Tensor) -> Tensor:
    """No loss of one image alone: it compares pairs."""
    if len(outputs) < 2:
        raise ValueError("a pair is needed")
    return F.softplus(outputs[1:, 0] - outputs[:-1, 0]).mean()


def whole_batch(outputs: Tensor, targets: Tensor) -> Tensor:
    """A batch's spread."""
    return outputs.var(0).mean() + F.cross_entropy(outputs, targets)


COUPLED = [weighted, ignoring, contrastive, ranked, whole_batch]
Coupled = Callable[[Tensor, Tensor], Tensor]


def by_hand(model: nn.Module, batches: list[tuple[Tensor, Tensor]], loss: Coupled) -> float:
    """Each batch's own loss, weighted by its images, in a loop."""
    total = images = 0.0
    with torch.no_grad():
        for inputs, targets in batches:
            total += float(loss(model(inputs), targets)) * len(inputs)
            images += len(inputs)
    return total / images


@pytest.mark.parametrize("loss", COUPLED)
def test_a_coupled_loss_is_measured_batch_by_batch(loss: Coupled) -> None:
    model, batches = small("plain", norm=True).eval(), data(40, 16)
    found = evaluate(model, batches, loss)
    assert (found.images, found.unit) == (40, "batch")
    assert found.loss == pytest.approx(by_hand(model, batches, loss), rel=1e-6)
    (whole,) = data(40, 40)
    alone = evaluate(model, [whole], loss)
    assert alone.loss == pytest.approx(by_hand(model, [whole], loss), rel=1e-6)


@pytest.mark.parametrize("loss", COUPLED)
@pytest.mark.parametrize("engine", ["fast", "masked", "reference"])
def test_the_oracle_measures_the_user_s_loss(loss: Coupled, engine: str) -> None:
    model, batches = small("residual", norm=True).eval(), data(40, 16)
    sets = [[0], [1, 2], []]
    found = loss_changes(model, batches, "stem", sets, loss=loss, engine=engine)  # type: ignore[arg-type]
    before = [by_hand(model, [batch], loss) for batch in batches]
    group = find_groups(model, batches[0][0]).prunable["stem"]
    for channels, change in zip(sets[:2], found, strict=False):
        cut = small("residual", norm=True).eval()
        cut.load_state_dict(model.state_dict())
        apply_cuts(cut, cuts_of([(group, tuple(channels))]))
        each = [by_hand(cut, [batch], loss) - b for batch, b in zip(batches, before, strict=True)]
        sizes = [len(x) for x, _ in batches]
        right = sum(d * n for d, n in zip(each, sizes, strict=True)) / sum(sizes)
        assert change.nats == pytest.approx(right, rel=1e-6, abs=1e-9)
        assert change.images == 40
        assert change.standard_error > 0
    assert (found[2].nats, found[2].standard_error) == (0, 0)


def test_a_batch_that_does_not_fit_in_memory_is_not_split() -> None:
    model, batches = small("plain").eval(), data(24, 12)
    sets = {find_groups(model, batches[0][0]).prunable["stem"]: [[0], [1]]}
    wide, narrow = (
        Oracle(memory_bytes=size).measure(model, batches, sets, loss=weighted).changes
        for size in (2**31, 1)
    )
    assert wide == narrow


def test_a_loss_that_shows_late_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is ignored in the first batch, so that it looks like a mean over images."""
    model, batches = small("plain").eval(), data(48, 16)
    batches[0][1].clamp_(3, 4)
    batches[1][1][:7] = 2

    def late(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, ignore_index=2)

    right = by_hand(model, batches, late)
    with caplog.at_level(logging.WARNING, "selector"):
        assert evaluate(model, batches, late).loss == pytest.approx(right, rel=1e-6)
        (change,) = loss_changes(model, batches, "stem", [[1]], loss=late)
        (again,) = loss_changes(model, batches, "stem", [[1]], loss=late, engine="masked")
    assert change.nats == pytest.approx(again.nats, rel=1e-6)
    assert change.images == 48
    assert [r.levelname for r in caplog.records] == ["WARNING"]  # Said once.
    assert "batch by batch" in caplog.text


def mean_of_images(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, label_smoothing=0.1)


def test_a_mean_over_images_stays_one(caplog: pytest.LogCaptureFixture) -> None:
    model, batches = small("plain").eval(), data(40, 16)
    with caplog.at_level(logging.WARNING, "selector"):
        found = evaluate(model, batches, mean_of_images)
    assert (found.unit, caplog.text) == ("image", "")
    objective = Objective(mean_of_images)
    losses = measure_losses(model, batches, objective)
    assert losses.each is not None
    singles = torch.stack(
        [
            mean_of_images(model(x[i : i + 1]), y[i : i + 1])
            for x, y in batches
            for i in range(len(x))
        ]
    )
    torch.testing.assert_close(losses.each, singles.detach().double())
    assert found.loss == pytest.approx(float(singles.detach().mean()))


CALLS: list[Callable[[nn.Module, Coupled], object]] = [
    lambda model, loss: evaluate(model, data(), loss),
    lambda model, loss: score(model, data(), ["taylor"], loss=loss),
    lambda model, loss: loss_changes(model, data(), "stem", [[0]], loss=loss),
    lambda model, loss: choose(model, data(), criterion="taylor", ratio=0.3, loss=loss),
    lambda model, loss: prune(model, data(), criterion="l1", ratio=0.3, loss=loss),
]
every_call = pytest.mark.parametrize(
    "call", CALLS, ids=["evaluate", "score", "loss_changes", "choose", "prune"]
)


@every_call
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="sum", weight=WEIGHTS),
        lambda outputs, targets: (outputs**2).sum(),
    ],
)
def test_a_sum_is_refused(call: Callable[..., object], loss: Coupled) -> None:
    with pytest.raises(SelectorError, match="loss is a sum over the images"):
        call(small("plain").eval(), loss)


@every_call
@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(reduction="none"),
        lambda outputs, targets: 0.5,
        lambda outputs, targets: (outputs.mean(), outputs.mean()),
        lambda outputs, targets: None,
    ],
)
def test_what_is_no_number_is_refused(call: Callable[..., object], loss: Coupled) -> None:
    with pytest.raises(SelectorError, match="one number per batch"):
        call(small("plain").eval(), loss)


Structure = Callable[[Tensor], object]


@pytest.mark.parametrize(
    ("made", "read"),
    [
        (list, torch.stack),
        (lambda y: {"label": y}, lambda t: t["label"]),
        (lambda y: [{"label": one} for one in y], lambda t: torch.stack([d["label"] for d in t])),
        (lambda y: (y, torch.eye(3)), lambda t: t[0]),
        (lambda y: [y, y], lambda t: t[1]),
        (lambda y: y.tolist(), lambda t: torch.tensor(t)),
    ],
)
@pytest.mark.parametrize("size", [8, 2])
def test_targets_of_any_structure(
    made: Structure, read: Callable[[object], Tensor], size: int
) -> None:
    model, plain = small("plain").eval(), data(16, size)
    batches = [(x, made(y)) for x, y in plain]

    def loss(outputs: Tensor, targets: object) -> Tensor:
        return F.cross_entropy(outputs, read(targets))

    found = evaluate(model, batches, loss)
    assert found.loss == pytest.approx(evaluate(model, plain).loss, rel=1e-6)
    assert (found.unit, found.images) == ("image", 16)
    (one,) = loss_changes(model, batches, "stem", [[0]], loss=loss)
    (other,) = loss_changes(model, plain, "stem", [[0]])
    assert one.nats == pytest.approx(other.nats, rel=1e-5)
    assert one.standard_error == pytest.approx(other.standard_error, rel=1e-5)


def test_boxes_of_unequal_number_are_one_list_an_image() -> None:
    model, plain = small("plain").eval(), data(16, 8)
    batches = [(x, [torch.ones(1 + i % 3, 4) * i for i in range(len(x))]) for x, _ in plain]

    def per_image(outputs: Tensor, boxes: list[Tensor]) -> Tensor:
        assert len(outputs) == len(boxes)
        each = [(o.mean() - b.mean()) ** 2 for o, b in zip(outputs, boxes, strict=True)]
        return torch.stack(each).mean()

    def per_box(outputs: Tensor, boxes: list[Tensor]) -> Tensor:
        each = [(o.mean() - b.mean(1)) ** 2 for o, b in zip(outputs, boxes, strict=True)]
        return torch.cat(each).mean()

    for loss, unit in ((per_image, "image"), (per_box, "batch")):
        found = evaluate(model, batches, loss)
        right = by_hand(model, batches, loss)  # type: ignore[arg-type]
        assert found.loss == pytest.approx(right, rel=1e-6)
        assert found.unit == unit


@pytest.mark.parametrize("cast", ["int", "short", "char", "byte", "column", "int column"])
def test_labels_of_any_integer_type_and_shape(cast: str) -> None:
    def changed(labels: Tensor) -> Tensor:
        labels = labels[:, None] if "column" in cast else labels
        return labels if cast == "column" else getattr(labels, cast.split()[0])()

    model, plain = small("plain").eval(), data(16, 8)
    batches = [(x, changed(y)) for x, y in plain]
    assert evaluate(model, batches) == evaluate(model, plain)
    assert loss_changes(model, batches, "stem", [[0]]) == loss_changes(model, plain, "stem", [[0]])
    one, other = (score(model, b, ["fisher"])["stem"]["fisher"] for b in (batches, plain))
    assert torch.equal(one, other)
    one_plan, other_plan = (choose(model, b, ratio=0.3) for b in (batches, plain))
    assert one_plan.expected == other_plan.expected
    assert one_plan.expected is not None
    assert one_plan.expected.accuracy is not None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda y: F.one_hot(y, CLASSES), r"one-hot labels pass labels.argmax\(1\)"),
        (lambda y: y.double(), r"labels are float64 of shape .* \(labels.long\(\)\)"),
        (lambda y: y[:, None].double(), "labels are float64"),
        (lambda y: y[:-1], r"labels have shape \(3,\)"),
        (lambda y: y[None], r"labels have shape \(1, 4\)"),
        (lambda y: y.to(torch.complex64), "labels are complex64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    changed: Callable[[Tensor], Tensor], message: str
) -> None:
    batches = [(x, changed(y)) for x, y in data(8, 4)]
    for call in (evaluate, lambda m, b: score(m, b, ["taylor"])):
        with pytest.raises(SelectorError, match=message):
            call(small("plain").eval(), batches)


def test_probabilities_are_labels_too() -> None:
    model, plain = small("plain").eval(), data(8, 4)
    batches = [(x, F.one_hot(y, CLASSES).double()) for x, y in plain]
    found, right = evaluate(model, batches), evaluate(model, plain)
    assert found.loss == pytest.approx(right.loss)
    assert found.accuracy is None


def test_ignored_labels_are_not_counted_as_wrong() -> None:
    model, batches = small("plain").eval(), data(8, 8)
    images, labels = batches[0]
    right = model(images).argmax(1)
    labels.copy_(right)
    labels[:3] = -100
    assert evaluate(model, batches, nn.CrossEntropyLoss()).accuracy == 1


@settings(deadline=None, max_examples=30)
@given(
    values=st.lists(st.floats(-3, 3), min_size=2, max_size=8),
    sizes=st.lists(st.integers(1, 5), min_size=8, max_size=8),
)
def test_the_error_between_batches(values: list[float], sizes: list[int]) -> None:
    weights = sizes[: len(values)]
    found = summary(torch.tensor(values, dtype=torch.float64), 0, torch.tensor(weights))
    mean = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
    assert found.nats == pytest.approx(mean, abs=1e-9)
    assert found.images == sum(weights)
    equal = summary(torch.tensor(values, dtype=torch.float64), 0, torch.ones(len(values)))
    plain = summary(torch.tensor(values, dtype=torch.float64), 0)
    assert equal.nats == pytest.approx(plain.nats, abs=1e-12)
    assert equal.standard_error == pytest.approx(plain.standard_error, abs=1e-9)


def test_one_batch_has_no_error() -> None:
    (change,) = loss_changes(small("plain").eval(), data(8, 8), "stem", [[0]], loss=weighted)
    assert math.isnan(change.standard_error)
    assert math.isfinite(change.nats)


@dataclass(frozen=True)
class Output:
    logits: Tensor
    step: int = 3


class Wrapped(nn.Module):
    """A network whose logits are one of several outputs."""

    def __init__(self, kind: Callable[[Tensor], object] = Output) -> None:
        super().__init__()
        self.inner, self.kind = small("plain"), kind

    def forward(self, images: Tensor) -> object:
        return self.kind(self.inner(images))


@pytest.mark.parametrize(
    "kind", [Output, lambda logits: {"features": logits[:, :1], "logits": logits}]
)
def test_logits_are_found_in_what_calls_them_so(kind: Callable[[Tensor], object]) -> None:
    model, plain, batches = Wrapped(kind).eval(), small("plain").eval(), data(16, 8)
    assert evaluate(model, batches) == evaluate(plain, batches)
    for gradients in ("labels", "softened"):
        one, other = (
            score(m, batches, ["fisher"], gradients=gradients)[group]["fisher"]
            for m, group in ((model, "inner.stem"), (plain, "stem"))
        )
        assert torch.equal(one, other)
    one_plan, other_plan = (choose(m, batches, ratio=0.3) for m in (model, plain))
    assert one_plan.expected == other_plan.expected
    assert one_plan.expected is not None
    assert one_plan.expected.accuracy is not None


def test_outputs_in_an_object_are_cut_by_image() -> None:
    def loss(outputs: Output, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.logits, targets)

    found = evaluate(Wrapped().eval(), data(16, 8), loss)
    assert found.unit == "image"
    assert found.loss == pytest.approx(evaluate(small("plain"), data(16, 8)).loss)
