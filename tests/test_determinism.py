"""The same seed gives the same results, however many threads PyTorch has."""

from collections.abc import Callable, Iterator, Mapping

import pytest
import torch
from torch import Tensor, nn

import selector
from tests.made_records import made

WIDTH, PIXELS, IMAGES = 8, 8, 32


def network() -> nn.Module:
    """A small one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for width in (3, WIDTH, WIDTH):
            layers += [nn.Conv2d(width, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        model.append(nn.Linear(16 * WIDTH, 10))
    return model.eval()


def images() -> list[tuple[Tensor, Tensor]]:
    chance = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(IMAGES, 3, PIXELS, PIXELS, generator=chance),
            torch.randint(10, (IMAGES,), generator=chance),
        )
        for _ in range(3)
    ]


Found = tuple[object, list[Tensor]]
"""What must be the same, and numbers that PyTorch may sum up in another order."""


def plan() -> Found:
    return selector.choose(network(), images(), ratio=0.4), []


def learnt() -> Found:
    learner = selector.SaliencySelector(folds=2, trees=5, leaves=4, seed=3)
    return learner.fit(made(list("abc"))).digest, []


def pruned() -> Found:
    result = selector.prune(network(), images(), keep_macs=0.6, rounds=2)
    return result.plan.cuts, [*result.model.state_dict().values()]


def distilled() -> Found:
    small = selector.prune(network(), images(), keep_macs=0.6, rounds=1, repair=False).model
    taught = selector.distil(network(), small, images(), passes=2, seed=3)
    return None, [*taught.model.state_dict().values()]


def recorded() -> Found:
    found = selector.record(network(), images(), network="net", contexts=1, ratios=[0.3], seed=3)
    scores = [torch.tensor(scores) for group in found.groups for scores in group.scores.values()]
    losses = torch.tensor([(c.selection_nats, c.evaluation_nats) for c in found.candidates])
    what = [(c.context, c.group, c.count, c.arm) for c in found.candidates]
    return what, [*scores, losses]


WORK: Mapping[str, Callable[[], Found]] = {
    "choose": plan,
    "fit": learnt,
    "prune and repair": pruned,
    "distil": distilled,
    "record": recorded,
}


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [2, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", WORK)
def test_numbers_of_threads_change_no_more_than_sums(name: str, threads: int) -> None:
    """Plans and selectors are the same to the last bit; weights and losses as nearly as sums are.

    PyTorch divides the sums of matrix products and of BatchNorm's statistics among its threads.
    """
    torch.set_num_threads(1)
    what, numbers = WORK[name]()
    torch.set_num_threads(threads)
    again, others = WORK[name]()
    assert repr(again) == repr(what)
    for one, other in zip(numbers, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", WORK)
def test_the_same_again_is_the_same(name: str) -> None:
    (what, numbers), (again, others) = WORK[name](), WORK[name]()
    assert repr(again) == repr(what)
    assert all(torch.equal(one, other) for one, other in zip(numbers, others, strict=True))
