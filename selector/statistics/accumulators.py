"""Running sums over images of what flows through one group's measuring points."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from selector.errors import SelectorError
from selector.network.groups import Group
from selector.statistics.gate_fisher import PairSums
from selector.statistics.reductions import Moments, over_images
from selector.statistics.statistic import GroupBatch, PointBatch, Statistic, Where


@dataclass
class PointSums:
    """Running sums over images of one group at one measuring point; float64."""

    channels: int
    device: torch.device
    moments: dict[str, Tensor] = field(default_factory=dict)
    """Quantity -> the six moments summed over images, shape (6, channels)."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Sums over images that are not moments of one quantity; means once the pass is over."""
    shared: set[str] = field(default_factory=set)
    """Statistics that calls of layers give: the first source's sums hold them for all."""
    positions: float = 0.0
    pending: dict[str, Tensor] = field(default_factory=dict)
    """Quantity -> sums over positions of the current batch, (3, images, channels)."""
    pending_statistics: dict[str, Tensor] = field(default_factory=dict)
    pending_positions: float = 0.0
    pending_maps: list[Tensor] = field(default_factory=list)
    """Whole maps of the current batch, (images, channels, height, width) for each call."""

    def add(self, name: str, per_image: Tensor) -> None:
        """Add a layer's part of a quantity; layers are summed image by image, before abs."""
        _accumulate(self.pending, name, per_image)

    def add_statistic(self, name: str, values: Tensor) -> None:
        """Add a layer's part of a statistic."""
        _accumulate(self.pending_statistics, name, values)

    def adopt(self, other: "PointSums") -> None:
        """Take over what another source's sums hold of the current batch's forward pass."""
        self.pending |= other.pending
        self.shared |= other.pending_statistics.keys()
        self.pending_positions, self.pending_maps = other.pending_positions, other.pending_maps

    def batch(self) -> PointBatch:
        """The current batch, once every layer has added its part."""
        return PointBatch(self.pending, self.pending_maps)

    def finish_batch(self) -> None:
        """Reduce the per-image sums of the current batch."""
        for name, per_image in self.pending.items():
            _accumulate(self.moments, name, over_images(per_image))
        for name, values in self.pending_statistics.items():
            _accumulate(self.statistics, name, values)
        self.positions += self.pending_positions
        self.drop_batch()

    def drop_batch(self) -> None:
        """Forget the current batch."""
        self.pending, self.pending_statistics = {}, {}
        self.pending_positions, self.pending_maps = 0.0, []

    def finish(self, images: int, other: "PointSums | None" = None) -> None:
        """Turn sums of statistics into means on the CPU, one by one: they can be gigabytes.

        Args:
            images: That were read.
            other: Sums of the first source, finished; None where these are the first source's.
        """
        for name in list(self.statistics):
            self.statistics[name] = (self.statistics[name] / images).cpu()
        if other is not None:
            self.statistics |= {name: other.statistics[name] for name in self.shared}

    def means(self, images: int) -> dict[str, Moments]:
        """The sums as means over images, on the CPU."""
        return {name: Moments(*(rows / images).cpu()) for name, rows in self.moments.items()}


def _accumulate(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    sums[name] = sums[name] + values if name in sums else values


@dataclass(frozen=True)
class GroupSums:
    """Running sums of one group at both measuring points."""

    consumers: PointSums
    producers: PointSums
    statistics: Sequence[Statistic]
    """Those that are computed from whole batches."""
    pairs: PairSums | None

    @classmethod
    def of(
        cls, group: Group, device: torch.device, statistics: Sequence[Statistic], pairs: bool
    ) -> "GroupSums":
        """Empty sums; of pairs at the consumers alone, where removal acts."""
        of_batches = [statistic for statistic in statistics if statistic.of == "batch"]
        return cls(
            PointSums(group.channels, device),
            PointSums(group.channels, device),
            of_batches,
            PairSums.of(group.channels, device) if pairs else None,
        )

    def at(self, where: Where) -> PointSums:
        """Those of one measuring point."""
        return self.consumers if where == "consumers" else self.producers

    def adopt(self, other: "GroupSums") -> None:
        """Take over what another source's sums hold of the current batch's forward pass."""
        self.consumers.adopt(other.consumers)
        self.producers.adopt(other.producers)

    def finish(self, images: int, other: "GroupSums | None" = None) -> None:
        """Turn sums of statistics into means; see `PointSums.finish`."""
        self.consumers.finish(images, None if other is None else other.consumers)
        self.producers.finish(images, None if other is None else other.producers)

    def finish_batch(self) -> None:
        """Reduce the batch at both points, and what lies across them."""
        batch = GroupBatch(self.consumers.batch(), self.producers.batch())
        differentiated = all("taylor" in p.quantities for p in (batch.consumers, batch.producers))
        for statistic in self.statistics:
            seen = differentiated or "backward" not in statistic.requires
            if seen and (batch.consumers.maps or not statistic.whole_maps):
                self.consumers.add_statistic(statistic.name, _computed(statistic, batch))
        if self.pairs is not None and "taylor" in batch.consumers.quantities:
            self.pairs.add(batch.consumers.total("taylor"), batch.consumers.total("gradient"))
        self.consumers.finish_batch()
        self.producers.finish_batch()

    def drop_batch(self) -> None:
        """Forget the current batch."""
        self.consumers.drop_batch()
        self.producers.drop_batch()


def _computed(statistic: Statistic, batch: GroupBatch) -> Tensor:
    found: object = statistic.compute(batch)
    if not isinstance(found, Tensor):
        raise SelectorError(
            f"statistic {statistic.name!r} gives a {type(found).__name__}, not a tensor"
        )
    return found.detach()
