"""The selector: learns from records which arm to trust where; predicts, saves, loads."""

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from sklearn.base import BaseEstimator

from selector.data.checks import check_kind
from selector.errors import SelectorError
from selector.learning.artefact import read_artefact, shipped_file, write_artefact
from selector.learning.boosters import (
    Settings,
    best_weight,
    check_settings,
    check_teaches,
    excess,
    fit_booster,
    network_folds,
)
from selector.learning.composing import Composing
from selector.learning.contributions import Paths, contributions
from selector.learning.description import Description, IntervalNumbers, Parameters
from selector.learning.features import Proposals, candidates, feature_names
from selector.learning.forest import Forest
from selector.learning.forest_text import ForestLimits, read_forest
from selector.learning.prediction import Prediction
from selector.learning.table import (
    DAMAGE_OFFSET,
    Described,
    TrainingTable,
    describe_all,
    log_damage,
    names_of,
    single_best,
    training_table,
)
from selector.learning.uncertainty import Intervals, TrainingDistribution
from selector.records.decision import Decision
from selector.records.records import Records
from selector.saliency.proposals.registry import PROPOSALS
from selector.saliency.registry import known_metrics
from selector.typing import Matrix


class SaliencySelector(BaseEstimator):  # type: ignore[misc]
    """Predicts, for a group and a number of channels, which saliency metric to trust.

    LightGBM with one row for each candidate: a jackknife of boosters for the normalised regret,
    whose spread over the left-out networks is the uncertainty, and one for the loss change in nats,
    which is added to the regret with the weight that does best on the left-out networks.

    Args:
        folds: Boosters of the jackknife; each leaves out the networks of one fold.
        trees: Trees in each booster.
        leaves: Leaves of each tree.
        learning_rate: Shrinkage of each tree.
        caution: Standard errors by which the predicted best must beat the single best to be
            trusted.
        seed: Seed of LightGBM's sampling.

    Attributes:
        arms_: Metrics that may be trusted.
        metrics_: Metrics whose opinion on every proposal is a feature.
        single_best_: The arm with the lowest mean normalised regret on the training networks.
        networks_: Names of the training networks.
        damage_weight_: Weight of the log of the predicted damage, added to the predicted regret.
    """

    arms_: list[str]
    metrics_: list[str]
    single_best_: str
    networks_: list[str]
    damage_weight_: float
    composing_: Composing | None
    """What whole prunings lose of what is predicted; None until it is learnt from some."""
    training_distribution: TrainingDistribution
    """Where the decisions lie that it has learnt from."""

    def __init__(
        self,
        folds: int = 5,
        trees: int = 200,
        leaves: int = 8,
        learning_rate: float = 0.05,
        caution: float = 2.0,
        seed: int = 0,
    ) -> None:
        self.folds = folds
        self.trees = trees
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.caution = caution
        self.seed = seed

    def fit(
        self, records: Records, weights: Mapping[str, float] | None = None
    ) -> "SaliencySelector":
        """Learn from measured candidates; networks of foreign origin are left out, with a warning.

        Args:
            records: Of two networks or more.
            weights: Network -> its weight, one by default: what counts more, of one's own
                networks and of others. The decisions of a network share it.

        Raises:
            SelectorError: Fewer than two networks or two arms, or arms that never differ.
        """
        check_kind("records", records, Records, "read a folder of them by Records.load(path)")
        foreign = [p.network for p in records.networks if p.for_tests]
        if foreign:
            warnings.warn(
                f"left out of the fit: {', '.join(foreign)}, of foreign origin, which are kept for "
                "testing; records.own() leaves them out beforehand",
                stacklevel=2,
            )
            records = records.own()
        _check_enough(len(records.networks))
        arms, metrics = names_of(records)
        return self.fit_table(training_table(records, arms, metrics, weights))

    def fit_table(self, table: TrainingTable) -> "SaliencySelector":
        """Learn from decisions that are described already: what evaluation does many times.

        Args:
            table: Of two networks or more.

        Raises:
            SelectorError: As `fit`.
        """
        networks = sorted(set(table.network.tolist()))
        _check_enough(len(networks))
        check_settings(**self.get_params())
        check_teaches(table)
        self.arms_, self.metrics_ = list(table.arms), list(table.metrics)
        self.networks_, self.single_best_ = networks, single_best(table)
        how = Settings(self.trees, self.leaves, self.learning_rate, self.seed)
        logs, regret = log_damage(table.nats), table.regret
        regrets, damages = np.zeros((2, len(logs)))
        self._regret: list[Forest] = []
        self._paths: list[Paths] = []
        for train, left_out in network_folds(table, self.folds):
            self._regret.append(fit_booster(table, regret, train, self.feature_names, how))
            regrets[left_out] = self._regret[-1].predict(table.seen.features[left_out])
            damage = fit_booster(table, logs, train, self.feature_names, how)
            damages[left_out] = damage.predict(table.seen.features[left_out])
        self._damage = fit_booster(table, logs, np.arange(len(logs)), self.feature_names, how)
        self.damage_weight_ = best_weight(table, regrets, damages)
        self.composing_ = None
        self._intervals = Intervals.learnt(damages, logs)
        self.training_distribution = TrainingDistribution.fit(
            table.seen.facts, table.network.tolist(), self.seed
        )
        return self

    @property
    def set_arms(self) -> list[str]:
        """The arms that propose sets, not rankings: they ask for a pass of their own."""
        self.check_fitted()
        return [name for name in self.arms_ if name not in self.metrics_]

    @property
    def predicts_repaired(self) -> bool:
        """Whether it has learnt from repaired removal.

        Its loss changes are then divergences from the unpruned network's softened outputs, of
        networks that are repaired.
        """
        return bool(self.set_arms)

    @property
    def feature_names(self) -> list[str]:
        """Names of the columns of `Described.features`, in order."""
        return [*feature_names(self.metrics_), "arm"]

    def predict(self, decision: Decision) -> Prediction:
        """Say which arm to trust for a decision.

        Raises:
            SelectorError: Not fitted, or the decision's scores hold none of the arms.
        """
        return self.predict_many([decision])[0]

    def predict_many(self, decisions: Sequence[Decision]) -> list[Prediction]:
        """Say which arm to trust for each of some decisions; quicker than one by one.

        Raises:
            SelectorError: As `predict`.
        """
        self.check_fitted()
        return self.predict_described(self.described(decisions)) if decisions else []

    def described(self, decisions: Sequence[Decision]) -> Described:
        """Decisions, at least one, as this selector's boosters see them.

        Raises:
            SelectorError: As `predict`.
        """
        self.check_fitted()
        proposals = [candidates(decision, self.arms_) for decision in decisions]
        if any(self.single_best_ not in found for found in proposals):
            what = (
                "knowledge of sets lacks" if self.single_best_ in self.set_arms else "scores lack"
            )
            raise SelectorError(
                f"the {what} {self.single_best_!r}, the selector's single best; "
                "score with all the metrics, and measure all the sets that it may trust"
            )
        return describe_all(decisions, proposals, self.metrics_, self.arms_)

    def contributions(self, features: Matrix) -> Matrix:
        """What every feature adds to the predicted cost, as Shapley values: mean of the jackknife.

        Args:
            features: Rows of `Described.features`, shape (rows, features).

        Returns:
            Shape (rows, features + 1); the last is what is predicted before any feature is seen.
            A row's sum is its predicted normalised regret, and `damage_weight_` times the log of
            its predicted damage.
        """
        if not self._paths:
            self._paths = [Paths.of(booster) for booster in self.boosters]
        *regret, damage = (
            contributions(booster, paths, features)
            for booster, paths in zip(self.boosters, self._paths, strict=True)
        )
        summed: Matrix = np.mean(regret, 0) + self.damage_weight_ * damage
        return summed

    @property
    def boosters(self) -> list[Forest]:
        """All that it asks: the jackknife for the regret, then the one for the loss change."""
        return [*self._regret, self._damage]

    def predict_described(self, seen: Described) -> list[Prediction]:
        """As `predict_many`, of decisions that are described already."""
        regrets = np.stack([booster.predict(seen.features) for booster in self._regret])
        logs = self._damage.predict(seen.features)
        costs = regrets + self.damage_weight_ * excess(logs, seen.decision)
        distances = self.training_distribution.distance(seen.facts)
        ends = np.cumsum([len(found) for found in seen.proposals])
        spans = [slice(e - len(found), e) for found, e in zip(seen.proposals, ends, strict=True)]
        return [
            self._decided(found, costs[:, span], logs[span], far)
            for found, span, far in zip(seen.proposals, spans, distances.tolist(), strict=True)
        ]

    def _decided(
        self,
        proposals: Proposals,
        costs: Matrix,
        logs: Matrix,
        distance: float,
    ) -> Prediction:
        """Weigh the predicted costs, shape (boosters, arms): trust the best, or the single best.

        The predicted best is trusted inside the training distribution where its gain over the
        single best exceeds the gain's jackknife standard error, or where both would remove the same
        channels.
        """
        arms = list(proposals)
        mean = costs.mean(0)
        best, fixed = int(mean.argmin()), arms.index(self.single_best_)
        gains = costs[:, fixed] - costs[:, best]
        count = len(gains)
        # Jackknife over folds of networks: the boosters share most of their data.
        error = float(((count - 1) / count * np.square(gains - gains.mean()).sum()) ** 0.5)
        gain = float(gains.mean())
        differs = proposals[arms[best]] != proposals[self.single_best_]
        fell_back = differs and (gain <= self.caution * error or distance > 1)
        trusted = self.single_best_ if fell_back else arms[best]
        cost = dict(zip(arms, (mean - mean.min()).tolist(), strict=True))
        others = [arm for arm in arms if proposals[arm] != proposals[trusted]]
        nats = (np.exp(logs) - DAMAGE_OFFSET).tolist()
        bounds = self._intervals.around(logs).tolist()
        return Prediction(
            trusted=trusted,
            runner_up=min(others, key=cost.__getitem__, default=None),
            fell_back=fell_back,
            gain=gain,
            gain_error=error,
            out_of_distribution=distance,
            proposals=proposals,
            cost=cost,
            loss_change_nats=dict(zip(arms, nats, strict=True)),
            loss_change_interval={a: (b[0], b[1]) for a, b in zip(arms, bounds, strict=True)},
            single_best=self.single_best_,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "arms_")

    def check_fitted(self) -> None:
        """Make sure that it has learnt.

        Raises:
            SelectorError: It has not.
        """
        if not self.__sklearn_is_fitted__():
            raise SelectorError("the selector has not learnt yet; call fit(records) or load")

    @property
    def digest(self) -> str:
        """What tells it from any other selector: a digest of all that it has learnt."""
        self.check_fitted()
        parts = [json.dumps(asdict(self._described())), *(one.text for one in self.boosters)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write the boosters as LightGBM text and the rest as JSON, with checksums.

        Raises:
            SelectorError: Not fitted, or a file cannot be written.
        """
        self.check_fitted()
        boosters = {f"regret_{i}": booster.text for i, booster in enumerate(self._regret)}
        boosters["damage"] = self._damage.text
        write_artefact(Path(folder), asdict(self._described()), boosters)

    def _described(self) -> Description:
        """All that it has learnt but its boosters."""
        parameters = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.get_params().items()
        }
        return Description(
            parameters=Parameters(**parameters),
            arms=tuple(self.arms_),
            metrics=tuple(self.metrics_),
            features=tuple(self.feature_names),
            single_best=self.single_best_,
            networks=tuple(self.networks_),
            damage_weight=self.damage_weight_,
            intervals=IntervalNumbers(
                edges=self._intervals.edges.tolist(), quantiles=self._intervals.quantiles.tolist()
            ),
            familiar=self.training_distribution.as_numbers(),
            composing=self.composing_,
        )

    @classmethod
    def load(cls, folder: str | Path) -> "SaliencySelector":
        """Read a saved selector.

        Raises:
            SelectorError: Missing, damaged, of another format, or with metrics or features unknown
                here.
        """
        described, texts = read_artefact(Path(folder))
        known = known_metrics(described.metrics)
        unknown = [name for name in described.metrics if name not in known]
        if unknown:
            raise SelectorError(
                f"{folder} needs metric {unknown[0]!r}, which is not in the table; "
                "register it before loading, or fit the selector again"
            )
        for name in described.arms:
            if name not in known and name not in PROPOSALS:
                raise SelectorError(
                    f"{folder} trusts proposal {name!r}, which is not in the table; register it "
                    "before loading, or fit the selector again"
                )
        if list(described.features) != [*feature_names(described.metrics), "arm"]:
            raise SelectorError(
                f"{folder} learnt from other features than this version describes decisions by; "
                "fit the selector again"
            )
        try:
            return cls._of_parts(described, texts)
        except ValueError as error:
            raise SelectorError(
                f"{folder} was not saved by this version's save: {error}; fit the selector again"
            ) from error

    @classmethod
    def _of_parts(cls, described: Description, texts: Mapping[str, str]) -> "SaliencySelector":
        """Put together what `save` took apart."""
        found = cls(**asdict(described.parameters))
        found.arms_, found.metrics_ = list(described.arms), list(described.metrics)
        found.single_best_, found.networks_ = described.single_best, list(described.networks)
        found.damage_weight_, found.composing_ = described.damage_weight, described.composing
        limits = ForestLimits(
            trees=found.trees,
            leaves=found.leaves,
            features=described.features,
            categories=len(found.arms_),
        )
        boosters, found._paths = {}, []
        for name, text in texts.items():
            try:
                boosters[name] = read_forest(text, limits)
            except SelectorError as error:
                raise SelectorError(f"{name}.txt: {error}") from error
        found._damage = boosters.pop("damage")
        found._regret = list(boosters.values())
        numbers = described.intervals
        found._intervals = Intervals(np.array(numbers.edges), np.array(numbers.quantiles))
        found.training_distribution = TrainingDistribution.of_numbers(described.familiar)
        return found

    @classmethod
    def shipped(cls) -> "SaliencySelector":
        """The selector that comes with the package.

        Raises:
            SelectorError: It is not there: a broken installation.
        """
        return cls.load(shipped_file("selector"))


def _check_enough(networks: int) -> None:
    if networks < 2:
        raise SelectorError(
            f"records of {networks} network cannot teach what carries over to others; "
            "record at least two"
        )
