"""Networks of the zoo drawn evenly over families, data sets, sizes, activations and recipes."""

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from selector.errors import SelectorError
from training.datasets.catalogue import DATASETS
from training.zoo.blocks import ACTIVATIONS
from training.zoo.families import FAMILIES
from training.zoo.recipes import OPTIMIZERS, Recipe
from training.zoo.specs import NetworkSpec, fingerprint

T = TypeVar("T")

SAMPLED = ("cifar10", "cifar100", "gtsrb", "imagenette64", "fashion-mnist", "digits")
"""The data sets that networks are drawn for unless others are named."""

SIZES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "plain": ((16, 1), (32, 1), (16, 2), (16, 3)),
    "plain_bn": ((16, 1), (32, 1), (16, 2), (12, 3)),
    "nin": ((16, 1), (32, 1), (16, 2), (16, 3)),
    "residual": ((12, 1), (16, 1), (8, 2), (8, 3)),
    "bottleneck": ((16, 1), (24, 1), (16, 2), (12, 3)),
    "preact": ((12, 1), (16, 1), (8, 2), (8, 3)),
    "mobile": ((6, 1), (8, 1), (6, 2), (12, 1)),
    "dense": ((8, 2), (12, 2), (8, 3), (6, 4)),
    "squeeze": ((24, 1), (48, 1), (24, 2), (32, 2)),
    "lenet": ((12, 1), (24, 1), (16, 2), (16, 3)),
    "option_a": ((12, 1), (16, 1), (8, 2), (8, 3)),
    "inception": ((12, 1), (16, 1), (24, 1), (12, 2)),
    "efficient": ((6, 1), (8, 1), (6, 2), (10, 1)),
    "regnet": ((16, 1), (20, 1), (16, 2), (16, 3)),
    "shuffle": ((16, 2), (32, 1), (24, 2), (16, 3)),
    "convnext": ((8, 1), (12, 1), (8, 2), (6, 3)),
}
"""Family -> (width, depth) for images of 32x32 pixels; 0.3 to 2 ms an image and step on a CPU."""


@dataclass(frozen=True)
class Length:
    """How long a network is trained, whatever its data set.

    Attributes:
        visits: Images that it sees in all, counted as often as they are seen.
        share: Share of the data set's training images that it is trained on.
    """

    visits: int
    share: float = 1.0


LENGTHS: Mapping[str, Length] = {
    "brief": Length(18_000),
    "usual": Length(40_000),
    "long": Length(60_000),
    "memorised": Length(45_000, 1 / 6),
}
"""From under- to over-trained; the last sees few images so often that it knows them by heart."""

THOROUGH: Mapping[str, Length] = {"thorough": Length(200_000)}
"""For networks as people have them: most of those for clothes then pass their bar (`BARS`)."""

DECAYS: Mapping[str, tuple[float, ...]] = {"sgd": (0.0, 5e-4, 2e-3), "adamw": (0.0, 0.02, 0.2)}
SMOOTHINGS = (0.0, 0.1)

_VISITS = {"cifar100": 1.5, "digits": 0.3, "imagenette64": 0.6}
_WIDTHS = {"digits": 3.0, "imagenette64": 0.5}
_BATCHES = {"digits": 32}
_RATES = {"sgd": 0.08, "adamw": 5e-3}
# Without BatchNorm, the usual steps are too long.
_CAREFUL_RATES = {"sgd": 0.03, "adamw": 2e-3}
_CAREFUL = ("plain", "squeeze", "lenet", "convnext")


