"""Which measurement forecasts the loss after BatchNorm recalibration: plain or compensated removal?

Over the networks of the first zoo and the foreign ones that have BatchNorm: for a sample of groups
and shares, the candidates of all arms, measured plainly, compensated, and after recalibration; the
rank correlation of each of the first two with the third within a decision.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import spearmanr
from torch import Tensor, nn
from tqdm import tqdm

from selector.data.batches import Batches
from selector.data.forward import probe_inputs
from selector.network.compensation import measure_means
from selector.network.groups import Group
from selector.network.layers import NORMALISATION
from selector.network.tracing import find_groups
from selector.oracle.oracle import Oracle
from selector.oracle.recalibrated import recalibrated_changes
from selector.saliency.registry import arms
from selector.saliency.scoring import lowest, score_signals
from selector.statistics.collect import measure_signals
from selector.tables import text_table
from training.campaign.tasks import held_out, trained
from training.datasets.catalogue import load
from training.reporting.markdown import cell
from training.reporting.result_file import write_result
from training.zoo.catalogue import FIRST_ZOO
from training.zoo.third_party import foreign_batches, load_foreign

FOREIGN = ("cy_resnet20_cifar10", "he_resnet20_cifar10", "founding_resnet-20")
RATIOS = (0.12, 0.4)
GROUPS = 4
"""Groups of a network, spread over its depth."""
CANDIDATES = 6
WEIGHTS = Path(__file__).resolve().parents[3] / "runs" / "zoo"


def run(weights: Path = WEIGHTS, jobs: int = 2) -> None:
    """Measure, print the table, write `results/modes.json`; zoo networks are trained if need be."""
    names = [*FOREIGN, *(spec.name for spec in FIRST_ZOO)]
    found = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_network)(name, weights) for name in names
    )
    rows = [row for row in tqdm(found, "networks", total=len(names)) if row is not None]
    print(text_table(list(rows[0]), [[cell(v) for v in row.values()] for row in rows]))
    keys = ("plain_correlation", "compensated_correlation", "plain_regret", "compensated_regret")
    summary = {key: float(np.mean([_number(row, key) for row in rows])) for key in keys}
    summary |= {
        "compensated_better": float(
            sum(_number(row, keys[1]) > _number(row, keys[0]) for row in rows)
        ),
        "networks": float(len(rows)),
    }
    print(text_table(["number", "value"], [[k, f"{v:.3f}"] for k, v in summary.items()]))
    print(write_result("modes", summary, rows))


def _number(row: Mapping[str, object], key: str) -> float:
    return float(str(row[key]))


def _network(name: str, weights: Path) -> Mapping[str, object] | None:
    torch.set_num_threads(1)
    model, batches = _read(name, weights)
    if not any(isinstance(layer, NORMALISATION) for layer in model.modules()):
        return None
    scoring, judging = batches[:2], batches[2:4]
    groups = find_groups(model, probe_inputs(model, scoring)).prunable
    step = max(1, len(groups) // GROUPS)
    chosen = dict(list(groups.items())[::step][:GROUPS])
    scores = score_signals(measure_signals(model, scoring, chosen), arms())
    rows = []
    for group_name, group in chosen.items():
        for ratio in RATIOS:
            count = max(1, round(ratio * group.channels))
            proposals = [lowest(values, count) for values in scores[group_name].values()]
            sets = list(dict.fromkeys(proposals))[:CANDIDATES]
            if len(sets) >= 4:
                rows.append(_decision(model, group, sets, scoring, judging))
    table = np.array(rows)
    means = np.nanmean(table, 0)
    return {
        "network": name,
        "decisions": len(rows),
        "plain_correlation": float(means[0]),
        "compensated_correlation": float(means[1]),
        "plain_regret": float(means[2]),
        "compensated_regret": float(means[3]),
    }


def _decision(
    model: nn.Module,
    group: Group,
    sets: list[tuple[int, ...]],
    scoring: Batches,
    judging: Batches,
) -> tuple[float, float, float, float]:
    """Rank correlations with the recalibrated loss; what choosing by each costs, in nats of it."""
    means = measure_means(model, scoring, [group])
    found = [
        [c.nats for c in oracle.measure(model, judging, {group: sets}).changes[group]]
        for oracle in (Oracle(), Oracle("compensated", means))
    ]
    after = recalibrated_changes(model, judging, group, sets, calibration=scoring)
    truth = np.array([change.nats for change in after])
    correlations = [float(spearmanr(one, truth).statistic) for one in found]
    regrets = [float(truth[int(np.argmin(one))] - truth.min()) for one in found]
    return correlations[0], correlations[1], regrets[0], regrets[1]


def _read(name: str, weights: Path) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A network and four batches that it was not trained on, where there are any."""
    if name in FOREIGN:
        images = load("cifar10", "train", limit=512)
        return load_foreign(name), list(foreign_batches(name, images, 128))
    spec = next(spec for spec in FIRST_ZOO if spec.name == name)
    return trained(spec, weights), list(held_out(spec))[:4]
