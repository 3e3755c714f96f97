"""What one round knows of the network before it decides, and how a criterion proposes channels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn

from selector.data.calibration import Calibration
from selector.data.loss import LossChange
from selector.learning.selector import SaliencySelector
from selector.network.compensation import Compensation
from selector.network.groups import Group
from selector.planning.choice import Choice
from selector.planning.description import describe_by_sets, describe_network
from selector.planning.familiarity import NO_METRICS, is_unlike
from selector.planning.stage import Stage
from selector.records.decision import GroupView
from selector.saliency.proposals.knowledge import set_proposals
from selector.saliency.proposals.registry import Proposal
from selector.saliency.registry import find_metric
from selector.saliency.scoring import needs_of, score_signals
from selector.statistics.channel_statistics import Signals
from selector.statistics.collect import measure_signals
from selector.typing import Channels, Matrix

Options = Mapping[Group, Sequence[Choice]]
"""Groups that lose channels -> their candidates, the most promising first."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Survey:
    """A network's scores, and the images that measure candidates: the same for any step size."""

    scores: Mapping[str, Mapping[str, Matrix]]
    """Group -> metric -> scores of shape (channels,)."""
    views: Mapping[str, GroupView]
    """Group -> what the selector is asked; empty for criteria that do not ask it."""
    scoring: Calibration
    """The images that scored."""
    measuring: Calibration
    """The images that measure candidates, where the oracle is called."""
    base_loss: float
    """Loss of the network as it is on the scoring images; NaN where no selector asks for it."""
    compensation: Compensation | None
    signals: Mapping[str, Signals] = field(default_factory=dict)
    """Group -> what one pass showed of it; empty unless the criterion proposes sets."""
    unlike: bool = False
    """Whether the network is unlike what the selector learnt from, where that was asked."""


@dataclass(frozen=True)
class Decided:
    """What goes from every group, and what finding out has cost."""

    choices: tuple[Choice, ...]
    oracle_images: int = 0
    """Images times networks that the oracle evaluated."""
    measured: LossChange | None = None
    """What the whole plan does to the loss, where it was measured."""


class Criterion(Protocol):
    """How the channels of a group are chosen; `criteria.py` has one class for each kind."""

    @property
    def name(self) -> str:
        """As callers write it: `selector`, `oracle`, or the name of a metric or a proposal."""

    @property
    def metrics(self) -> list[str]:
        """The metrics whose scores it needs."""

    @property
    def proposal(self) -> Proposal | None:
        """The proposal of sets that it asks, if any."""

    @property
    def selector(self) -> SaliencySelector | None:
        """The selector that it asks, if any: it needs the groups described as that sees them."""

    def images(self, calibration: Calibration) -> tuple[Calibration, Calibration]:
        """The images that score, and those that measure candidates."""

    def options(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, list[Choice]]:
        """Distinct candidates of as many channels of each group, the most promising first."""

    def proposed(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, Channels]:
        """As many channels of each group, before anything is measured or predicted of them."""

    def decide(self, trial: "Trial", options: Options) -> Decided:
        """One candidate for every group."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """Where candidates are tried: the network, what is known of it, and what follows the cut."""

    model: nn.Module
    survey: Survey
    recalibrate: bool
    """Whether BatchNorm is recalibrated after the cut, so that losses are measured accordingly."""
    whole: bool = False
    """Whether what the whole plan does is measured, too, where candidates are verified."""
    foretelling: bool = False
    """Whether this is for a forecast, for which no more is measured than the round did."""
    progress: bool = False


def survey_network(
    model: nn.Module,
    calibration: Calibration,
    stage: Stage,
    criterion: Criterion,
    *,
    pricing: SaliencySelector | None = None,
    unlike: bool | None = False,
    compensate: bool = False,
) -> Survey:
    """Score every group of a network.

    One pass over the scoring images, forward and backward where a metric needs it; none for metrics
    of weights alone. One more backward pass for a selector that may trust proposals of sets, one
    more pass for a proposal of sets whose widths a selector prices, and one more forward pass for
    the means that compensate. A selector that does not know such networks, and is asked for one
    candidate of each group, has one backward pass alone: it would trust its single best.

    Args:
        model: The network; left exactly as found.
        calibration: The user's data.
        stage: Where the network stands.
        criterion: Whose metrics are scored.
        pricing: The selector whose predictions spend the budget, if any.
        unlike: Whether the network is unlike those that the selector learnt from, so that it is
            trusted in nothing but its single best; None to find out.
        compensate: Whether the removed channels' means will be kept.
    """
    scoring, measuring = criterion.images(calibration)
    asked = criterion.selector or pricing
    views: Mapping[str, GroupView] = {}
    if asked is not None:
        if unlike is None:
            unlike = is_unlike(asked, model, stage, scoring)
        settled = unlike and criterion.selector is not None and measuring is scoring
        views = (_barely_described if settled else described_for)(asked, model, stage, scoring)
    signals: Mapping[str, Signals] = {}
    scores: Mapping[str, Mapping[str, Matrix]] = {n: view.scores for n, view in views.items()}
    if criterion.selector is None:
        scores, signals = _scored(model, stage, scoring, criterion)
    compensation = None
    if compensate:
        compensation = Compensation.measured(model, calibration, stage.groups.prunable.values())
    return Survey(
        scores=scores,
        views=views,
        scoring=scoring,
        measuring=measuring,
        base_loss=next((v.context.base_loss for v in views.values()), float("nan")),
        compensation=compensation,
        signals=signals,
        unlike=bool(unlike),
    )


def described_for(
    selector: SaliencySelector, model: nn.Module, stage: Stage, scoring: Calibration
) -> dict[str, GroupView]:
    """The groups as a selector sees them: scored, and where it may trust sets, those too.

    Raises:
        SelectorError: The selector is not fitted, or the images cannot be used.
    """
    selector.check_fitted()
    return describe_network(
        model,
        stage.groups,
        scoring,
        [find_metric(name) for name in selector.metrics_],
        set_proposals(selector.set_arms) if selector.set_arms else (),
        macs_kept=stage.macs_kept,
    )


def _barely_described(
    selector: SaliencySelector, model: nn.Module, stage: Stage, scoring: Calibration
) -> dict[str, GroupView]:
    """The groups for a selector that is to trust its single best, whatever others would propose."""
    if selector.single_best_ not in selector.set_arms:
        return described_for(selector, model, stage, scoring)
    return describe_by_sets(
        model,
        stage.groups,
        scoring,
        NO_METRICS,
        set_proposals([selector.single_best_]),
        macs_kept=stage.macs_kept,
    )


def _scored(
    model: nn.Module, stage: Stage, scoring: Calibration, criterion: Criterion
) -> tuple[dict[str, dict[str, Matrix]], Mapping[str, Signals]]:
    """The scores that a criterion needs; and what proposals of sets are made from."""
    proposal = criterion.proposal
    measured = measure_signals(
        model,
        scoring,
        stage.groups.prunable,
        needs=proposal.needs if proposal else needs_of(criterion.metrics),
        loss=scoring.loss,
        gradients=proposal.gradients if proposal else "labels",
    )
    scores = {
        name: {metric: values.numpy() for metric, values in of_group.items()}
        for name, of_group in score_signals(measured, criterion.metrics).items()
    }
    return scores, measured if proposal else {}
