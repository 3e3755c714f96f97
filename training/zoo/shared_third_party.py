"""Trained networks of the shared folder's `networks/third_party`, with images as each reads them.

That folder has its own code, which builds and loads the networks and prepares their inputs. It is
loaded from there and never copied, since some of the networks state no licence.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Literal, cast

import torch
from torch import Tensor, nn

from selector.data.image_data import ImageData
from selector.data.image_files import read_parquet
from selector.errors import SelectorError
from training.datasets.catalogue import DATASETS, DatasetInfo, load, shared_folder
from training.datasets.sources import is_installed

Role = Literal["learn", "test"]
Prepare = Callable[[Tensor], Tensor]

IMAGENET = "imagenet-sample"
"""The data set of the largest of these networks, of which there are training images alone."""
_CODE = "networks.py"
_OUR_NAMES = {"fashion": "fashion-mnist"}
"""Data sets that the folder calls otherwise than we do."""
_FAMILIES = (
    ("_stn", "stn"),
    ("mobilenetv2", "inverted"),
    ("mcunet", "inverted"),
    ("proxyless", "inverted"),
    ("effnet", "inverted"),
    ("mobilenet", "mobile"),
    ("etinynet", "mobile"),
    ("dw", "mobile"),
    ("dense", "dense"),
    ("lmfrnet", "dense"),
    ("squeezenet", "squeeze"),
    ("_menet", "shuffle"),
    ("preresnet", "preact"),
    ("resnet", "residual"),
    ("vgg", "vgg"),
    ("lenet", "lenet"),
    ("crown", "strided"),
    ("colt", "strided"),
    ("certified", "strided"),
    ("bn", "plain_bn"),
    ("micronet", "plain_bn"),
    ("darknet", "plain_bn"),
)
"""Part of a network's name -> its family, the first that fits; as in the zoo, where the zoo has
it. Chains without BatchNorm are `plain`."""
_GREY = frozenset({"mnist"})
"""Data sets whose files hold three equal planes where the networks read one."""


@dataclass(frozen=True, kw_only=True)
class ThirdPartyInfo:
    """What is known of a network before it is loaded.

    Attributes:
        name: Its name, which ends in that of its data set.
        dataset: `cifar10`, `cifar100`, `gtsrb`, `fashion-mnist`, `mnist` or `imagenet-sample`.
        role: `learn`: selectors may learn from it; `test`: never learnt from and never tuned on.
        size: Height and width of the input, in pixels.
        top1_percent: Accuracy on all test images of the data set.
        note: What kind of network it is, in a line.
    """

    name: str
    dataset: str
    role: Role
    size: int
    top1_percent: float
    note: str

    @property
    def family(self) -> str:
        """Kind of architecture, which an evaluation leaves out together."""
        return next((kind for part, kind in _FAMILIES if part in self.name), "plain")


class PreparedBatches:
    """Batches over labelled images, prepared by a function: the same ones on every reading.

    A batch is prepared when it is read, so memory holds the bytes of all images and the floats of
    one batch.
    """

    def __init__(self, data: ImageData, prepare: Prepare, *, batch_size: int = 128) -> None:
        """Keep the images; `prepare` takes uint8 (batch, channels, height, width)."""
        if batch_size < 1:
            raise SelectorError(f"batch_size is {batch_size}; it must be at least 1")
        self.data = data
        self.prepare = prepare
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Return the number of batches; the last one may be smaller."""
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (inputs float32 of shape (batch, channels, height, width), targets int64)."""
        images = torch.split(self.data.images, self.batch_size)
        labels = torch.split(self.data.labels, self.batch_size)
        for pixels, targets in zip(images, labels, strict=True):
            yield self.prepare(pixels), targets

    def subset(self, indices: Tensor) -> "PreparedBatches":
        """Return the same kind of batches over the images at `indices` only, in that order."""
        data = self.data.subset(indices)
        return PreparedBatches(data, self.prepare, batch_size=self.batch_size)


def third_party_folder() -> Path | None:
    """Return the folder of these networks, or None where there is no shared folder with one."""
    shared = shared_folder()
    folder = shared / "networks" / "third_party" if shared else None
    return folder if folder is not None and (folder / _CODE).is_file() else None


def third_party_networks(role: Role | None = None) -> dict[str, ThirdPartyInfo]:
    """Return the networks by name, in the folder's order.

    Args:
        role: Only those that may be learnt from, or only those kept for tests; None for all.

    Raises:
        SelectorError: There is no such folder.
    """
    every = (_info(network) for network in _code().NETWORKS.values())
    return {info.name: info for info in every if role in (None, info.role)}


def third_party_info(name: str) -> ThirdPartyInfo:
    """Return what is known of one network.

    Raises:
        SelectorError: There is no such folder, or no such network in it.
    """
    known = third_party_networks()
    if name not in known:
        raise SelectorError(f"unknown third-party network {name!r}; known: {', '.join(known)}")
    return known[name]


def load_third_party(name: str) -> nn.Module:
    """Return the network with its trained weights, in float32 and eval mode.

    Raises:
        SelectorError: There is no such folder or network, or its weights are missing or do not fit.
    """
    third_party_info(name)
    try:
        return cast(nn.Module, _code().load(name))
    except (OSError, ValueError) as error:
        raise SelectorError(f"{name}: its weights cannot be loaded: {error}") from error


def third_party_batches(
    name: str,
    split: str = "test",
    *,
    limit: int | None = None,
    offset: int = 0,
    batch_size: int = 128,
) -> PreparedBatches:
    """Return rows [offset, offset + limit) of the network's data set, as the network reads them.

    Args:
        name: One of `third_party_networks`.
        split: "train" or "test".
        limit: At most this many images; None for all.
        offset: Skip this many images first.
        batch_size: Images of a batch.

    Raises:
        SelectorError: There is no such folder or network, or its images are not on this machine.
    """
    data = _images(third_party_info(name).dataset, split, limit, offset)
    prepared = _code().prepare

    def prepare(pixels: Tensor) -> Tensor:
        grey = pixels.shape[1] == 1
        images = pixels.squeeze(1) if grey else pixels.permute(0, 2, 3, 1)
        return cast(Tensor, prepared(name, images.numpy()))

    return PreparedBatches(data, prepare, batch_size=batch_size)


def third_party_training(
    name: str, *, offset: int = 0, limit: int | None = None
) -> tuple[ImageData, DatasetInfo]:
    """Return training images in the network's order of colours, and how it normalises them.

    Args:
        name: One of `third_party_networks`.
        offset: Skip this many images first.
        limit: At most this many images; None for all.

    Raises:
        SelectorError: There is no such folder or network, its images are not on this machine, or
            it reads images of another size than its data set's, or a set of no catalogue.
    """
    info = third_party_info(name)
    data = _images(info.dataset, "train", limit, offset)
    if info.dataset not in DATASETS:
        known = ", ".join(DATASETS)
        raise SelectorError(f"{name} is not trained here, on {info.dataset}; known: {known}")
    side = data.images.shape[-1]
    if side != info.size:
        raise SelectorError(
            f"{name} is not trained here: it reads images of {info.size} pixels a side, made from "
            f"those of {side} of {info.dataset}; take one that reads its images as they are"
        )
    own = _code().NETWORKS[name]
    planes = data.images.flip(1) if own.order == "BGR" else data.images
    how = replace(DATASETS[info.dataset], mean=tuple(own.mean), std=tuple(own.std))
    return ImageData(planes, data.labels, data.classes), how


def missing_images(name: str) -> str | None:
    """Say why the images of a network's data set cannot be read here; None where they can."""
    dataset = third_party_info(name).dataset
    if dataset == "fashion-mnist" and not is_installed(dataset):
        return "Fashion-MNIST is not here; install Debian's package dataset-fashion-mnist"
    return None


