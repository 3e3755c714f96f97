"""All of a selector but its boosters, as values that are checked when they are made."""

from dataclasses import dataclass

from selector.errors import SelectorError
from selector.learning.boosters import check_settings
from selector.learning.composing import Composing
from selector.learning.table import NUMBERS


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Arguments of `SaliencySelector`."""

    folds: int
    trees: int
    leaves: int
    learning_rate: float
    caution: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        check_settings(**vars(self))


@dataclass(frozen=True, kw_only=True)
class IntervalNumbers:
    """`Intervals` as lists."""

    edges: tuple[float, ...]
    quantiles: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse bins that are not ascending, or without their quantiles."""
        if list(self.edges) != sorted(self.edges) or len(self.quantiles) != len(self.edges) + 1:
            raise SelectorError(
                f"intervals need ascending edges, and one pair of quantiles more than the "
                f"{len(self.edges)} edges, not {len(self.quantiles)}"
            )
        if any(low > high for low, high in self.quantiles):
            raise SelectorError("intervals need lower quantiles that are not above the upper ones")


@dataclass(frozen=True, kw_only=True)
class DistributionNumbers:
    """`TrainingDistribution` as lists."""

    mean: tuple[float, ...]
    spread: tuple[float, ...]
    centres: tuple[tuple[float, ...], ...]
    radius: float

    def __post_init__(self) -> None:
        """Refuse numbers that do not describe decisions."""
        sizes = {len(self.mean), len(self.spread), *map(len, self.centres)}
        if len(sizes) > 1 or not self.mean or not self.centres:
            raise SelectorError(
                "familiar needs as many numbers in its mean, its spread and each centre, not "
                f"{sorted(sizes)}"
            )
        if not (self.radius > 0 and min(self.spread) > 0):
            raise SelectorError("familiar needs a radius and spreads above 0")


@dataclass(frozen=True, kw_only=True)
class Description:
    """All of a selector but its boosters, as it stands in JSON."""

    parameters: Parameters
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    features: tuple[str, ...]
    single_best: str
    networks: tuple[str, ...]
    damage_weight: float
    intervals: IntervalNumbers
    familiar: DistributionNumbers
    composing: Composing | None = None

    def __post_init__(self) -> None:
        """Refuse parts that do not fit each other."""
        for name in ("arms", "metrics", "features", "networks"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise SelectorError(f"{name} must be different names, at least one")
        if self.single_best not in self.arms:
            raise SelectorError(f"{self.single_best!r} is not among its arms")
        if self.damage_weight < 0:
            raise SelectorError(f"damage_weight={self.damage_weight} must not be negative")
        if len(self.familiar.mean) != len(NUMBERS):
            raise SelectorError(f"familiar must describe decisions by {len(NUMBERS)} numbers")
