"""What a repair did to every layer, and why it did not refit some."""

from dataclasses import dataclass

_HEADER = f"{'layer':<32} {'before':>7} {'after':>7} {'ridge':>7} {'equations':>10} {'unknowns':>9}"


@dataclass(frozen=True)
class LayerRepair:
    """What was done to one layer."""

    layer: str
    done: str
    """`refitted`, `kept` (the present weights are best), `statistics` (BatchNorm) or `skipped`."""
    note: str = ""
    """Why it was skipped, or what to know."""
    explained_before: float | None = None
    """Share of the variance of the unpruned network's outputs that the present weights explain on
    the pruned network's inputs, on images that nothing was fitted to; None where not measured."""
    explained_after: float | None = None
    """The same with the weights fitted to the other images."""
    ridge: float | None = None
    """In units of the mean diagonal; None where the weights stayed."""
    equations: int = 0
    """Sampled positions, each an equation for every output."""
    unknowns: int = 0
    """Of each output, the bias among them."""

    def __str__(self) -> str:
        before, after = (_share(x) for x in (self.explained_before, self.explained_after))
        ridge = "" if self.ridge is None else f"{self.ridge:.0e}"
        counts = f"{self.equations:>10,} {self.unknowns:>9,}" if self.unknowns else " " * 20
        said = self.done if not self.note else f"{self.done}: {self.note}"
        return f"{self.layer:<32} {before:>7} {after:>7} {ridge:>7} {counts}  {said}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * max(value, -9.99):.1f}%"


@dataclass(frozen=True)
class RepairReport:
    """All layers in forward order, those that do not run last."""

    layers: tuple[LayerRepair, ...]
    images: int
    notes: tuple[str, ...] = ()
    """What concerns the repair as a whole."""

    def of(self, done: str) -> tuple[LayerRepair, ...]:
        """The layers to which this was done."""
        return tuple(layer for layer in self.layers if layer.done == done)

    @property
    def skipped(self) -> tuple[LayerRepair, ...]:
        """Layers that could not be refitted; each says why."""
        return self.of("skipped")

    @property
    def explained_before(self) -> float:
        """Mean over the layers that were looked at; 1 where there are none."""
        return _mean([x.explained_before for x in self.layers if x.explained_before is not None])

    @property
    def explained_after(self) -> float:
        """Mean over the layers that were looked at; 1 where there are none."""
        return _mean([x.explained_after for x in self.layers if x.explained_after is not None])

    @property
    def summary(self) -> str:
        """One line."""
        return (
            f"{len(self.of('refitted'))} layers refitted, {len(self.of('kept'))} kept, "
            f"{len(self.of('statistics'))} BatchNorm layers set, {len(self.skipped)} skipped, from "
            f"{self.images} images; variance explained {_share(self.explained_before)} -> "
            f"{_share(self.explained_after)} (mean over layers)"
        )

    def __str__(self) -> str:
        """A line a layer, then the summary and the notes."""
        return "\n".join([_HEADER, *map(str, self.layers), self.summary, *self.notes])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 1.0
