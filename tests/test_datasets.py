"""Named data sets are what their table says, wherever they come from."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selector.errors import SelectorError
from selector.images import TensorBatches
from training.datasets import DATASETS, load, shared_folder
from training.sources import read_idx

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
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "gtsrb", "imagenette64"])
def test_shared_data_sets_are_as_described(name: str) -> None:
    info = DATASETS[name]
    read = load(name, "test", limit=1000)
    assert read.images.shape == (1000, *info.shape)
    assert len(read.classes) == info.classes
    normal = torch.cat([x for x, _ in TensorBatches(read, mean=info.mean, std=info.std)])
    assert normal.mean(dim=(0, 2, 3)).abs().max() < 0.15
    assert (normal.std(dim=(0, 2, 3)) - 1).abs().max() < 0.15


def test_fashion_mnist_from_idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.sources.FASHION_FOLDER", tmp_path)
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
    monkeypatch.setattr("training.sources.DOWNLOADS", {"gtsrb": lambda folder, split: source})
    whole, part = load("gtsrb", "train"), load("gtsrb", "train", limit=7, offset=9)
    assert whole.images.shape == (60, 3, 32, 32)
    assert sorted(whole.images[:, 0, 0, 0].tolist()) == list(range(60))
    assert whole.images[:, 0, 0, 0].tolist() != list(range(60))
    assert torch.equal(part.images, whole.images[9:16])
    assert torch.equal(part.labels, whole.labels[9:16])


def test_a_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(folder: Path, split: str) -> object:
        raise OSError("no route to host")

    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("training.sources.DOWNLOADS", {"cifar10": offline})
    with pytest.raises(SelectorError, match=r"no route to host.*datasets/cifar10/test\.parquet"):
        load("cifar10", "test")


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