def sample_zoo(
    count: int,
    seed: int,
    datasets: Sequence[str] | None = None,
    lengths: Mapping[str, Length] = LENGTHS,
) -> tuple[NetworkSpec, ...]:
    """Draw networks evenly; a longer sample of the same seed begins with the shorter one.

    Families take turns, and each meets every data set before it meets one again. Within a family,
    sizes, activations, lengths, optimizers, weight decays and label smoothings take turns too; of
    several that are due, the one that was rarest over all and on this data set comes first.

    Measured on one core of a CPU, half of the networks train in about 30 seconds and four fifths in
    less than 70; those for digits take seconds, and some for 64x64 images two to three minutes
    (`imagenette32` in the place of `imagenette64` spares them). A network has 1 to 17 million
    multiply-accumulates for each image, for digits 0.2 to 6, for 64x64 images up to 32.

    Args:
        count: Number of networks.
        seed: Fixes them all, in this version of the tables above.
        datasets: Data sets to draw for, by default `SAMPLED`; see `datasets_here` for those that
            can be read offline.
        lengths: How long they are trained, one of these each.

    Raises:
        SelectorError: If `count` is not positive, or `datasets` is empty or names an unknown one or
            one twice.
    """
    names = SAMPLED if datasets is None else tuple(datasets)
    _check(count, names)
    cards = _Cards(seed)
    return tuple(_drawn(cards, names, lengths) for _ in range(count))


class _Cards:
    """Deals options by turns: one that was dealt least often, ties being broken by chance."""

    def __init__(self, seed: int) -> None:
        """Begin with no option dealt."""
        self.chance = random.Random(seed)
        self.dealt: Counter[tuple[str, str, int]] = Counter()

    def deal(self, what: str, options: Sequence[T], scopes: Sequence[str]) -> T:
        """Return the option dealt least often in the first scope; of those, in the second; ..."""
        keys = [
            (*(self.dealt[what, scope, number] for scope in scopes), self.chance.random())
            for number in range(len(options))
        ]
        number = min(range(len(options)), key=lambda one: keys[one])
        self.dealt.update((what, scope, number) for scope in scopes)
        return options[number]


def _drawn(cards: _Cards, datasets: Sequence[str], lengths: Mapping[str, Length]) -> NetworkSpec:
    family = cards.deal("family", tuple(FAMILIES), ("all",))
    dataset = cards.deal("dataset", datasets, (family, "all"))
    scopes = (family, "all", dataset)
    width, depth = cards.deal("size", SIZES[family], scopes)
    activation = cards.deal("activation", tuple(ACTIVATIONS), scopes)
    length = lengths[cards.deal("length", tuple(lengths), scopes)]
    optimizer = cards.deal("optimizer", tuple(OPTIMIZERS), scopes)
    decay = cards.deal("decay", DECAYS[optimizer], scopes)
    smoothing = cards.deal("smoothing", SMOOTHINGS, scopes)
    images = round(DATASETS[dataset].train_images * length.share)
    recipe = Recipe(
        epochs=max(1, round(length.visits * _VISITS.get(dataset, 1.0) / images)),
        learning_rate=(_CAREFUL_RATES if family in _CAREFUL else _RATES)[optimizer],
        weight_decay=decay,
        label_smoothing=smoothing,
        optimizer=optimizer,
        batch_size=_BATCHES.get(dataset, 64),
    )
    width = max(6, 2 * round(width * _WIDTHS.get(dataset, 1.0) / 2))
    seed = int(cards.chance.random() * 2**31)
    return _named(NetworkSpec("", family, dataset, width, depth, activation, recipe, images, seed))


def _named(spec: NetworkSpec) -> NetworkSpec:
    """Return the spec under a name that no other spec has: records are found by it."""
    name = f"{spec.dataset}-{spec.family}-w{spec.width}d{spec.depth}-{spec.activation}"
    return dataclasses.replace(spec, name=f"{name}-{fingerprint(spec)[:6]}")


def _check(count: int, datasets: Sequence[str]) -> None:
    if count < 1:
        raise SelectorError(f"count is {count}; it must be at least 1")
    unknown = [name for name in datasets if name not in DATASETS]
    if unknown or not datasets:
        raise SelectorError(
            f"unknown data set {unknown[0]!r}; known: {', '.join(DATASETS)}"
            if unknown
            else "datasets is empty; name at least one, or leave it out"
        )
    if len(set(datasets)) < len(datasets):
        raise SelectorError(f"a data set is named twice: {', '.join(datasets)}")
