"""The criteria behind the public strings: the selector, a metric, a proposal, or the oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from selector.data.calibration import Calibration
from selector.errors import SelectorError
from selector.learning.features import candidates, distinct, lowest_sets
from selector.learning.prediction import Prediction
from selector.learning.selector import SaliencySelector
from selector.network.groups import Group
from selector.planning.candidates import Criterion, Decided, Options, Survey, Trial
from selector.planning.choice import Choice
from selector.planning.verification import Verifier, composed
from selector.records.decision import Decision
from selector.saliency.proposals.registry import PROPOSALS, Proposal
from selector.saliency.registry import METRICS, arms, find_metric
from selector.typing import Channels

Verify = int | Literal["all"]

HALVES = "verification by the oracle"
"""What two parts of the data are needed for."""


class _ByOptions:
    """A criterion whose first choice is known from its options."""

    def proposed(
        self: Criterion, survey: Survey, counts: Mapping[Group, int]
    ) -> dict[Group, Channels]:
        """The channels of the first candidate of each group."""
        return {group: some[0].remove for group, some in self.options(survey, counts).items()}


@dataclass(frozen=True)
class SelectorCriterion(_ByOptions):
    """Every group by the metric that the selector trusts there; verified where that is asked."""

    selector: SaliencySelector
    verify: Verify = 0
    """Candidates that are tried where most is at stake; `all` for every arm's in every group."""

    name = "selector"
    proposal = None

    @property
    def metrics(self) -> list[str]:
        """The metrics that the selector has learnt with.

        Raises:
            SelectorError: The selector is not fitted.
        """
        self.selector.check_fitted()
        return list(self.selector.metrics_)

    def images(self, calibration: Calibration) -> tuple[Calibration, Calibration]:
        """All images score; with `verify`, every second batch measures."""
        if not self.verify:
            return calibration, calibration
        return calibration, calibration.split(2, HALVES)[1]

    def options(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, list[Choice]]:
        """The trusted metric's candidate, then those that complement it best."""
        asked = [Decision(survey.views[group.name], count) for group, count in counts.items()]
        predictions = self.selector.predict_many(asked)
        return {
            group: self._choices(group, prediction)
            for group, prediction in zip(counts, predictions, strict=True)
        }

    def proposed(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, Channels]:
        """The first candidates; the single best's, without predictions, of unlike networks."""
        if not survey.unlike:
            return super().proposed(survey, counts)
        best = self.selector.single_best_
        asked = {group: Decision(survey.views[group.name], n) for group, n in counts.items()}
        return {group: candidates(one, [best])[best] for group, one in asked.items()}

    def _choices(self, group: Group, prediction: Prediction) -> list[Choice]:
        kept = None if self.verify == "all" else max(2, self.verify)
        return [
            Choice(
                group=group.name,
                channels=group.channels,
                remove=prediction.proposals[arm],
                metric=arm,
                runner_up=prediction.runner_up,
                fell_back=prediction.fell_back and arm == prediction.trusted,
                predicted_nats=prediction.loss_change_nats[arm],
                measured=None,
                predicted_interval=prediction.loss_change_interval[arm],
            )
            for arm in prediction.shortlist(kept)
        ]

    def decide(self, trial: Trial, options: Options) -> Decided:
        """The first candidate of every group, or what verification finds to be better."""
        if not self.verify or not options:
            return Decided(tuple(some[0] for some in options.values()))
        verifier = Verifier(trial, self.verify)
        choices = verifier.best(options)
        measured = None
        if trial.whole:
            measured = verifier.change(dict(zip(options, choices, strict=True)))
        return Decided(tuple(choices), verifier.images, measured)

    def __str__(self) -> str:
        """As plans and reports name it."""
        return f"selector, verify={self.verify}" if self.verify else "selector"


@dataclass(frozen=True)
class MetricCriterion(_ByOptions):
    """Every group by one metric."""

    name: str

    proposal = None
    selector = None

    @property
    def metrics(self) -> list[str]:
        """The metric."""
        return [self.name]

    def images(self, calibration: Calibration) -> tuple[Calibration, Calibration]:
        """All images score; nothing is measured."""
        return calibration, calibration

    def options(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, list[Choice]]:
        """The channels with the lowest scores.

        Raises:
            SelectorError: A group does not have what the metric needs.
        """
        for group in counts:
            if self.name not in survey.scores[group.name]:
                raise SelectorError(
                    f"metric {self.name!r} needs normalisation, and group "
                    f"{group.name!r} has none; name the group in ignore, or use another criterion"
                )
        return _lowest(survey, counts, [self.name])

    def decide(self, trial: Trial, options: Options) -> Decided:
        """The only candidate of every group."""
        return Decided(tuple(some[0] for some in options.values()))

    def __str__(self) -> str:
        """As plans and reports name it."""
        return self.name


