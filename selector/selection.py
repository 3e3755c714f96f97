"""The selector: learns from records which arm to trust where; predicts, saves, loads."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupKFold

from selector.errors import SelectorError
from selector.features import Decision, Matrix, candidates, describe, feature_names
from selector.files import write_text
from selector.learning import (
    DAMAGE_OFFSET,
    TrainingTable,
    log_damage,
    single_best,
    training_table,
    with_arm,
)
from selector.prediction import Prediction, decide
from selector.records import Records
from selector.saliency import find_metric, known_metrics

FORMAT_VERSION = 1


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
        """Learn from measured candidates; networks of foreign origin are left out, with a warning.

        Raises:
            SelectorError: Fewer than two networks or two arms.
        """
        foreign = [p.network for p in records.networks if p.origin != "own"]
        if foreign:
            warnings.warn(
                f"left out of the fit: {', '.join(foreign)}, of foreign origin, which are kept for "
                "testing; records.own() leaves them out beforehand",
                stacklevel=2,
            )
            records = records.own()
        measured = sorted({row.arm for row in records.candidates})
        arms = [name for name in known_metrics(measured) if find_metric(name).arm]
        networks = [provenance.network for provenance in records.networks]
        if len(networks) < 2:
            raise SelectorError(
                f"records of {len(networks)} network cannot teach what carries over to others; "
                "record at least two"
            )
        if len(arms) < 2:
            raise SelectorError(f"records name {len(arms)} known arm; record at least two metrics")
        self.arms_, self.metrics_, self.networks_ = arms, known_metrics(measured), networks
        table = training_table(records, arms, self.metrics_)
        self.single_best_ = single_best(records, arms)
        splitter = GroupKFold(min(self.folds, len(networks)))
        self._regret = [
            self._booster(table, table.regret, train)
            for train, _ in splitter.split(table.features, groups=table.network)
        ]
        everything = np.arange(len(table.regret))
        self._damage = self._booster(table, log_damage(table.nats), everything)
        return self

    def _booster(self, table: TrainingTable, target: Matrix, rows: "np.typing.NDArray[np.intp]"):  # type: ignore[no-untyped-def]
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
        self.check_fitted()
        proposals = candidates(decision, self.arms_)
        if self.single_best_ not in proposals:
            raise SelectorError(
                f"the scores lack {self.single_best_!r}, the selector's single best; "
                "score with all the metrics"
            )
        features = with_arm(describe(decision, proposals, self.metrics_), proposals, self.arms_)
        regrets = np.stack([booster.predict(features) for booster in self._regret])
        nats = np.exp(self._damage.predict(features)) - DAMAGE_OFFSET
        return decide(proposals, regrets, nats, self.single_best_)

    def check_fitted(self) -> None:
        """Make sure that it has learnt.

        Raises:
            SelectorError: It has not.
        """
        if not hasattr(self, "arms_"):
            raise SelectorError("the selector has not learnt yet; call fit(records) or load")

    def save(self, folder: str | Path) -> None:
        """Write the boosters as LightGBM text and the rest as JSON, with checksums.

        Raises:
            SelectorError: Not fitted.
        """
        self.check_fitted()
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        texts = {f"regret_{i}.txt": b.model_to_string() for i, b in enumerate(self._regret)}
        texts["damage.txt"] = self._damage.model_to_string()
        for name, text in texts.items():
            write_text(target / name, text)
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
        write_text(target / "selector.json", json.dumps(description, indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> "SaliencySelector":
        """Read a saved selector.

        Raises:
            SelectorError: Missing, damaged, of another format, or with metrics unknown here.
        """
        source = Path(folder)
        description, texts = _read_saved(source)
        for name, text in texts.items():
            if _digest(text) != description["sha256"][name]:
                raise SelectorError(f"{source / name} is damaged: its checksum does not fit")
        known = known_metrics(description["metrics"])
        unknown = [name for name in description["metrics"] if name not in known]
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


DESCRIBED = ("parameters", "arms", "metrics", "single_best", "networks", "sha256")


def _read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The description of a saved selector and the texts of its boosters."""
    try:
        description = json.loads((folder / "selector.json").read_text())
        version = description["format_version"]
        if version == FORMAT_VERSION:
            missing = [key for key in DESCRIBED if key not in description]
            if missing or "damage.txt" not in description["sha256"]:
                raise KeyError(missing[0] if missing else "damage.txt")
            texts = {name: (folder / name).read_text() for name in description["sha256"]}
            return description, texts
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SelectorError(f"{folder} is not a saved selector: {error}") from error
    raise SelectorError(
        f"{folder} has format {version}, this version reads {FORMAT_VERSION}; "
        "fit the selector again"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
