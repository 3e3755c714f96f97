"""The networks that scoring is timed on, and the two passes that are compared."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from selector.network.groups import Group
from selector.saliency.grammar import need_of, systematic_names
from selector.saliency.registry import first_order_metrics
from selector.saliency.scoring import score_signals
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import FIRST_ORDER
from training.zoo.third_party_networks import HeResNet

Batches = list[tuple[Tensor, Tensor]]
METRICS_OF_ONE_PASS = [
    *first_order_metrics(),
    *(name for name in systematic_names() if need_of(name) in FIRST_ORDER),
]
"""Whatever one forward and backward pass gives."""


@dataclass(frozen=True, kw_only=True)
class SaliencyCase:
    """A network and the shape of its batches; weights are random, since only time is judged."""

    name: str
    build: Callable[[], nn.Module]
    batch: int
    batches: int
    pixels: int = 224
    classes: int = 1000
    words: str
    """What it is called in the document."""
    theirs: bool = True
    """Whether Torch-Pruning's importances are timed beside ours."""


CASES = {
    case.name: case
    for case in (
        SaliencyCase(
            name="resnet50",
            build=torchvision.models.resnet50,
            batch=16,
            batches=4,
            words="torchvision ResNet-50, 224 px, batch 16",
        ),
        SaliencyCase(
            name="resnet56",
            build=lambda: HeResNet(56),
            batch=128,
            batches=4,
            pixels=32,
            classes=10,
            words="CIFAR ResNet-56, batch 128",
        ),
        SaliencyCase(
            name="vit_b_16",
            build=torchvision.models.vit_b_16,
            batch=8,
            batches=2,
            words="torchvision ViT-B/16, 224 px, batch 8",
            theirs=False,
        ),
        SaliencyCase(
            name="convnext_tiny",
            build=torchvision.models.convnext_tiny,
            batch=8,
            batches=4,
            words="torchvision ConvNeXt-T, 224 px, batch 8",
            theirs=False,
        ),
    )
}


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def set_up(case: SaliencyCase, batches: int) -> tuple[nn.Module, Batches]:
    """The network with random weights, and as many batches of noise."""
    torch.manual_seed(0)
    device = _device()
    model = case.build().eval().to(device)
    shape = (case.batch, 3, case.pixels, case.pixels)
    data = [
        (torch.randn(shape, device=device), torch.randint(case.classes, (case.batch,)).to(device))
        for _ in range(batches)
    ]
    return model, data


def plain_pass(model: nn.Module, data: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Forward and backward, and no more."""
    for images, labels in data:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(functional.cross_entropy(model(images), labels))
    model.zero_grad(set_to_none=True)


def scored(
    model: nn.Module, data: Iterable[tuple[Tensor, Tensor]], groups: Mapping[str, Group]
) -> None:
    """The same images, and every metric of every group made of them."""
    score_signals(measure_signals(model, data, groups), METRICS_OF_ONE_PASS)
