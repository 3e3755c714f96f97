"""`saliency-selector demo`: prune a small trained network on digits that come with sklearn.

Handwritten digits of 8 x 8 pixels (scikit-learn's `load_digits`). The network never saw the
calibration and test images, and the shipped selector never saw the network.
"""

import logging
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from selector.cli.outputs import remarks_from
from selector.data.batches import Batches
from selector.learning.artefact import shipped_file
from selector.network.checkpoint import load_tensors, read_tensors
from selector.pruning.method_comparison import compare_methods
from selector.pruning.method_table import MethodComparison
from selector.pruning.prune import prune

KEEP_MACS = 0.5
ROUNDS = 5
WEIGHTS = "demo_digits.safetensors"


class DigitsNetwork(nn.Module):
    """Five convolutions with BatchNorm, the third with a shortcut around it, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(20)
        self.conv3 = nn.Conv2d(20, 20, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(20)
        self.conv4 = nn.Conv2d(20, 28, 3, padding=1, bias=False)
        self.norm4 = nn.BatchNorm2d(28)
        self.conv5 = nn.Conv2d(28, 28, 3, stride=2, padding=1, bias=False)
        self.norm5 = nn.BatchNorm2d(28)
        self.linear = nn.Linear(28, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (images, 10) for images of shape (images, 1, 8, 8)."""
        maps = torch.relu(self.norm1(self.conv1(images)))
        maps = torch.relu(self.norm2(self.conv2(maps)))
        maps = torch.relu(maps + self.norm3(self.conv3(maps)))
        maps = torch.relu(self.norm4(self.conv4(maps)))
        maps = torch.relu(self.norm5(self.conv5(maps)))
        logits: Tensor = self.linear(maps.mean((2, 3)))
        return logits


@dataclass(frozen=True)
class DigitsSplit:
    """The digits in three parts: 897 for training, 400 for calibration, 500 for testing."""

    train: tuple[Tensor, Tensor]
    calibration: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def digits() -> DigitsSplit:
    """Read scikit-learn's digits, standardised, split with a fixed seed and by class."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8)
    images = (images - 4.9) / 6.0
    numbers = torch.arange(len(labels)).numpy()
    rest, test = train_test_split(numbers, test_size=500, random_state=0, stratify=labels)
    train, held = train_test_split(rest, test_size=400, random_state=0, stratify=labels[rest])
    targets = torch.tensor(labels, dtype=torch.int64)
    parts = [(images[torch.tensor(i)], targets[torch.tensor(i)]) for i in (train, held, test)]
    return DigitsSplit(*parts)


def batched(part: tuple[Tensor, Tensor], size: int = 50) -> Batches:
    """Batches of a part, in order."""
    return list(zip(*(torch.split(tensor, size) for tensor in part), strict=True))


def calibration() -> Batches:
    """Batches of the 400 calibration images, as in `--data selector.demo:calibration`."""
    return batched(digits().calibration)


def network() -> nn.Module:
    """The trained network that is shipped.

    Raises:
        SelectorError: It is missing or damaged: a broken installation.
    """
    path = shipped_file(WEIGHTS)
    model = DigitsNetwork()
    load_tensors(model, read_tensors(path), path)
    return model.eval()


DEMO_METHODS = ("l1", "single-best", "reconstruction", "oracle", "even", "selector", "verify")
NOTE = """\
Accuracy before and after the repair, which refits what is left in closed form, without labels.
The selector spends the budget where it predicts the least damage; the others, and
"selector, even", take the same share of every layer."""


@dataclass(frozen=True)
class DemoResult:
    """The comparison, and the report of the selector's own run."""

    comparison: MethodComparison
    routed: str
    """The report of the run that the selector routed, as text."""

    def __str__(self) -> str:
        """The comparison as a table, then the selector's report."""
        return "\n".join(
            [
                f"A CNN trained on handwritten digits, cut to {KEEP_MACS:.0%} of its MACs in "
                f"{ROUNDS} rounds,\nno retraining; 500 test images that nothing else has seen.",
                str(self.comparison),
                NOTE,
                "",
                "Which metric the selector trusted where:",
                self.routed,
            ]
        )

    def to_json(self) -> str:
        """The comparison as JSON text."""
        return self.comparison.to_json()


def run(progress: bool = False) -> DemoResult:
    """Prune the shipped network by several methods and compare them on the test images."""
    data, model = digits(), network()
    test, images = batched(data.test, 250), batched(data.calibration)
    with remarks_from(logging.WARNING):  # The report says what was expected, too.
        compared = compare_methods(
            model,
            images,
            methods=DEMO_METHODS,
            rounds=ROUNDS,
            test_batches=test,
            progress=progress,
            keep_macs=KEEP_MACS,
        )
        routed = prune(model, images, rounds=ROUNDS, test_batches=test, keep_macs=KEEP_MACS)
    return DemoResult(compared, str(routed.report))
