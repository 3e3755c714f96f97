"""Named data sets: labelled images from files on this machine, else downloaded by torchvision."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from selector.data.image_data import ImageData
from selector.data.image_files import read_parquet
from selector.errors import SelectorError
from training.datasets.sources import (
    is_downloaded,
    is_installed,
    read_digits,
    read_downloaded,
    read_fashion,
)

SPLITS = ("train", "test")


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read.

    Attributes:
        shape: (channels, height, width) of every image.
        classes: Number of classes.
        mean: Mean of each channel of the training images, in units of pixel / 255.
        std: Standard deviation of each channel, in the same units.
        mirror: Whether a mirrored image still belongs to its class.
        train_images: Networks of the zoo are trained on this many of the first training images, or
            fewer. Few enough that one is trained in a minute.
        oracle_images: This many training images after those are never trained on; what the oracle
            measures, it measures on them.
        source: The data set whose files hold the images, if it is another one in another size.
    """

    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    train_images: int
    oracle_images: int
    source: str | None = None


_IMAGENETTE = DatasetInfo(
    shape=(3, 64, 64),
    classes=10,
    mean=(0.4627, 0.4583, 0.4304),
    std=(0.2728, 0.2706, 0.2927),
    mirror=True,
    train_images=7000,
    oracle_images=2469,
)

DATASETS: Mapping[str, DatasetInfo] = {
    "cifar10": DatasetInfo(
        shape=(3, 32, 32),
        classes=10,
        mean=(0.4918, 0.4824, 0.4469),
        std=(0.2461, 0.2432, 0.2610),
        mirror=True,
        train_images=9000,
        oracle_images=3000,  # The shared file holds 12,000 images without any loss.
    ),
    "cifar100": DatasetInfo(
        shape=(3, 32, 32),
        classes=100,
        mean=(0.5074, 0.4869, 0.4413),
        std=(0.2654, 0.2555, 0.2744),
        mirror=True,
        train_images=15000,  # 9,000 are too few for so many classes.
        oracle_images=3000,
    ),
    "gtsrb": DatasetInfo(
        shape=(3, 32, 32),
        classes=43,
        mean=(0.3393, 0.3120, 0.3207),
        std=(0.2729, 0.2629, 0.2664),
        mirror=False,
        train_images=9000,
        oracle_images=3000,
    ),
    "imagenette64": _IMAGENETTE,
    "imagenette32": replace(
        _IMAGENETTE, shape=(3, 32, 32), std=(0.2564, 0.2542, 0.2778), source="imagenette64"
    ),
    "fashion-mnist": DatasetInfo(
        shape=(1, 28, 28),
        classes=10,
        mean=(0.2860,),
        std=(0.3530,),
        mirror=True,
        train_images=9000,
        oracle_images=3000,
    ),
    "digits": DatasetInfo(
        shape=(1, 8, 8),
        classes=10,
        mean=(0.3051,),
        std=(0.3756,),
        mirror=False,
        train_images=800,
        oracle_images=497,
    ),
}
"""The data sets by name; `imagenette32` is `imagenette64` at half the size, for slow machines."""

_OWN_READERS = {"fashion-mnist": read_fashion, "digits": read_digits}


def shared_folder() -> Path | None:
    """Return the folder of shared data and networks, or None where there is none.

    It is `$SALIENCY_SHARED` if that is set, else the folder `shared` next to the checkout.

    Raises:
        SelectorError: If `$SALIENCY_SHARED` names no folder.
    """
    named = os.environ.get("SALIENCY_SHARED")
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared"
    if folder.is_dir():
        return folder
    if named:
        raise SelectorError(f"SALIENCY_SHARED is {named}, not a folder; correct it or unset it")
    return None


def load(name: str, split: str, *, limit: int | None = None, offset: int = 0) -> ImageData:
    """Read rows [offset, offset + limit) of a named data set, always in the same shuffled order.

    The order is that of the shared Parquet files where they exist; what torchvision downloads
    instead holds the same images in another fixed order, and perhaps in another size before they
    are brought to this one.

    Args:
        name: One of `DATASETS`.
        split: "train" or "test".
        limit: Read at most this many images.
        offset: Skip this many images first.

    Raises:
        SelectorError: If the name, the split or the range is unknown, or the download fails.
    """
    if name not in DATASETS:
        raise SelectorError(f"unknown data set {name!r}; known: {', '.join(DATASETS)}")
    if split not in SPLITS:
        raise SelectorError(f"unknown split {split!r} of {name}; known: {', '.join(SPLITS)}")
    if offset < 0 or (limit is not None and limit < 1):
        raise SelectorError(
            f"{name}: limit {limit} and offset {offset} name no rows; "
            "limit must be at least 1 and offset not negative"
        )
    if name in _OWN_READERS:
        return _OWN_READERS[name](split, limit=limit, offset=offset)
    info = DATASETS[name]
    source = info.source or name
    file = _shared_file(source, split)
    if file is not None:
        return read_parquet(file, limit=limit, offset=offset, size=info.shape[1])
    return read_downloaded(source, split, info.shape, info.classes, limit=limit, offset=offset)


def datasets_here() -> tuple[str, ...]:
    """Return the names of the data sets that can be read without going online."""
    here = []
    for name, info in DATASETS.items():
        source = info.source or name
        shared = all(_shared_file(source, split) is not None for split in SPLITS)
        if shared or is_installed(source) or is_downloaded(source):
            here.append(name)
    return tuple(here)


def _shared_file(name: str, split: str) -> Path | None:
    shared = shared_folder()
    file = shared / "datasets" / name / f"{split}.parquet" if shared else None
    return file if file is not None and file.is_file() else None
