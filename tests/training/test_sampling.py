"""Networks are drawn evenly, the same from the same seed, small, under names of their own."""

from collections import Counter
from collections.abc import Hashable, Iterable

import pytest
import torch

from selector.errors import SelectorError
from selector.network.costs import count_costs
from training.datasets.catalogue import DATASETS
from training.zoo.blocks import ACTIVATIONS
from training.zoo.catalogue import FIRST_ZOO, zoo_table
from training.zoo.families import FAMILIES
from training.zoo.recipes import OPTIMIZERS
from training.zoo.sampling import DECAYS, LENGTHS, SAMPLED, SIZES, sample_zoo
from training.zoo.specs import build, fingerprint

ALL_PAIRS = len(FAMILIES) * len(SAMPLED)


def spread(values: Iterable[Hashable], options: int) -> int:
    """How much oftener the commonest option was drawn than the rarest."""
    counts = Counter(values).values()
    return max(counts) - (min(counts) if len(counts) == options else 0)


def test_a_longer_sample_begins_with_the_shorter_one() -> None:
    whole = sample_zoo(150, 1)
    assert len(whole) == 150
    for count in (1, 16, 60):
        torch.rand(2)
        assert sample_zoo(count, 1) == whole[:count]
    assert sample_zoo(60, 2) != whole[:60]


def test_the_same_seed_draws_the_same_on_every_machine() -> None:
    """A stable value: a campaign on many machines agrees on its networks by it."""
    names = [spec.name for spec in sample_zoo(3, 1)]
    assert names == [
        "fashion-mnist-regnet-w16d2-relu-0f9299",
        "gtsrb-shuffle-w16d2-leaky_relu-f5bc55",
        "cifar10-dense-w12d2-gelu-a2ea57",
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("count", [16, 60, ALL_PAIRS, 150])
def test_every_beginning_is_spread_evenly(count: int, seed: int) -> None:
    specs = sample_zoo(count, seed)
    assert spread((s.family for s in specs), len(FAMILIES)) <= 1
    assert spread((s.dataset for s in specs), len(SAMPLED)) <= 2
    assert spread((s.activation for s in specs), len(ACTIVATIONS)) <= 3
    assert spread((s.recipe.optimizer for s in specs), len(OPTIMIZERS)) <= 3
    pairs = Counter((s.family, s.dataset) for s in specs)
    assert max(pairs.values()) == -(-count // ALL_PAIRS)
    assert len(pairs) == min(count, ALL_PAIRS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_drawn_in_all_its_forms(family: str) -> None:
    specs = [s for s in sample_zoo(12 * len(FAMILIES), 1, ["cifar10"]) if s.family == family]
    assert Counter((s.width, s.depth) for s in specs) == dict.fromkeys(SIZES[family], 3)
    assert Counter(s.activation for s in specs) == dict.fromkeys(ACTIVATIONS, 3)
    assert Counter(s.recipe.optimizer for s in specs) == dict.fromkeys(OPTIMIZERS, 6)
    assert Counter(s.recipe.label_smoothing > 0 for s in specs) == {True: 6, False: 6}
    assert len({s.recipe.epochs for s in specs}) == len(LENGTHS)
    decays = {(s.recipe.optimizer, s.recipe.weight_decay) for s in specs}
    assert decays <= {(name, decay) for name, some in DECAYS.items() for decay in some}
    assert len({decay > 0 for _, decay in decays}) == 2
    assert len({s.width for s in specs}) >= 3 or len({s.depth for s in specs}) >= 3


def test_names_differ_wherever_networks_do() -> None:
    specs = [spec for seed in range(3) for spec in sample_zoo(150, seed)] + list(FIRST_ZOO)
    assert len({spec.name for spec in specs}) == len({fingerprint(s) for s in specs}) == len(specs)


def test_training_goes_from_under_to_over() -> None:
    for name in SAMPLED:
        info = DATASETS[name]
        specs = sample_zoo(64, 1, [name])
        assert {s.train_images for s in specs} == {
            info.train_images,
            round(info.train_images / 6),
        }
        visits = {(s.train_images, s.recipe.epochs * s.train_images) for s in specs}
        whole = sorted(seen for images, seen in visits if images == info.train_images)
        assert len(whole) == 3
        assert whole[-1] >= 2.5 * whole[0]
        few = next(s for s in specs if s.train_images < info.train_images)
        assert few.recipe.epochs >= 10


def test_networks_are_small_enough_to_be_trained_in_a_minute() -> None:
    for spec in sample_zoo(ALL_PAIRS, 1):
        images = torch.zeros(1, *DATASETS[spec.dataset].shape)
        millions = count_costs(build(spec), images).total("macs") / 1e6
        least, most = {"digits": (0.2, 6.5), "imagenette64": (1, 32)}.get(spec.dataset, (0.8, 17))
        assert least <= millions <= most, spec.name


def test_the_data_sets_may_be_chosen() -> None:
    specs = sample_zoo(20, 1, ["digits", "imagenette32"])
    assert Counter(spec.dataset for spec in specs) == {"digits": 10, "imagenette32": 10}


@pytest.mark.parametrize(
    ("count", "datasets", "message"),
    [
        (0, None, "count is 0; it must be at least 1"),
        (3, [], "datasets is empty; name at least one, or leave it out"),
        (3, ["digits", "mnist"], "unknown data set 'mnist'; known: cifar10, "),
        (3, ["digits", "digits"], "a data set is named twice: digits, digits"),
    ],
)
def test_a_bad_request_names_its_culprit(
    count: int, datasets: list[str] | None, message: str
) -> None:
    with pytest.raises(SelectorError, match=message):
        sample_zoo(count, 1, datasets)


def test_the_table_has_a_line_for_each_network() -> None:
    specs = sample_zoo(5, 1)
    head, _, *lines = zoo_table(specs).splitlines()
    assert head.split()[:3] == ["network", "family", "data"]
    for line, spec in zip(lines, specs, strict=True):
        words = line.split()
        assert words[:3] == [spec.name, spec.family, spec.dataset]
        assert str(spec.recipe.epochs) in words
        assert str(spec.train_images) in words
