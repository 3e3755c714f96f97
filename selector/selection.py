"""The selector: learns from records which arm to trust where; predicts, saves, loads."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightgbm as lgb
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold

from selector.errors import SelectorError
from selector.features import Decision, Matrix, candidates, describe, feature_names, known_metrics
from selector.records import CandidateRecord, Records
from selector.saliency import METRICS

FORMAT_VERSION = 1
FLOOR_NATS = 0.002
"""Added to the spread of a decision's arms, so that decisions without a difference stay small."""
CAP = 3.0
"""Normalised regrets above this count as this: one ruined layer teaches no more than another."""
DAMAGE_OFFSET = 0.005
"""Nats added before the logarithm in which loss changes are learnt."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the selector says of one decision."""

    trusted: str
    """The arm to follow: the predicted best, or the single best where the gain is not credible."""
    runner_up: str | None
    """The next-best arm that proposes other channels; None where all propose the same."""
    fell_back: bool
    """Whether the single best is followed although another arm was predicted to be better."""
    gain: float
    """Predicted normalised regret of the single best minus that of the predicted best."""
    gain_error: float
    """Its standard error over the jackknife of training networks."""
    proposals: Mapping[str, tuple[int, ...]]
    """Arm -> the channels that it would remove."""
    regret: Mapping[str, float]
    """Arm -> predicted normalised regret; the lowest is the predicted best."""
    loss_change_nats: Mapping[str, float]
    """Arm -> predicted loss change of its proposal."""

    def shortlist(self, count: int | None) -> list[str]:
        """The trusted arm, then the most promising ones; never two with the same channels."""
        order = [self.trusted, *sorted(self.regret, key=self.regret.__getitem__)]
        distinct = {self.proposals[arm]: arm for arm in reversed(order)}
        return [arm for arm in dict.fromkeys(order) if distinct[self.proposals[arm]] == arm][:count]


