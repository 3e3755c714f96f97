"""Running sums over images of what flows through one group's measuring points."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from selector.network.groups import Group
from selector.statistics.gate_fisher import pair_sums
from selector.statistics.reductions import Moments, independence, mean_rank, over_images


@dataclass
class PointSums:
    """Running sums over images of one group at one measuring point; float64."""

    channels: int
    device: torch.device
    pairs: bool = False
    """Whether products of every two channels are summed, too."""
    moments: dict[str, Tensor] = field(default_factory=dict)
    """Quantity -> the six moments summed over images, shape (6, channels)."""
    special: dict[str, Tensor] = field(default_factory=dict)
    """Sums over images that are no moments of one quantity."""
    positions: float = 0.0
    pending: dict[str, Tensor] = field(default_factory=dict)
    """Quantity -> sums over positions of the batch at hand, (3, images, channels)."""
    pending_special: dict[str, Tensor] = field(default_factory=dict)
    pending_positions: float = 0.0
    pending_maps: list[Tensor] = field(default_factory=list)
    """Whole maps of the batch at hand, (images, channels, height, width) for each consumer."""

    def add(self, name: str, per_image: Tensor) -> None:
        """Add a layer's part of a quantity; layers are summed image by image, before abs."""
        known = self.pending.get(name)
        self.pending[name] = per_image if known is None else known + per_image

    def add_special(self, name: str, values: Tensor) -> None:
        """Add a layer's part of a sum over images of its own kind."""
        known = self.pending_special.get(name)
        self.pending_special[name] = values if known is None else known + values

    def finish_batch(self) -> None:
        """Reduce the per-image sums once every layer has added its part."""
        for name, per_image in self.pending.items():
            _accumulate(self.moments, name, over_images(per_image))
        if "value" in self.pending and "gradient" in self.pending:
            energy = self.pending["value"][2] * self.pending["gradient"][2]
            _accumulate(self.special, "energy", energy.sqrt().sum(0))
        if self.pairs and "taylor" in self.pending:
            products = pair_sums(self.pending["taylor"][0], self.pending["gradient"][0])
            _accumulate(self.special, "pairs", products)
        if self.pending_maps:
            _accumulate(self.special, "rank", mean_rank(self.pending_maps))
            _accumulate(self.special, "independence", independence(self.pending_maps))
        for name, values in self.pending_special.items():
            _accumulate(self.special, name, values)
        self.positions += self.pending_positions
        self.drop_batch()

    def drop_batch(self) -> None:
        """Forget the batch at hand."""
        self.pending, self.pending_special = {}, {}
        self.pending_positions, self.pending_maps = 0.0, []

    def per_image(self, name: str) -> Tensor | None:
        """The batch's sums over positions of a quantity, (images, channels)."""
        return self.pending[name][0] if name in self.pending else None

    def means(self, images: int) -> dict[str, Moments]:
        """The sums as means over images, on the CPU."""
        return {name: Moments(*(rows / images).cpu()) for name, rows in self.moments.items()}


def _accumulate(sums: dict[str, Tensor], name: str, values: Tensor) -> None:
    sums[name] = sums[name] + values if name in sums else values


@dataclass(frozen=True)
class Sums:
    """Running sums of one group at both measuring points."""

    consumers: PointSums
    producers: PointSums

    @classmethod
    def of(cls, group: Group, device: torch.device, pairs: bool = False) -> "Sums":
        """Empty sums; of pairs at the consumers alone, where removal acts."""
        return cls(PointSums(group.channels, device, pairs), PointSums(group.channels, device))

    def finish_batch(self) -> None:
        """Reduce the batch at both points, and what lies across them."""
        effect, taylor = self.producers.per_image("effect"), self.consumers.per_image("taylor")
        if effect is not None and taylor is not None:
            self.producers.add_special("connection", (effect + taylor).square().sum(0))
        self.consumers.finish_batch()
        self.producers.finish_batch()

    def drop_batch(self) -> None:
        """Forget the batch at hand."""
        self.consumers.drop_batch()
        self.producers.drop_batch()
