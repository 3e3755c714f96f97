"""What every family of the zoo can lose, exactly, what is refused and why; and that it learns."""

import pytest
import torch
from torch import nn

from selector.errors import SelectorError
from selector.network.tracing import Groups, find_groups
from tests.laws import check_law, check_structure, some_channels
from tests.networks import data, randomise
from training.zoo.families import FAMILIES
from training.zoo.joining_blocks import Inception
from training.zoo.recipes import Recipe
from training.zoo.separable_blocks import ShuffleBlock
from training.zoo.skeletons import NetworkShape
from training.zoo.specs import NetworkSpec, train

OUTPUT = "it is an output of the network"
LATER = ("option_a", "inception", "efficient", "regnet", "shuffle", "convnext")

# Family -> how many groups a network of 8 channels and two blocks a stage has for 32x32 images.
PRUNABLE = {
    "plain": 6,
    "plain_bn": 6,
    "nin": 9,
    "residual": 9,
    "bottleneck": 15,
    "preact": 9,
    "mobile": 9,
    "dense": 9,
    "squeeze": 19,
    "lenet": 5,
    "option_a": 7,
    "inception": 43,
    "efficient": 15,
    "regnet": 15,
    "shuffle": 9,
    "convnext": 9,
}


def network(family: str) -> tuple[nn.Module, Groups]:
    model = randomise(FAMILIES[family](NetworkShape(3, 10, 32, width=8, depth=2))).eval()
    return model, find_groups(model, data(3, 3, shape=(3, 32, 32), dtype=torch.float32)[0][0])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_groups_that_can_go_exactly(family: str) -> None:
    model, groups = network(family)
    check_structure(model, groups)
    assert len(groups.prunable) == PRUNABLE[family] >= 3
    images = data(4, 4, shape=(3, 32, 32), dtype=torch.float32, seed=1)[0][0]
    chance = torch.Generator().manual_seed(2)
    removals = [(group, some_channels(group, chance)) for group in groups.prunable.values()]
    check_law(model, images, removals, 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_what_cannot_go_exactly_is_refused(family: str) -> None:
    model, groups = network(family)
    reasons = dict(groups.refused)
    output = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    assert OUTPUT in reasons.pop(output)
    assert not reasons


def test_trunks_with_pads_shuffles_and_layer_norms_go_as_the_blocks_do() -> None:
    blocks = [f"stages.{stage}.{block}" for stage in range(3) for block in range(2)]
    inner = {
        "option_a": ("body.0.conv", "stem.conv"),
        "shuffle": ("branch.0.conv", "stem.conv"),
        "convnext": ("expand", "stem.0"),
    }
    for family, (layer, trunk) in inner.items():
        _, groups = network(family)
        assert {trunk, *(f"{block}.{layer}" for block in blocks)} <= set(groups.prunable)


def test_a_group_of_a_regnet_loses_the_same_offset_everywhere() -> None:
    model, groups = network("regnet")
    for name, group in groups.prunable.items():
        if name.endswith("body.0.conv"):
            layer = model.get_submodule(name.replace("body.0", "body.1"))
            assert layer.groups == layer.out_channels // 4 >= 2
            assert group.channels == 4


def test_the_factors_of_squeeze_and_excitation_go_with_their_maps() -> None:
    _, groups = network("efficient")
    group = groups.prunable["stages.0.0.expand.conv"]
    assert "stages.0.0.excite.expand" in group.producers
    assert "stages.0.0.excite.reduce" in group.consumers
    assert groups.prunable["stages.0.0.excite.reduce"].channels == 4


@pytest.mark.parametrize("family", LATER)
def test_a_tiny_network_learns_the_digits(family: str) -> None:
    recipe = Recipe(epochs=5, learning_rate=1e-2, optimizer="adamw", batch_size=32)
    spec = NetworkSpec("tiny", family, "digits", 16, 1, "relu", recipe, train_images=800, seed=3)
    model, summary = train(spec)
    assert summary.test_accuracy > 0.5
    assert not model.training


def test_blocks_that_cannot_be_that_narrow_say_so() -> None:
    with pytest.raises(SelectorError, match="shuffled block of 7 channels has no two halves"):
        ShuffleBlock(7, 7, 1, "relu")
    with pytest.raises(SelectorError, match="Inception module of 3 channels has no four branches"):
        Inception(8, 3, "relu")
