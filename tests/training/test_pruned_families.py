"""Every family of the zoo obeys the laws: removal, costs, engines, targets, files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from selector.network.surgery import temporarily_cut
from selector.network.tracing import find_groups
from selector.pruning.prune import prune
from tests.laws import check_costs, check_law, check_structure, some_channels
from tests.networks import data, randomise
from tests.oracle.test_engines import candidates, judged
from tests.planning.test_composition import check_shrinking
from tests.pruning.test_prune import check_file, check_plan_of_all_rounds, check_target
from training.zoo.families import FAMILIES
from training.zoo.skeletons import NetworkShape

DEEP = NetworkShape(3, 5, 16, width=4, depth=2, activation="relu")
WIDE = NetworkShape(3, 5, 16, width=8, depth=1, activation="relu")
Batches = list[tuple[Tensor, Tensor]]


def family_network(family: str, shape: NetworkShape = DEEP, seed: int = 7) -> nn.Module:
    """A random network of the family in evaluation mode; no BatchNorm is the identity."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FAMILIES[family](shape)
        for tensor in model.state_dict().values():
            if tensor.ndim == 1 and tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


def family_data(count: int = 8, batch: int = 4) -> Batches:
    return data(count, batch, shape=(3, 16, 16), dtype=torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_law_holds_on_every_family(family: str, dtype: torch.dtype) -> None:
    model = family_network(family).to(dtype)
    images = data(4, 4, shape=(3, 16, 16), dtype=dtype)[0][0]
    groups, generator = find_groups(model, images[:2]), torch.Generator().manual_seed(3)
    check_structure(model, groups)
    assert groups.prunable
    tolerance = 1e-5 if dtype == torch.float64 else 1e-4
    removals = [(g, some_channels(g, generator)) for g in groups.prunable.values()]
    for removal in removals[:: max(1, len(removals) // 4)]:
        check_law(model, images, [removal], tolerance)
    check_law(model, images, removals, tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_of_every_family_are_never_pruned(family: str) -> None:
    model = family_network(family)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    groups = find_groups(model, images)
    last = [name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    assert last in groups.refused
    assert not any(last in group.producers for group in groups.prunable.values())
    for group in groups.prunable.values():
        with temporarily_cut(model, [(group, [0])]):
            assert model(images).shape == (2, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_those_that_others_count(family: str) -> None:
    check_costs(family_network(family), torch.ones(3, 3, 16, 16))


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_of_every_family_shrink(family: str) -> None:
    model = randomise(FAMILIES[family](NetworkShape(3, 5, 16, 6, 2)).double()).eval()
    check_shrinking(model, data(4, 4, shape=(3, 16, 16))[0][0], 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_engines_agree_on_every_family_of_the_zoo(family: str) -> None:
    shape = NetworkShape(3, 5, 16, 6, 2)
    model = randomise(FAMILIES[family](shape).double()).eval()
    batches = data(4, 4, shape=(3, 16, 16))
    judged(model, batches, candidates(model, batches[0][0], most=8))


TARGETS = ("keep_macs", "keep_params", "keep_weights")


@pytest.mark.parametrize(
    ("family", "target"),
    [
        # One target of each family is tried every day.
        pytest.param(family, target, marks=() if (i - j) % len(TARGETS) == 0 else pytest.mark.slow)
        for i, family in enumerate(FAMILIES)
        for j, target in enumerate(TARGETS)
    ],
)
def test_a_target_is_met_and_the_report_is_true(family: str, target: str) -> None:
    keep = 0.9 if family in ("lenet", "squeeze") and target != "keep_params" else 0.7
    check_target(family_network(family, WIDE, 11), family_data(), target, keep)


@pytest.mark.parametrize("family", ["plain_bn", "residual", "mobile", "dense", "lenet"])
def test_a_ratio_is_taken_from_every_group(family: str) -> None:
    model, batches = family_network(family, WIDE, 11), family_data()
    result = prune(model, batches, criterion="l1", rounds=3, ratio=0.5)
    for name, group in find_groups(model, batches[0][0]).prunable.items():
        gone = len(result.plan.removals[name])
        assert abs(gone - 0.5 * group.channels) <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_of_all_rounds_gives_the_same_network(family: str) -> None:
    check_plan_of_all_rounds(family_network(family, WIDE, 11), family_data())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pruned_network_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = family_network(family, WIDE, 11)
    check_file(model, lambda: FAMILIES[family](WIDE), family_data(), tmp_path)
