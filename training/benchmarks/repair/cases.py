"""The networks that are pruned, repaired and distilled, each with its images and its target."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from torch import nn

from selector.data.batches import first_batch
from selector.errors import SelectorError
from selector.network.costs import count_costs
from training.datasets.catalogue import load
from training.reporting.accuracy import Images, laid_out
from training.zoo.shared_third_party import (
    IMAGENET,
    load_third_party,
    missing_images,
    third_party_batches,
    third_party_info,
    third_party_networks,
)
from training.zoo.third_party import foreign_batches, load_foreign

Role = Literal["learn", "test", "own"]

OWN = "cy_resnet20_30"
"""The deep cut with more images, whose accuracy after distillation has a target of its own."""
_OWN_NETWORK = "cy_resnet20_cifar10"
BATCH, TEST_BATCH = 64, 250
FEW_TEST_IMAGES = 1000
"""Where many runs are averaged, so that each may be read on fewer images."""
MIRRORED = frozenset({"cifar10", "cifar100"})
"""Data sets whose images may be mirrored in distillation; signs and digits may not."""
WORK = 4e9
"""MACs of one image times passes of 256 images that take about a minute of one core."""
MOST_PASSES, FEWEST_PASSES = 40, 12


@dataclass(frozen=True)
class Case:
    """A network, how far it is pruned, and with what."""

    name: str
    dataset: str
    role: Role
    """`learn` or `test` of the third-party networks; `own` is no third-party case."""
    keep_macs: float
    rounds: int | None
    """Cuts; None for as many as `prune` makes by default."""
    images: int = 256
    """First training images: for scores, repair and distillation."""
    test_images: int | None = None
    """The first so many; None for all, since of 1,000 images ten are still chance."""

    @property
    def is_own(self) -> bool:
        """Whether the network is not of the third-party folder."""
        return self.role == "own"


def every_case(test_images: int | None = None) -> dict[str, Case]:
    """All cases whose images are on this machine, by name; the cheapest networks first.

    ImageNet networks come last: 20 % of their MACs are cut at once, since rounds take long there.

    Args:
        test_images: Of each at most so many; None for all.

    Raises:
        SelectorError: There is no folder of third-party networks.
    """
    cases: list[Case] = []
    for name, info in third_party_networks().items():
        if missing_images(name) is None:
            large = info.dataset == IMAGENET
            keep, rounds = (0.8, 1) if large else (0.5, None)
            cases.append(Case(name, info.dataset, info.role, keep, rounds, test_images=test_images))
    cases.append(Case(OWN, "cifar10", "own", 0.3, None, images=1024, test_images=test_images))
    cases.sort(key=lambda case: (case.dataset == IMAGENET, work_of(case) * case.images))
    return {case.name: case for case in cases}


def chosen_cases(names: Iterable[str] | None) -> list[Case]:
    """The cases of these names, or all.

    Raises:
        SelectorError: An unknown name, or one whose images are not here.
    """
    every = every_case()
    wanted = list(every) if names is None else list(names)
    for name in wanted:
        if name not in every:
            raise SelectorError(
                f"no network {name!r} whose images are here; known: {', '.join(every)}"
            )
    return [every[name] for name in wanted]


def network_of(case: Case) -> nn.Module:
    """The trained network, which nobody may change."""
    return _network(case.name)


@cache
def _network(name: str) -> nn.Module:
    return load_foreign(_OWN_NETWORK) if name == OWN else load_third_party(name)


@cache
def weights_of(case: Case) -> str:
    """12 hexadecimal digits that change with the trained weights."""
    digest = hashlib.sha256()
    for name, value in network_of(case).state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


@cache
def work_of(case: Case) -> float:
    """MACs of one image."""
    images = calibration_of(replace(case, images=2))
    return count_costs(network_of(case), first_batch(images)[0]).total("macs")


def passes_for(case: Case) -> int:
    """Passes of distillation: a minute of one core at most, by the network's MACs.

    Returns:
        0 where a minute is too short for twelve passes.
    """
    passes = int(WORK / work_of(case) * 256 / case.images)
    return 0 if passes < FEWEST_PASSES else min(passes, MOST_PASSES)


def calibration_of(case: Case) -> Images:
    """Batches for scores, repair and distillation, in memory."""
    if case.is_own:
        data = load("cifar10", "train", limit=case.images)
        return list(foreign_batches(_OWN_NETWORK, data, BATCH))
    return list(third_party_batches(case.name, "train", limit=case.images, batch_size=BATCH))


def test_batches_of(case: Case) -> Images:
    """The test images, or the first of them."""
    if case.is_own:
        data = load("cifar10", "test", limit=case.test_images)
        return laid_out(foreign_batches(_OWN_NETWORK, data, TEST_BATCH))
    size = TEST_BATCH if third_party_info(case.name).size < 100 else 50
    return laid_out(third_party_batches(case.name, limit=case.test_images, batch_size=size))
