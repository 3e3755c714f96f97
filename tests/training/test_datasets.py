"""Named data sets are what their table says, wherever they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selector.data.decoding import fitted
from selector.data.image_data import ImageData, TensorBatches
from selector.errors import SelectorError
from training.datasets.catalogue import DATASETS, datasets_here, load, shared_folder
from training.datasets.sources import is_installed, read_idx

needs_shared = pytest.mark.skipif(
    shared_folder() is None, reason="no shared folder; set SALIENCY_SHARED"
)


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load("digits", "train"), load("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    assert train.images.shape[1:] == DATASETS["digits"].shape
    assert (int(train.images.min()), int(train.images.max())) == (0, 255)
    both = torch.cat([train.images, test.images]).flatten(1).long()
    assert len(torch.unique(both, dim=0)) == 1797
    assert torch.equal(load("digits", "train", limit=5, offset=3).images, train.images[3:8])


@needs_shared
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb", "imagenette64", "imagenette32"])
def test_shared_data_sets_are_as_described(name: str) -> None:
    info = DATASETS[name]
    read = load(name, "test", limit=1000)
    assert read.images.shape == (1000, *info.shape)
    assert len(read.classes) == info.classes
    check_normalisation(name, read)


def check_normalisation(name: str, read: ImageData) -> None:
    info = DATASETS[name]
    normal = torch.cat([x for x, _ in TensorBatches(read, mean=info.mean, std=info.std)])
    assert normal.mean(dim=(0, 2, 3)).abs().max() < 0.15
    assert (normal.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15


@pytest.mark.parametrize("name", DATASETS)
def test_images_behind_those_for_training_are_there_for_the_oracle(name: str) -> None:
    if name not in datasets_here():
        pytest.skip(f"{name} is not here")
    info = DATASETS[name]
    last = load(name, "train", offset=info.train_images + info.oracle_images - 1, limit=1)
    assert last.images.shape == (1, *info.shape)
    assert info.oracle_images >= 495  # three splits of three batches of 55


def test_traffic_signs_and_digits_are_never_mirrored() -> None:
    assert {name for name, info in DATASETS.items() if not info.mirror} == {"gtsrb", "digits"}


@needs_shared
def test_imagenette32_is_imagenette64_made_smaller() -> None:
    large = load("imagenette64", "test", limit=3, offset=7)
    small = load("imagenette32", "test", limit=3, offset=7)
    for one, other in zip(large.images, small.images, strict=True):
        resized = fitted(Image.fromarray(one.permute(1, 2, 0).numpy()), 32)
        assert np.array_equal(np.asarray(resized), other.permute(1, 2, 0).numpy())
    assert torch.equal(large.labels, small.labels)
    assert large.classes == small.classes


@pytest.mark.skipif(not is_installed("fashion-mnist"), reason="install dataset-fashion-mnist")
def test_installed_fashion_mnist_is_as_described() -> None:
    read = load("fashion-mnist", "train")
    assert read.images.shape == (60000, 1, 28, 28)
    assert torch.bincount(read.labels).tolist() == [6000] * 10
    check_normalisation("fashion-mnist", read.subset(torch.arange(2000)))


def test_fashion_mnist_from_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.datasets.sources.FASHION_FOLDER", tmp_path)
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    sizes = b"".join(size.to_bytes(4, "big") for size in images.shape)
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + images.tobytes())
    labels = b"\0\0\x08\x01" + (3).to_bytes(4, "big") + bytes([9, 0, 4])
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    read = load("fashion-mnist", "test", offset=1)
    assert np.array_equal(read.images.squeeze(1).numpy(), images[1:])
    assert read.labels.tolist() == [0, 4]
    assert read.classes[9] == "Ankle boot"
    (tmp_path / "short").write_bytes(labels[:-1])
    with pytest.raises(SelectorError, match="short is not a whole idx file"):
        read_idx(tmp_path / "short")


def test_downloaded_images_are_fitted_and_shuffled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = [(Image.new("RGB", (40 + n, 50), (n, n, n)), n % 43) for n in range(60)]
    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("training.datasets.sources.DOWNLOADS", {"gtsrb": lambda *asked: source})
    whole, part = load("gtsrb", "train"), load("gtsrb", "train", limit=7, offset=9)
    assert whole.images.shape == (60, 3, 32, 32)
    assert sorted(whole.images[:, 0, 0, 0].tolist()) == list(range(60))
    assert whole.images[:, 0, 0, 0].tolist() != list(range(60))
    assert torch.equal(part.images, whole.images[9:16])
    assert torch.equal(part.labels, whole.labels[9:16])
    assert part.classes == tuple(str(number) for number in range(43))


def test_what_was_downloaded_once_is_here_and_not_downloaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [(Image.new("RGB", (70, 64), (n, 0, 0)), n % 10) for n in range(20)]
    asked = []

    def source(folder: Path, split: str, fetch: bool) -> list[tuple[Image.Image, int]]:
        asked.append((split, fetch))
        if not fetch and not (folder / split).exists():
            raise RuntimeError("Dataset not found")
        (folder / split).touch()
        return images

    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("training.datasets.sources.FASHION_FOLDER", tmp_path)
    monkeypatch.setattr("training.datasets.sources.DOWNLOADS", {"imagenette64": source})
    assert datasets_here() == ("digits",)
    assert load("imagenette32", "train").images.shape == (20, 3, 32, 32)
    assert asked == [("train", False), ("train", True)]
    assert datasets_here() == ("digits",)
    assert load("imagenette64", "test").images.shape == (20, 3, 64, 64)
    assert datasets_here() == ("imagenette64", "imagenette32", "digits")
    asked.clear()
    load("imagenette64", "train")
    assert asked == [("train", False)]


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(folder: Path, split: str, fetch: bool) -> object:
        raise OSError("no route to host")

    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("training.datasets.sources.FASHION_FOLDER", tmp_path)
    everywhere = dict.fromkeys(("cifar10", "imagenette64", "fashion-mnist"), offline)
    monkeypatch.setattr("training.datasets.sources.DOWNLOADS", everywhere)
    with pytest.raises(SelectorError, match=r"no route to host.*datasets/cifar10/test\.parquet"):
        load("cifar10", "test")
    with pytest.raises(SelectorError, match=r"datasets/imagenette64/train\.parquet"):
        load("imagenette32", "train")
    with pytest.raises(SelectorError, match=r"Debian.s package dataset-fashion-mnist$"):
        load("fashion-mnist", "test")


@pytest.mark.parametrize(
    ("name", "split", "limit", "offset", "message"),
    [
        ("mnist", "train", None, 0, "unknown data set 'mnist'; known: cifar10"),
        ("digits", "valid", None, 0, "unknown split 'valid' of digits; known: train, test"),
        ("digits", "test", 0, 0, "digits: limit 0 and offset 0"),
        ("digits", "test", None, 500, "digits test: no rows from 500 on; it has 500"),
    ],
)
def test_bad_data_set_requests_are_named(
    name: str, split: str, limit: int | None, offset: int, message: str
) -> None:
    with pytest.raises(SelectorError, match=message):
        load(name, split, limit=limit, offset=offset)


def test_a_wrong_shared_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALIENCY_SHARED", "no-such-folder")
    with pytest.raises(SelectorError, match="SALIENCY_SHARED is no-such-folder, not a folder"):
        shared_folder()
