"""Options that several commands share, as values: the network, the images, what is removed."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from selector.cli import options as opt
from selector.cli.inputs import names, shares, verify_count
from selector.errors import SelectorError

if TYPE_CHECKING:
    from torch import nn

    from selector.cli.libraries import Preparation
    from selector.cli.models import Loaded
    from selector.data.batches import Batches
    from selector.learning.selector import SaliencySelector
    from selector.planning.criteria import Verify
    from selector.planning.limits import Shares
    from selector.planning.method import AllocationName
    from selector.planning.target import Targets


@dataclass(frozen=True, kw_only=True)
class Network:
    """Which network, with which weights, and where it runs."""

    model: opt.Model
    weights: opt.Weights = None
    weights_key: opt.WeightsKey = None
    device: opt.Device = "cpu"
    seed: opt.Seed = 0

    def read(self, *, weights_needed: bool = True) -> "Loaded":
        """Make the network, with its weights, on its device; see `read_network`."""
        from selector.cli.models import Loaded, placed, read_network, seed_everything

        seed_everything(self.seed)
        found = read_network(self.model, self.weights, key=self.weights_key, needed=weights_needed)
        return Loaded(placed(found.model, self.device), found.preparation)


@dataclass(frozen=True, kw_only=True)
class Images:
    """How images become batches; None where nothing was typed."""

    images: opt.Images = None
    batch_size: opt.BatchSize = None
    mean: opt.Mean = None
    std: opt.Std = None
    size: opt.Size = None
    bgr: opt.Bgr = False
    image_column: opt.ImageColumn = None
    label_column: opt.LabelColumn = None

    @property
    def typed(self) -> list[str]:
        """The options that were typed, as they are typed."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return [
            f"--{n.replace('_', '-')}" for n, value in given.items() if value not in (None, False)
        ]

    def read(
        self, data: str, preparation: "Preparation | None" = None, test_data: str | None = None
    ) -> "tuple[Batches, Batches | None]":
        """Batches of the images, and of the test images if any; see `read_data`."""
        from selector.cli.images import read_data

        return read_data(data, test_data, self, preparation)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """How much is to be left."""

    keep_macs: opt.KeepMacs = None
    keep_params: opt.KeepParams = None
    keep_weights: opt.KeepWeights = None
    keep_latency: opt.KeepLatency = None
    ratio: opt.Ratio = None

    @property
    def targets(self) -> "Targets":
        """What was typed, as `prune` takes it."""
        typed = {field.name: getattr(self, field.name) for field in fields(self)}
        return cast("Targets", {name: share for name, share in typed.items() if share is not None})


@dataclass(frozen=True, kw_only=True)
class Way:
    """By whose advice channels are removed, and where."""

    criterion: opt.Criterion = "selector"
    verify: opt.VerifyText = "0"
    selector: opt.SelectorFolder = None
    allocation: opt.AllocationName = "auto"

    def checked(self, goal: Goal, own: "Shares | None") -> "Chosen":
        """The options, checked; the selector is loaded before any image is read.

        Raises:
            SelectorError: Options that do not go together, or no such selector.
        """
        from selector.learning.selector import SaliencySelector
        from selector.planning.method import method_of
        from selector.planning.target import Target

        folder = self.selector
        if folder is not None and self.criterion != "selector" and self.allocation != "damage":
            raise SelectorError(
                f"--selector {folder} does nothing with --criterion {self.criterion}"
            )
        found = Chosen(
            criterion=self.criterion,
            verify=verify_count(self.verify),
            selector=None if folder is None else SaliencySelector.load(folder),
            allocation=cast("AllocationName", self.allocation),
        )
        method_of(target=Target.of(goal.targets, own), **found)
        return found


class Chosen(TypedDict):
    """How channels are chosen, as `choose` and `prune` take it."""

    criterion: str
    verify: "Verify"
    selector: "SaliencySelector | None"
    allocation: "AllocationName"


class Allowed(TypedDict):
    """Which widths are allowed, as `choose` and `prune` take it."""

    ignore: list[str]
    max_ratio: float
    max_ratios: "Shares | None"
    ratios: "Shares | None"
    round_to: int
    min_channels: int


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Which widths are allowed."""

    ignore: opt.Ignore = None
    max_ratio: opt.MaxRatio = 0.9
    max_ratios: opt.MaxRatios = None
    ratios: opt.Ratios = None
    round_to: opt.RoundTo = 1
    min_channels: opt.MinChannels = 1

    @property
    def own(self) -> dict[str, float] | None:
        """Shares of single groups to remove."""
        return shares(self.ratios, "--ratios")

    @property
    def allowed(self) -> Allowed:
        """What was typed, as `choose` and `prune` take it."""
        return Allowed(
            ignore=[] if self.ignore is None else names(self.ignore, "--ignore"),
            max_ratio=self.max_ratio,
            max_ratios=shares(self.max_ratios, "--max-ratios"),
            ratios=self.own,
            round_to=self.round_to,
            min_channels=self.min_channels,
        )


def parameters_of(model: "nn.Module") -> int:
    """Number of a network's parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def existing(*paths: Path | str | None) -> list[Path]:
    """Those of some inputs that are files or folders."""
    return [Path(path) for path in paths if path is not None and Path(path).exists()]
