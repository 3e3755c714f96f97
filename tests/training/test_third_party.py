"""Networks that others trained are rebuilt exactly: they reach the accuracy stated for them."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from selector.data.image_data import ImageData
from selector.errors import SelectorError
from training.datasets.catalogue import load, shared_folder
from training.reporting.accuracy import accuracy
from training.zoo.third_party import FOREIGN, foreign_batches, load_foreign
from training.zoo.third_party_networks import CentredShortcut

needs_shared = pytest.mark.skipif(
    shared_folder() is None, reason="no shared folder; set SALIENCY_SHARED"
)


@pytest.fixture(scope="module")
def few_images() -> ImageData:
    return load("cifar10", "test", limit=512)


@needs_shared
@pytest.mark.parametrize("name", FOREIGN)
def test_accuracy_is_near_the_stated_one(name: str, few_images: ImageData) -> None:
    stated = FOREIGN[name].top1_percent / 100
    # Four standard errors of a share over so many images.
    bound = 4 * (stated * (1 - stated) / len(few_images)) ** 0.5
    assert abs(accuracy(load_foreign(name), foreign_batches(name, few_images)) - stated) < bound


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", FOREIGN)
def test_accuracy_is_the_stated_one(name: str) -> None:
    model = load_foreign(name).to(memory_format=torch.channels_last)
    measured = 100 * accuracy(model, foreign_batches(name, load("cifar10", "test")))
    assert abs(measured - FOREIGN[name].top1_percent) < 0.05


@needs_shared
def test_the_input_convention_matters(few_images: ImageData) -> None:
    """A swap of planes must cost accuracy, or the tests above would not notice one."""
    batches = foreign_batches("founding_cifar10", few_images)
    model = load_foreign("founding_cifar10")
    swapped = ImageData(few_images.images.flip(1), few_images.labels, few_images.classes)
    assert accuracy(model, foreign_batches("founding_cifar10", swapped)) < accuracy(model, batches)


@pytest.mark.parametrize("name", FOREIGN)
def test_every_network_runs_forward_and_backward(name: str) -> None:
    model = FOREIGN[name].build()
    outputs = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    assert outputs.shape == (2, 10)
    torch.autograd.backward(F.cross_entropy(outputs, torch.tensor([1, 2])))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_option_a_keeps_every_second_pixel_between_zero_channels() -> None:
    maps = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    carried = CentredShortcut(8)(maps)
    expected = torch.zeros(2, 8, 3, 3)
    for channel in range(4):
        for row in range(3):
            for column in range(3):
                expected[:, channel + 2, row, column] = maps[:, channel, 2 * row, 2 * column]
    assert torch.equal(carried, expected)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SelectorError, match="unknown foreign network 'resnet50'; known: founding"):
        load_foreign("resnet50")


def test_absent_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    with pytest.raises(SelectorError, match=r"networks/he_resnet20_cifar10\.safetensors"):
        load_foreign("he_resnet20_cifar10")


def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = FOREIGN["founding_lenet-5"]
    monkeypatch.setenv("SALIENCY_SHARED", str(tmp_path))
    (tmp_path / "networks").mkdir()
    file = tmp_path / "networks" / info.file
    weights = info.build().state_dict()
    save_file({**weights, "ip2.bias": torch.zeros(7)}, file)
    with pytest.raises(SelectorError, match=r"tensor ip2\.bias is \(7,\) .* but \(10,\)"):
        load_foreign("founding_lenet-5")
    save_file({key: value for key, value in weights.items() if key != "conv2.bias"}, file)
    with pytest.raises(SelectorError, match=r"tensor conv2\.bias is absent"):
        load_foreign("founding_lenet-5")
    save_file({**weights, "extra": torch.zeros(2)}, file)
    with pytest.raises(SelectorError, match=r"tensor extra is \(2,\) .* but absent"):
        load_foreign("founding_lenet-5")
    file.write_bytes(b"rubbish")
    with pytest.raises(SelectorError, match="is not a safetensors file"):
        load_foreign("founding_lenet-5")
