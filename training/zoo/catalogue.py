"""The zoo as data: networks chosen by hand, networks drawn evenly, and a table of either."""

from collections.abc import Sequence

from selector.errors import SelectorError
from selector.tables import text_table
from training.zoo.recipes import Recipe as Recipe
from training.zoo.sampling import LENGTHS, THOROUGH
from training.zoo.sampling import sample_zoo as sample_zoo
from training.zoo.specs import NetworkSpec as NetworkSpec

WIDE = 200
"""Columns of the terminal that the table of networks is for: names are read whole."""
COUNT, SEED = 160, 2026
"""The sample that the shipped records are of."""


def zoo_table(specs: Sequence[NetworkSpec]) -> str:
    """Return one line a network as text: what it is and how it is trained."""
    columns = ["network", "family", "data set", "width", "depth", "activation"]
    columns += ["optimizer", "epochs", "images", "decay", "smoothing"]
    rows = [
        [
            spec.name,
            spec.family,
            spec.dataset,
            str(spec.width),
            str(spec.depth),
            spec.activation,
            spec.recipe.optimizer,
            str(spec.recipe.epochs),
            str(spec.train_images),
            f"{spec.recipe.weight_decay:g}",
            f"{spec.recipe.label_smoothing:g}",
        ]
        for spec in specs
    ]
    return text_table(columns, rows, width=WIDE)


def zoo_of(
    name: str, count: int | None, seed: int | None, datasets: Sequence[str] | None
) -> tuple[NetworkSpec, ...]:
    """Return the networks of a campaign: those chosen by hand, or a sample.

    Args:
        name: `sampled`, `thorough` for a sample that is trained four times as long, or `first` for
            those chosen by hand.
        count: Networks to draw, `COUNT` by default.
        seed: Of the sample, `SEED` by default.
        datasets: Data sets to draw for, `SAMPLED` by default.

    Raises:
        SelectorError: The name is unknown, or options of a sample are given with another zoo.
    """
    if name in ("sampled", "thorough"):
        return sample_zoo(
            COUNT if count is None else count,
            SEED if seed is None else seed,
            datasets,
            LENGTHS if name == "sampled" else THOROUGH,
        )
    if name != "first":
        raise SelectorError(f"unknown zoo {name!r}; known: sampled, thorough, first")
    given = {"count": count, "seed": seed, "datasets": datasets}
    for option, value in given.items():
        if value is not None:
            raise SelectorError(f"--{option} does nothing with --zoo first; leave it out")
    return FIRST_ZOO


def _cifar(family: str, width: int, depth: int, act: str, recipe: Recipe, seed: int) -> NetworkSpec:
    """Train on 9,000 of the 12,000 lossless images; the last 3,000 are for the oracle."""
    name = f"cifar10-{family}-w{width}d{depth}-{act}"
    return NetworkSpec(name, family, "cifar10", width, depth, act, recipe, 9000, seed)


def _digits(
    family: str, width: int, depth: int, act: str, recipe: Recipe, seed: int
) -> NetworkSpec:
    """Train on 800 of the 1,297 digits; the last 497 are for the oracle."""
    name = f"digits-{family}-w{width}d{depth}-{act}"
    return NetworkSpec(name, family, "digits", width, depth, act, recipe, 800, seed)


_SGD = Recipe(epochs=8, learning_rate=0.08)
_SGD_GENTLE = Recipe(epochs=10, learning_rate=0.03)
_SGD_SMOOTH = Recipe(epochs=8, learning_rate=0.08, label_smoothing=0.1)
_SGD_LONG = Recipe(epochs=10, learning_rate=0.1, weight_decay=2e-4)
_ADAM = Recipe(epochs=9, learning_rate=2e-3, weight_decay=0.02, optimizer="adamw")
_ADAM_BOLD = Recipe(epochs=9, learning_rate=8e-3, weight_decay=0.02, optimizer="adamw")
_ADAM_SHORT = Recipe(epochs=7, learning_rate=8e-3, weight_decay=0.02, optimizer="adamw")
_ADAM_LONG = Recipe(epochs=10, learning_rate=5e-3, weight_decay=0.02, optimizer="adamw")
_DIGITS_SGD = Recipe(epochs=30, learning_rate=0.05, batch_size=32)
_DIGITS_ADAM = Recipe(
    epochs=40, learning_rate=5e-3, weight_decay=0.02, optimizer="adamw", batch_size=32
)

FIRST_ZOO: tuple[NetworkSpec, ...] = (
    _cifar("plain", 16, 2, "relu", _SGD_GENTLE, 1),
    _cifar("plain_bn", 16, 2, "relu", _SGD, 2),
    _cifar("plain_bn", 24, 1, "silu", _ADAM_BOLD, 3),
    _cifar("nin", 16, 2, "relu", _SGD_SMOOTH, 4),
    _cifar("residual", 8, 2, "relu", _SGD, 5),
    _cifar("residual", 12, 1, "silu", _SGD_SMOOTH, 6),
    _cifar("bottleneck", 16, 1, "leaky_relu", _SGD_LONG, 7),
    _cifar("preact", 8, 2, "relu", _SGD, 8),
    _cifar("mobile", 8, 1, "relu", _ADAM_SHORT, 9),
    _cifar("dense", 8, 2, "relu", _ADAM_BOLD, 10),
    _cifar("squeeze", 32, 1, "relu", _ADAM_LONG, 11),
    _cifar("lenet", 12, 1, "gelu", _ADAM, 12),
    _digits("plain", 12, 2, "gelu", _DIGITS_ADAM, 13),
    _digits("nin", 12, 1, "leaky_relu", _DIGITS_SGD, 14),
    _digits("residual", 8, 1, "silu", _DIGITS_SGD, 15),
    _digits("bottleneck", 16, 2, "relu", _DIGITS_SGD, 16),
    _digits("mobile", 12, 1, "relu", _DIGITS_ADAM, 17),
    _digits("squeeze", 32, 1, "relu", _DIGITS_ADAM, 18),
)