@dataclass(frozen=True)
class ProposalCriterion(_ByOptions):
    """Every group by one proposal of sets."""

    proposal: Proposal

    selector = None

    @property
    def name(self) -> str:
        """The proposal's name."""
        return self.proposal.name

    @property
    def metrics(self) -> list[str]:
        """None."""
        return []

    def images(self, calibration: Calibration) -> tuple[Calibration, Calibration]:
        """All images are read; nothing is measured."""
        return calibration, calibration

    def options(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, list[Choice]]:
        """The set that is proposed.

        Raises:
            SelectorError: A group lacks what the proposal needs, or the proposal is no set of
                so many of its channels.
        """
        found = {}
        for group, count in counts.items():
            channels = self.proposal.checked(group.name, survey.signals[group.name], count)
            found[group] = _choices(group, {self.name: channels})
        return found

    def decide(self, trial: Trial, options: Options) -> Decided:
        """The only candidate of every group."""
        return Decided(tuple(some[0] for some in options.values()))

    def __str__(self) -> str:
        """As plans and reports name it."""
        return self.name


@dataclass(frozen=True)
class OracleCriterion(_ByOptions):
    """Every arm's candidate is measured, group after group, and the best one taken."""

    name = "oracle"
    proposal = None
    selector = None

    @property
    def metrics(self) -> list[str]:
        """The arms."""
        return arms()

    def images(self, calibration: Calibration) -> tuple[Calibration, Calibration]:
        """Every second batch scores, the others measure."""
        scoring, measuring = calibration.split(2, HALVES)
        return scoring, measuring

    def options(self, survey: Survey, counts: Mapping[Group, int]) -> dict[Group, list[Choice]]:
        """Every arm's candidate, equal ones once."""
        return _lowest(survey, counts, arms())

    def decide(self, trial: Trial, options: Options) -> Decided:
        """The best measured candidate of every group, given what went before."""
        choices, images = composed(trial, options)
        return Decided(tuple(choices), images)

    def __str__(self) -> str:
        """As plans and reports name it."""
        return "oracle"


def _lowest(
    survey: Survey, counts: Mapping[Group, int], metrics: Sequence[str]
) -> dict[Group, list[Choice]]:
    """The candidates of some metrics that rank channels."""
    return {
        group: _choices(group, lowest_sets(survey.scores[group.name], metrics, count))
        for group, count in counts.items()
    }


def _choices(group: Group, proposals: dict[str, tuple[int, ...]]) -> list[Choice]:
    return [
        Choice(group.name, group.channels, proposals[arm], arm, None, False, None, None)
        for arm in distinct(proposals, proposals)
    ]


def criterion_of(
    name: str, *, verify: Verify = 0, selector: SaliencySelector | None = None
) -> Criterion:
    """The criterion of that name.

    Args:
        name: `selector`, `oracle`, a metric of the table or the grammar, or a proposal.
        verify: Candidates that the selector's criterion tries.
        selector: Asked by criterion `selector`; the shipped one by default.

    Raises:
        SelectorError: An unknown name, or `verify` where it would do nothing.
    """
    _check_verify(verify)
    if name == "selector":
        return SelectorCriterion(selector or SaliencySelector.shipped(), verify)
    if name == "oracle":
        if verify:
            raise SelectorError(
                f"criterion 'oracle' measures every arm's candidate, so verify={verify!r} says"
                " nothing; leave it out, or use criterion='selector'"
            )
        return OracleCriterion()
    proposes = name in PROPOSALS and name not in METRICS
    try:
        if not proposes:
            find_metric(name)
    except SelectorError:
        known = ", ".join(dict.fromkeys(["selector", "oracle", *METRICS, *PROPOSALS]))
        raise SelectorError(
            f"unknown criterion {name!r}; known: {known}; or a combination of the grammar, such as "
            "activation.taylor.l2"
        ) from None
    if verify:
        raise SelectorError(
            f"verify={verify!r} compares several metrics' candidates and criterion {name!r} has "
            "one; use criterion='selector', or verify=0"
        )
    return ProposalCriterion(PROPOSALS[name]) if proposes else MetricCriterion(name)


def _check_verify(verify: object) -> None:
    whole = isinstance(verify, int | np.integer) and not isinstance(verify, bool)
    if verify != "all" and not (whole and int(verify) >= 0):  # type: ignore[call-overload]
        raise SelectorError(f"verify={verify!r} must be 0, 1, 2, ... or 'all'")
