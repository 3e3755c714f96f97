"""Trained networks that we did not train: their weights, and the input that they expect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from selector.data.image_data import ImageData, TensorBatches
from selector.errors import SelectorError
from training.datasets.catalogue import shared_folder
from training.zoo.third_party_networks import (
    CyResNet,
    FoundingCifar10,
    FoundingLeNet,
    FoundingResNet,
    HeResNet,
)


@dataclass(frozen=True)
class ForeignInfo:
    """A trained network as its file and its authors describe it.

    Attributes:
        file: Its weights, in the folder `networks` of the shared folder.
        family: Kind of architecture, in the records.
        build: Makes the untrained network.
        top1_percent: Stated accuracy on the 10,000 test images of CIFAR-10.
        mean: Subtracted from every plane, in units of pixel / 255 and in the order of the planes.
        std: Divides every plane, in the same units and order.
        bgr: Whether the planes come as blue, green, red.
    """

    file: str
    family: str
    build: Callable[[], nn.Module]
    top1_percent: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    bgr: bool = False


# The founding networks divide pixels by 256, not 255.
_BY_256 = (256 / 255,)
_CAFFE_MEAN = (123.675 / 255, 116.28 / 255, 103.53 / 255)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _he(depth: int, top1_percent: float) -> ForeignInfo:
    return ForeignInfo(
        file=f"he_resnet{depth}_cifar10.safetensors",
        family="he_residual",
        build=partial(HeResNet, depth),
        top1_percent=top1_percent,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
    )


FOREIGN: Mapping[str, ForeignInfo] = {
    "founding_lenet-5": ForeignInfo(
        file="founding_lenet-5.safetensors",
        family="founding_lenet",
        build=FoundingLeNet,
        top1_percent=69.35,
        mean=(0.0,),
        std=_BY_256,
        bgr=True,
    ),
    "founding_cifar10": ForeignInfo(
        file="founding_cifar10.safetensors",
        family="founding_plain",
        build=FoundingCifar10,
        top1_percent=72.76,
        mean=_CAFFE_MEAN,
        std=_BY_256,
        bgr=True,
    ),
    "founding_resnet-20": ForeignInfo(
        file="founding_resnet-20.safetensors",
        family="founding_residual",
        build=FoundingResNet,
        top1_percent=88.42,
        mean=_CAFFE_MEAN,
        std=_BY_256,
        bgr=True,
    ),
    "he_resnet20_cifar10": _he(20, 91.73),
    "he_resnet32_cifar10": _he(32, 92.63),
    "he_resnet44_cifar10": _he(44, 93.10),
    "cy_resnet20_cifar10": ForeignInfo(
        file="cy_resnet20_cifar10.safetensors",
        family="cy_residual",
        build=CyResNet,
        top1_percent=92.60,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    ),
}


def load_foreign(name: str) -> nn.Module:
    """Return one of `FOREIGN` with its trained weights, in eval mode.

    Raises:
        SelectorError: If the name is unknown, the weights are absent or unreadable, or a tensor
            does not fit the network.
    """
    info = foreign_info(name)
    shared = shared_folder()
    if shared is None or not (file := shared / "networks" / info.file).is_file():
        raise SelectorError(
            f"{name}: no weights {info.file}; point SALIENCY_SHARED to a folder that holds "
            f"networks/{info.file}"
        )
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise SelectorError(f"{file} is not a safetensors file: {error}") from error
    model = info.build()
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in weights.items()}
    for key in sorted(expected.keys() | found.keys()):
        # Only BatchNorm's counter may be missing; evaluation does not use it.
        if key not in found and key.endswith("num_batches_tracked"):
            continue
        if expected.get(key) != found.get(key):
            raise SelectorError(
                f"{name}: tensor {key} is {found.get(key, 'absent')} in {info.file} but "
                f"{expected.get(key, 'absent')} in the network; the file is of another network"
            )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def foreign_batches(name: str, data: ImageData, batch_size: int = 128) -> TensorBatches:
    """Return batches of CIFAR-10 images, prepared as the network expects them.

    Raises:
        SelectorError: If the name is unknown or the images are not RGB.
    """
    info = foreign_info(name)
    return TensorBatches(data, batch_size=batch_size, mean=info.mean, std=info.std, bgr=info.bgr)


def foreign_info(name: str) -> ForeignInfo:
    """Return what is known of one of `FOREIGN`.

    Raises:
        SelectorError: If the name is unknown.
    """
    if name not in FOREIGN:
        raise SelectorError(f"unknown foreign network {name!r}; known: {', '.join(FOREIGN)}")
    return FOREIGN[name]
