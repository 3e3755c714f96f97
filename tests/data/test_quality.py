"""What is suspicious about network and data is said before the first cut, and nothing else is."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from selector.data.loss import Evaluation, evaluate
from selector.data.quality import data_warnings
from selector.pruning.prune import prune
from tests.networks import CLASSES, data, small

Batches = list[tuple[Tensor, Tensor]]


def taught(batches: Batches, model: nn.Module, share: float = 1.0) -> Batches:
    """The images with the network's own answers as labels, of the first part of each batch."""
    found = []
    with torch.no_grad():
        for images, labels in batches:
            count = round(share * len(labels))
            answers = model(images).argmax(1)
            found.append((images, torch.cat([answers[:count], labels[count:]])))
    return found


def diverse(width: int = 8) -> nn.Module:
    """A network that gives all the answers there are."""
    model = small("plain", width).eval()
    images = torch.cat([x for x, _ in data(400, 40)])
    with torch.no_grad():
        logits = model(images)
        head = model.head
        assert isinstance(head, nn.Linear)
        scale = 20 / logits.std()
        head.bias.sub_(logits.mean(0)).mul_(scale)
        head.weight.mul_(scale)
    return model


def warned(batches: Batches, **options: object) -> tuple[str, ...]:
    result = prune(
        diverse(),
        batches,
        criterion="l1",
        ratio=0.2,
        rounds=1,
        **options,  # type: ignore[arg-type]
    )
    assert result.report.warnings == result.plan.warnings
    return result.report.warnings


def test_a_good_network_on_enough_images_is_not_warned_about() -> None:
    assert warned(taught(data(400, 40), diverse(), 0.8)) == ()


def test_a_network_at_chance(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "selector"):
        (text,) = warned(data(400, 40))
    assert "near chance" in text
    assert "--weights, --mean and --std" in text
    assert text in caplog.text


def test_labels_of_one_class() -> None:
    one = [(x, torch.zeros_like(y)) for x, y in data(400, 40)]
    (text,) = warned(one)
    assert text.startswith("all 400 calibration images have the same label")


def test_few_images() -> None:
    (text,) = warned(taught(data(80, 40), diverse(), 0.8))
    assert text.startswith("only 80 calibration images")


def test_images_that_were_learnt_by_heart() -> None:
    model = diverse()
    with torch.no_grad():
        for parameter in model.head.parameters():  # type: ignore[union-attr]
            parameter *= 1000
    batches = taught(data(400, 40), model)
    result = prune(model, batches, criterion="l1", ratio=0.2, rounds=1)
    (text,) = result.report.warnings
    assert "nearly zero" in text
    assert "forecast of loss and accuracy is too good" in text


def test_a_loss_that_is_measured_by_batch_is_in_the_report() -> None:
    weights = torch.tensor([30.0, 1, 1, 1, 1], dtype=torch.float64)
    batches = taught(data(400, 40), diverse(), 0.8)
    (text,) = warned(batches, loss=nn.CrossEntropyLoss(weight=weights))
    assert "batch by batch" in text


def test_the_calibration_images_are_looked_at_also_where_others_judge() -> None:
    good = taught(data(400, 40), diverse(), 0.8)
    assert "near chance" in warned(data(400, 40), test_batches=good)[0]
    assert warned(good, test_batches=good) == ()


def test_what_has_no_classes_has_no_chance() -> None:
    found = evaluate(diverse(), [(x, torch.randn(40, 5).double()) for x, _ in data(400, 40)], mse)
    assert (found.accuracy, found.labels, found.guessing) == (None, None, None)
    assert data_warnings(found, "images", cross_entropy=False) == ()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs, targets)


@pytest.mark.parametrize(
    ("accuracy", "guessing", "images", "near"),
    [
        (0.10, 0.1, 640, True),
        (0.05, 0.1, 640, True),
        (0.20, 0.1, 640, False),
        (0.20, 0.1, 25, True),
        (0.91, 0.9, 400, True),  # Nine of ten labels are the same one.
        (0.97, 0.9, 400, False),
        (0.02, 0.001, 1000, False),
    ],
)
def test_near_chance_is_a_matter_of_chance(
    accuracy: float, guessing: float, images: int, near: bool
) -> None:
    found = Evaluation(1.0, accuracy, images, labels=3, guessing=guessing)
    texts = " ".join(data_warnings(found, "images", cross_entropy=True))
    assert ("chance" in texts) == near


def test_guessing_is_counted(request: pytest.FixtureRequest) -> None:
    labels = torch.tensor([0] * 7 + [1] * 3)
    inputs = torch.randn(10, 3, 8, 8, dtype=torch.float64)
    found = evaluate(diverse(), [(inputs[:6], labels[:6]), (inputs[6:], labels[6:])])
    assert (found.labels, found.guessing) == (2, 0.7)
    even: Callable[[Tensor], Tensor] = lambda y: torch.arange(len(y)) % CLASSES  # noqa: E731
    balanced = [(x, even(y)) for x, y in data(40, 20)]
    assert evaluate(diverse(), balanced).guessing == pytest.approx(1 / CLASSES)
