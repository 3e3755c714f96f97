"""Where labelled images come from when no Parquet file is at hand."""

import gzip
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, GTSRB, FashionMNIST, Imagenette

from selector.data.decoding import fitted
from selector.data.image_data import ImageData
from selector.errors import SelectorError

FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_ORDER_SEED = 0
_FASHION_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")
_DIGITS_TRAIN = 1297


class LabelledImages(Protocol):
    """What torchvision's classes offer: a length, and (image, label) by position."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Return one image and its label."""


Download = Callable[[Path, str, bool], LabelledImages]

DOWNLOADS: Mapping[str, Download] = {
    "cifar10": lambda folder, split, fetch: CIFAR10(folder, split == "train", download=fetch),
    "cifar100": lambda folder, split, fetch: CIFAR100(folder, split == "train", download=fetch),
    "gtsrb": lambda folder, split, fetch: GTSRB(folder, split, download=fetch),
    "imagenette64": lambda folder, split, fetch: Imagenette(
        folder, "train" if split == "train" else "val", "160px", download=fetch
    ),
    "fashion-mnist": lambda folder, split, fetch: FashionMNIST(
        folder, split == "train", download=fetch
    ),
}
"""Data set -> (folder, split, whether to download what is missing) -> its images."""

_BY_HAND = {"fashion-mnist": "install Debian's package dataset-fashion-mnist"}


def read_downloaded(
    name: str,
    split: str,
    shape: tuple[int, int, int],
    classes: int,
    *,
    limit: int | None,
    offset: int,
) -> ImageData:
    """Read a data set through torchvision, downloading it on first use.

    Rows come in a fixed shuffled order, since some of the originals are sorted by class.

    Args:
        name: One of `DOWNLOADS`.
        split: "train" or "test".
        shape: (channels, height, width) to bring every image to.
        classes: Number of classes, which are numbered where torchvision does not name them.
        limit: Read at most this many images.
        offset: Skip this many images first.

    Raises:
        SelectorError: If the download fails or no row is left after `offset`.
    """
    source = _downloaded(name, split)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(_ORDER_SEED))
    rows: list[int] = _taken(order, f"{name} {split}", limit, offset).tolist()
    channels, height, width = shape
    pixels = np.empty((len(rows), height, width, channels), dtype=np.uint8)
    labels = torch.empty(len(rows), dtype=torch.int64)
    for place, row in enumerate(rows):
        image, labels[place] = source[row]
        converted = fitted(image.convert("L" if channels == 1 else "RGB"), height)
        pixels[place] = np.asarray(converted).reshape(height, width, channels)
    names = getattr(source, "classes", range(classes))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return ImageData(images, labels, tuple(_class_name(name) for name in names))


def _downloaded(name: str, split: str) -> LabelledImages:
    folder = _cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return DOWNLOADS[name](folder, split, False)
        except RuntimeError:  # That is how torchvision says that it is not there yet.
            return DOWNLOADS[name](folder, split, True)
    except (OSError, RuntimeError) as error:
        file = f"datasets/{name}/{split}.parquet"
        by_hand = _BY_HAND.get(name, f"point SALIENCY_SHARED to a folder that holds {file}")
        raise SelectorError(
            f"{name} is not here and its download to {folder} failed ({error}); "
            f"go online once, or {by_hand}"
        ) from error


def is_downloaded(name: str) -> bool:
    """Whether both splits were downloaded once, so that they can be read without going online."""
    folder = _cache_folder() / name
    if name not in DOWNLOADS or not folder.is_dir():
        return False
    try:
        return all(len(DOWNLOADS[name](folder, split, False)) for split in ("train", "test"))
    except (OSError, RuntimeError):
        return False


def is_installed(name: str) -> bool:
    """Whether scikit-learn or the system holds a data set, so that nothing has to be downloaded."""
    if name == "digits":
        return True
    stems = (f"{part}-{kind}" for part in ("train", "t10k") for kind in _FASHION_KINDS)
    return name == "fashion-mnist" and all(_idx_file(stem) is not None for stem in stems)


def read_fashion(split: str, *, limit: int | None, offset: int) -> ImageData:
    """Read Fashion-MNIST from its own idx files where installed, else through torchvision."""
    stem = "train" if split == "train" else "t10k"
    images_file, labels_file = (_idx_file(f"{stem}-{kind}") for kind in _FASHION_KINDS)
    if images_file is None or labels_file is None:
        shape = (1, 28, 28)
        return read_downloaded("fashion-mnist", split, shape, 10, limit=limit, offset=offset)
    images, labels = read_idx(images_file).unsqueeze(1), read_idx(labels_file).long()
    whole = ImageData(images, labels, tuple(FashionMNIST.classes))
    rows = _taken(torch.arange(len(whole)), f"fashion-mnist {split}", limit, offset)
    return whole.subset(rows)


def read_digits(split: str, *, limit: int | None, offset: int) -> ImageData:
    """Read scikit-learn's 1,797 digits, 0..16 scaled to 0..255, split once and for all."""
    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    whole = ImageData(images, torch.from_numpy(bunch.target).long(), tuple("0123456789"))
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(_ORDER_SEED))
    part = order[:_DIGITS_TRAIN] if split == "train" else order[_DIGITS_TRAIN:]
    return whole.subset(_taken(part, f"digits {split}", limit, offset))


def read_idx(file: Path) -> Tensor:
    """Return the bytes of an idx file, gzipped or not, as uint8 of the shape that it states.

    The format: two zero bytes, 8 for unsigned bytes, the number of axes, then the size of each as
    a big-endian 32-bit number, then the data.

    Raises:
        SelectorError: If the file is anything else, or cut short.
    """
    try:
        packed = file.read_bytes()
        content = gzip.decompress(packed) if file.suffix == ".gz" else packed
    except (OSError, EOFError) as error:
        raise SelectorError(f"{file} cannot be read: {error}") from error
    start = 4 + 4 * content[3] if len(content) > 3 else len(content)
    shape = tuple(np.frombuffer(content[4:start], dtype=">u4").tolist())
    data = np.frombuffer(content[start:], dtype=np.uint8)
    if content[:3] != b"\0\0\x08" or data.size != np.prod(shape):
        raise SelectorError(f"{file} is not a whole idx file of unsigned bytes; install it again")
    return torch.from_numpy(data.reshape(shape).copy())


def _idx_file(stem: str) -> Path | None:
    files = (FASHION_FOLDER / stem, FASHION_FOLDER / f"{stem}.gz")
    return next((file for file in files if file.is_file()), None)


def _taken(rows: Tensor, name: str, limit: int | None, offset: int) -> Tensor:
    taken = rows[offset : None if limit is None else offset + limit]
    if len(taken) == 0:
        raise SelectorError(f"{name}: no rows from {offset} on; it has {len(rows)}")
    return taken


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "saliency-selector"


def _class_name(name: object) -> str:
    """Return the first of several synonyms, as some of torchvision's classes list them."""
    return str(name[0] if isinstance(name, tuple) else name)
