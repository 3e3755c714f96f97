"""Third-party networks of the shared folder: loaded from there, with images as each reads them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from selector.data.image_data import normalised
from selector.errors import SelectorError
from training.reporting.accuracy import accuracy
from training.zoo.shared_third_party import (
    load_third_party,
    missing_images,
    third_party_batches,
    third_party_folder,
    third_party_info,
    third_party_networks,
    third_party_training,
)

FOLDER = third_party_folder()
NAMES = list(third_party_networks()) if FOLDER is not None else []
needs_folder = pytest.mark.skipif(
    FOLDER is None, reason="no networks/third_party in the shared folder; set SALIENCY_SHARED"
)
ONE_OF_EACH_DATASET = {third_party_info(name).dataset: name for name in reversed(NAMES)}
"""Data set -> the first network that reads it."""


def skip_without_images(name: str) -> None:
    reason = missing_images(name)
    if reason is not None:
        pytest.skip(reason)


@needs_folder
def test_every_network_has_weights_and_a_role() -> None:
    assert FOLDER is not None
    assert {file.stem for file in (FOLDER / "weights").iterdir()} == set(NAMES)
    learn, test = third_party_networks("learn"), third_party_networks("test")
    assert learn
    assert test
    assert not learn.keys() & test.keys()
    assert {**learn, **test} == third_party_networks()


@needs_folder
@pytest.mark.parametrize("dataset", ONE_OF_EACH_DATASET)
def test_accuracy_is_near_the_stated_one(dataset: str) -> None:
    name = ONE_OF_EACH_DATASET[dataset]
    skip_without_images(name)
    batches = third_party_batches(name, limit=200, batch_size=64)
    share = third_party_info(name).top1_percent / 100
    # Four standard errors of a share over this many images.
    bound = 4 * (share * (1 - share) / 200) ** 0.5
    assert abs(accuracy(load_third_party(name), batches) - share) < bound


@needs_folder
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_accuracy_is_near_the_stated_one_for_all(name: str) -> None:
    skip_without_images(name)
    batches = third_party_batches(name, limit=400, batch_size=50)
    share = third_party_info(name).top1_percent / 100
    bound = 4 * (share * (1 - share) / 400) ** 0.5
    assert abs(accuracy(load_third_party(name), batches) - share) < bound


@needs_folder
@pytest.mark.parametrize("dataset", ONE_OF_EACH_DATASET)
def test_batches_are_the_images_prepared_one_by_one(dataset: str) -> None:
    name = ONE_OF_EACH_DATASET[dataset]
    skip_without_images(name)
    info, batches = third_party_info(name), third_party_batches(name, limit=5, batch_size=2)
    inputs = torch.cat([batch for batch, _ in batches])
    assert [len(targets) for _, targets in batches] == [2, 2, 1]
    assert len(batches) == 3
    assert inputs.shape[2:] == (info.size, info.size)
    for number in range(5):
        one, target = next(iter(batches.subset(torch.tensor([number]))))
        torch.testing.assert_close(one[0], inputs[number])
        assert target == batches.data.labels[number]


@needs_folder
def test_rows_are_counted_from_the_offset() -> None:
    name = ONE_OF_EACH_DATASET["mnist"]
    later, all_rows = (
        third_party_batches(name, limit=2, offset=3),
        third_party_batches(name, limit=5),
    )
    assert torch.equal(later.data.images, all_rows.data.images[3:])
    assert np.array_equal(later.data.labels, all_rows.data.labels[3:])


@needs_folder
def test_bad_names_and_sizes_are_refused() -> None:
    with pytest.raises(SelectorError, match=r"unknown third-party network 'resnet'; known: \w+, "):
        load_third_party("resnet")
    with pytest.raises(SelectorError, match="batch_size is 0; it must be at least 1"):
        third_party_batches(ONE_OF_EACH_DATASET["mnist"], limit=1, batch_size=0)


def test_an_absent_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    assert third_party_folder() is None
    with pytest.raises(
        SelectorError, match=r"SALIENCY_SHARED .* networks/third_party/networks\.py"
    ):
        third_party_networks()


@needs_folder
@pytest.mark.parametrize(
    "name",
    ["cleffa00_vgg6bn_cifar10", "zafermesut_bnafterpool_gtsrb", "abdelhakk_smallresnet_fashion"],
)
def test_training_images_are_those_of_the_batches(name: str) -> None:
    skip_without_images(name)
    data, info = third_party_training(name, offset=3, limit=2)
    [(inputs, labels)] = third_party_batches(name, "train", offset=3, limit=2)
    torch.testing.assert_close(normalised(data.images, info.mean, info.std), inputs)
    assert torch.equal(data.labels, labels)


@needs_folder
@pytest.mark.parametrize(
    ("name", "reason"),
    [("dariosantos_vgglike_gtsrb", "64 pixels"), ("mit_proxyless_03_imagenet", "imagenet-sample")],
)
def test_networks_on_other_images_are_not_trained(name: str, reason: str) -> None:
    with pytest.raises(SelectorError, match=f"{name} .*{reason}"):
        third_party_training(name, limit=2)