def _images(dataset: str, split: str, limit: int | None, offset: int) -> ImageData:
    if dataset in DATASETS:
        return load(dataset, split, limit=limit, offset=offset)
    shared = shared_folder()
    assert shared is not None, "the networks are in it"
    file = shared / "datasets" / dataset / f"{split}.parquet"
    data = read_parquet(file, limit=limit, offset=offset)
    if dataset in _GREY:
        return ImageData(data.images[:, :1].contiguous(), data.labels, data.classes)
    return data


def _info(network: object) -> ThirdPartyInfo:
    fields = vars(network)
    return ThirdPartyInfo(
        name=fields["name"],
        dataset=_OUR_NAMES.get(fields["dataset"], fields["dataset"]),
        role=fields["role"],
        size=fields["size"],
        top1_percent=fields["top1"],
        note=fields["note"],
    )


def _code() -> ModuleType:
    folder = third_party_folder()
    if folder is None:
        raise SelectorError(
            f"no third-party networks; point SALIENCY_SHARED to a folder that holds "
            f"networks/third_party/{_CODE}"
        )
    return _loaded(folder)


@cache
def _loaded(folder: Path) -> ModuleType:
    """Load the folder's code; it imports its own `modules.py` by that plain name."""
    spec = importlib.util.spec_from_file_location("shared_third_party_networks", folder / _CODE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # Dataclasses look their module up.
    other, bytecode = sys.modules.pop("modules", None), sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True  # The folder is only read.
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = bytecode
        sys.path.remove(str(folder))
        if other is not None:
            sys.modules["modules"] = other
    return module