class SaliencySelector(BaseEstimator):  # type: ignore[misc]
    """Predicts, for a group and a number of channels, which saliency metric to trust.

    LightGBM with one row for each candidate: a jackknife of boosters for the normalised regret,
    whose spread over the left-out networks is the uncertainty, and one for the loss change in nats.

    Args:
        folds: Boosters of the jackknife; each leaves out the networks of one fold.
        trees: Trees in each booster.
        leaves: Leaves of each tree.
        learning_rate: Shrinkage of each tree.
        seed: Seed of LightGBM's sampling.

    Attributes:
        arms_: Metrics that may be trusted.
        metrics_: Metrics whose opinion on every proposal is a feature.
        single_best_: The arm with the lowest mean normalised regret on the training networks.
        networks_: Names of the training networks.
    """

    arms_: list[str]
    metrics_: list[str]
    single_best_: str
    networks_: list[str]

    def __init__(
        self,
        folds: int = 5,
        trees: int = 100,
        leaves: int = 7,
        learning_rate: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.folds = folds
        self.trees = trees
        self.leaves = leaves
        self.learning_rate = learning_rate
        self.seed = seed

    def fit(self, records: Records) -> "SaliencySelector":
        """Learn from measured candidates.

        Raises:
            SelectorError: Fewer than two networks or two arms.
        """
        measured = sorted({row.arm for row in records.candidates})
        arms = [name for name in known_metrics(measured) if METRICS[name].arm]
        networks = [provenance.network for provenance in records.networks]
        if len(networks) < 2:
            raise SelectorError(
                f"records of {len(networks)} network cannot teach what carries over to others; "
                "record at least two"
            )
        if len(arms) < 2:
            raise SelectorError(f"records name {len(arms)} known arm; record at least two metrics")
        self.arms_, self.metrics_, self.networks_ = arms, known_metrics(measured), networks
        table = _training_table(records, arms, self.metrics_)
        self.single_best_ = single_best(records, arms)
        splitter = GroupKFold(min(self.folds, len(networks)))
        self._regret = [
            self._booster(table, table.regret, train)
            for train, _ in splitter.split(table.features, groups=table.network)
        ]
        everything = np.arange(len(table.regret))
        self._damage = self._booster(table, _log_damage(table.nats), everything)
        return self

    def _booster(self, table: "_Table", target: Matrix, rows: "np.typing.NDArray[np.intp]"):  # type: ignore[no-untyped-def]
        parameters = {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": min(100, max(2, len(rows) // 20)),
            "feature_fraction": 0.3,
            "bagging_fraction": 0.7,
            "bagging_freq": 1,
            "lambda_l2": 5.0,
            "seed": self.seed,
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": 1,
            "verbosity": -1,
        }
        data = lgb.Dataset(
            table.features[rows],
            target[rows],
            weight=table.weight[rows],
            feature_name=[*feature_names(self.metrics_), "arm"],
            categorical_feature=["arm"],
        )
        return lgb.train(parameters, data, self.trees)

    def predict(self, decision: Decision) -> Prediction:
        """Say which arm to trust for a decision.

        Raises:
            SelectorError: Not fitted, or the decision's scores hold none of the arms.
        """
        self._check_fitted()
        proposals = candidates(decision, self.arms_)
        if self.single_best_ not in proposals:
            raise SelectorError(
                f"the scores lack {self.single_best_!r}, the selector's single best; "
                "score with all the metrics"
            )
        features = _with_arm(describe(decision, proposals, self.metrics_), proposals, self.arms_)
        regrets = np.stack([booster.predict(features) for booster in self._regret])
        nats = np.exp(self._damage.predict(features)) - DAMAGE_OFFSET
        return _decide(proposals, regrets, nats, self.single_best_)

    def _check_fitted(self) -> None:
        if not hasattr(self, "arms_"):
            raise SelectorError("the selector has not learnt yet; call fit(records) or load")

    def save(self, folder: str | Path) -> None:
        """Write the boosters as LightGBM text and the rest as JSON, with checksums.

        Raises:
            SelectorError: Not fitted.
        """
        self._check_fitted()
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        texts = {f"regret_{i}.txt": b.model_to_string() for i, b in enumerate(self._regret)}
        texts["damage.txt"] = self._damage.model_to_string()
        for name, text in texts.items():
            (target / name).write_text(text)
        description = {
            "format_version": FORMAT_VERSION,
            "parameters": self.get_params(),
            "arms": self.arms_,
            "metrics": self.metrics_,
            "single_best": self.single_best_,
            "networks": self.networks_,
            "sha256": {name: _digest(text) for name, text in texts.items()},
        }
        # Last, so that a folder with this file is whole.
        (target / "selector.json").write_text(json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "SaliencySelector":
        """Read a saved selector.

        Raises:
            SelectorError: Missing, damaged, of another format, or with metrics unknown here.
        """
        source = Path(folder)
        try:
            description = json.loads((source / "selector.json").read_text())
            if description["format_version"] != FORMAT_VERSION:
                raise SelectorError(
                    f"{source} has format {description['format_version']}, this version reads "
                    f"{FORMAT_VERSION}; fit the selector again"
                )
            texts = {name: (source / name).read_text() for name in description["sha256"]}
        except (OSError, json.JSONDecodeError, KeyError) as error:
            raise SelectorError(f"{source} is not a saved selector: {error}") from error
        for name, text in texts.items():
            if _digest(text) != description["sha256"][name]:
                raise SelectorError(f"{source / name} is damaged: its checksum does not fit")
        unknown = [name for name in description["metrics"] if name not in METRICS]
        if unknown:
            raise SelectorError(
                f"{source} needs metric {unknown[0]!r}, which is not in the table; "
                "register it before loading, or fit the selector again"
            )
        found = cls(**description["parameters"])
        found.arms_, found.metrics_ = description["arms"], description["metrics"]
        found.single_best_ = description["single_best"]
        found.networks_ = description["networks"]
        boosters = {name: lgb.Booster(model_str=text) for name, text in texts.items()}
        found._damage = boosters.pop("damage.txt")
        found._regret = list(boosters.values())
        return found

    @classmethod
    def shipped(cls) -> "SaliencySelector":
        """The selector that comes with the package.

        Raises:
            SelectorError: It is not there: a broken installation.
        """
        return cls.load(shipped_file("selector"))


def shipped_file(name: str) -> Path:
    """A file or folder of `models/`: inside the installed package, else in the checkout."""
    here = Path(__file__).resolve().parent
    for root in (here / "models", here.parent / "models"):
        if (root / name).exists():
            return root / name
    raise SelectorError(f"the shipped {name!r} is missing; install saliency-selector again")


@dataclass(frozen=True, eq=False)
class _Table:
    features: Matrix
    regret: Matrix
    nats: Matrix
    weight: Matrix
    network: "np.typing.NDArray[np.str_]"


def normalised_regrets(rows: Sequence[CandidateRecord]) -> Matrix:
    """Regret over the spread of the decision: (nats - best) / (median - best + 0.002 nats)."""
    nats = np.array([row.nats for row in rows])
    best = nats.min()
    regrets: Matrix = (nats - best) / (np.median(nats) - best + FLOOR_NATS)
    return regrets


def single_best(records: Records, arms: Sequence[str]) -> str:
    """The arm with the lowest mean normalised regret, capped, among those that always apply."""
    costs: dict[str, list[float]] = {arm: [] for arm in arms}
    decisions = 0
    for _, _, rows in records.decisions():
        known = [row for row in rows if row.arm in costs]
        decisions += 1
        for row, regret in zip(known, normalised_regrets(known), strict=True):
            costs[row.arm].append(min(float(regret), CAP))
    always = {arm: float(np.mean(c)) for arm, c in costs.items() if len(c) == decisions}
    if not always:
        raise SelectorError("no arm was measured in every decision; record with all the metrics")
    return min(always, key=always.__getitem__)


def _training_table(records: Records, arms: list[str], metrics: list[str]) -> _Table:
    features, regrets, nats, weights, networks = [], [], [], [], []
    for group, decision, rows in records.decisions():
        known = [row for row in rows if row.arm in arms]
        proposals = candidates(decision, [row.arm for row in known])
        described = describe(decision, proposals, metrics)
        features.append(_with_arm(described, proposals, arms))
        regrets.append(np.minimum(normalised_regrets(known), CAP))
        nats.append(np.array([row.nats for row in known]))
        weights.append(np.full(len(known), 1 / len(known)))
        networks += [group.network] * len(known)
    return _Table(
        np.concatenate(features),
        np.concatenate(regrets),
        np.concatenate(nats),
        np.concatenate(weights) * len(networks) / len(weights),
        np.array(networks),
    )


def _with_arm(features: Matrix, proposals: Mapping[str, object], arms: Sequence[str]) -> Matrix:
    column = np.array([[float(arms.index(arm))] for arm in proposals])
    return np.concatenate([features, column], 1)


def _log_damage(nats: Matrix) -> Matrix:
    logs: Matrix = np.log(np.maximum(nats, 0) + DAMAGE_OFFSET)
    return logs


def _decide(
    proposals: Mapping[str, tuple[int, ...]], regrets: Matrix, nats: Matrix, single_best: str
) -> Prediction:
    arms = list(proposals)
    mean = regrets.mean(0)
    best, fixed = int(mean.argmin()), arms.index(single_best)
    gains = regrets[:, fixed] - regrets[:, best]
    count = len(gains)
    # Jackknife over folds of networks: the boosters share most of their data.
    error = float(((count - 1) / count * np.square(gains - gains.mean()).sum()) ** 0.5)
    gain = float(gains.mean())
    fell_back = proposals[arms[best]] != proposals[single_best] and gain <= error
    trusted = single_best if fell_back else arms[best]
    order = sorted(arms, key=lambda arm: float(mean[arms.index(arm)]))
    others = [arm for arm in order if proposals[arm] != proposals[trusted]]
    return Prediction(
        trusted=trusted,
        runner_up=others[0] if others else None,
        fell_back=fell_back,
        gain=gain,
        gain_error=error,
        proposals=proposals,
        regret={arm: float(value) for arm, value in zip(arms, mean, strict=True)},
        loss_change_nats={arm: float(value) for arm, value in zip(arms, nats, strict=True)},
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
