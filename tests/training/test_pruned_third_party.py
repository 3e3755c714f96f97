"""Trained networks of third parties: the law of removal, and metrics against their slow twins."""

import pytest
import torch
from torch import Tensor, nn

from selector.data.image_data import ImageData
from selector.network.tracing import find_groups
from selector.saliency.registry import METRICS
from tests.laws import check_law, check_structure, some_channels
from tests.scored import check_twins, scores_of
from training.datasets.catalogue import load, shared_folder
from training.zoo.third_party import FOREIGN, foreign_batches, load_foreign


def foreign_images(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = ImageData(pixels, torch.zeros(4, dtype=torch.int64), ("any",))
    return next(iter(foreign_batches(name, images)))[0]


def foreign(name: str) -> nn.Module:
    shared = shared_folder()
    if shared is None or not (shared / "networks" / FOREIGN[name].file).is_file():
        pytest.skip(f"the weights {FOREIGN[name].file} are not here")
    return load_foreign(name)


@pytest.mark.parametrize("name", ["he_resnet20_cifar10", "cy_resnet20_cifar10"])
def test_foreign_residual_networks(name: str) -> None:
    model, images = foreign(name), foreign_images(name)
    groups = find_groups(model, images)
    check_structure(model, groups)
    generator = torch.Generator().manual_seed(0)
    interior = [g for g in groups.prunable.values() if len(g.producers) == 1]
    assert len(interior) >= 9
    for group in interior:
        check_law(model, images, [(group, some_channels(group, generator))], 1e-4)
    check_law(model, images, [(g, some_channels(g, generator)) for g in interior], 1e-4)


def test_the_trunk_of_padded_shortcuts_goes_through_the_pads() -> None:
    model = foreign("he_resnet20_cifar10")
    groups = find_groups(model, foreign_images("he_resnet20_cifar10"))
    trunk = next(name for name, m in model.named_modules() if isinstance(m, nn.Conv2d))
    assert len(groups.prunable[trunk].producers) > 1
    others = [group for name, group in groups.prunable.items() if name != trunk]
    assert all(len(group.producers) == 1 for group in others)


@pytest.mark.skipif(shared_folder() is None, reason="no shared folder; set SALIENCY_SHARED")
@pytest.mark.parametrize("group", ["conv1", "layer1.1.conv1", "layer2.0.conv2", "layer3.2.conv1"])
def test_metrics_equal_their_slow_twins_on_a_trained_network(group: str) -> None:
    name = "cy_resnet20_cifar10"
    model, images = load_foreign(name).double(), load("cifar10", "test", limit=3)
    batches = [(x.double(), y) for x, y in foreign_batches(name, images, batch_size=2)]
    # The Hessian runs over all producers of the groups that are asked for: the twin takes all.
    names = [metric for metric in METRICS if metric != "grasp"]
    check_twins(model, batches, scores_of(model, batches, names, groups=[group]))
    if group == "conv1":
        scores = scores_of(model, batches, ["grasp"])
        check_twins(model, batches, {name: scores[name] for name in ("conv1", "layer3.2.conv1")})
