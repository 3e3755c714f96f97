"""Do foreign networks lose less when routed? Accuracy after pruning, without retraining.

`cy_resnet20` and `he_resnet20` on CIFAR-10, pruned to 70 % and 50 % of their MACs by the shipped
selector, by always-L1 and by Fisher: same calibration images and rounds for all, and the
same share of every group, except in the row that allocates by predicted damage.
"""

import time
from collections.abc import Mapping

import torch
from joblib import Parallel, delayed
from tqdm import tqdm

from selector.method import Verify
from selector.objective import evaluate
from selector.pruning import prune
from selector.selection import SaliencySelector
from selector.tables import count_text, text_table
from training.benchmarks.results_file import write_result
from training.datasets import load
from training.foreign import foreign_batches, load_foreign

DAMAGE = "selector, allocation by damage"
NETWORKS = ("cy_resnet20_cifar10", "he_resnet20_cifar10")
KEEP_MACS = (0.7, 0.5)
CALIBRATION_IMAGES = 256
ROUNDS = 5
TEST_IMAGES = 10_000


def run(test_images: int = TEST_IMAGES, jobs: int = 2) -> None:
    """Prune both networks by every method, print the table, write `results/first.json`."""
    best = SaliencySelector.shipped().single_best_
    methods: list[tuple[str, str, Verify]] = [
        ("random", "random", 0),
        ("l1", "l1", 0),
        ("fisher", "fisher", 0),
        ("selector", "selector", 0),
        ("selector, verify=3", "selector", 3),
        (DAMAGE, "selector", 0),
        ("oracle", "oracle", 0),
    ]
    if best not in ("l1", "fisher"):
        methods.insert(3, (f"single best: {best}", best, 0))
    runs = [(n, k, m) for n in NETWORKS for k in KEEP_MACS for m in methods]
    found = Parallel(n_jobs=jobs, return_as="generator")(
        delayed(_one)(network, keep, *method, test_images) for network, keep, method in runs
    )
    rows: list[Mapping[str, object]] = list(tqdm(found, "prunings", total=len(runs)))
    print(text_table(list(rows[0]), [[_cell(value) for value in row.values()] for row in rows]))
    summary = {
        f"{row['network']}_{row['target']}_{row['method']}": float(str(row["accuracy"]))
        for row in rows
    }
    print(write_result("first", summary, rows))


def _one(
    network: str, keep: float, label: str, criterion: str, verify: Verify, test_images: int
) -> Mapping[str, object]:
    # Calibration images are training images: no others are left beside the test set.
    calibration = foreign_batches(network, load("cifar10", "train", limit=CALIBRATION_IMAGES), 64)
    test = foreign_batches(network, load("cifar10", "test", limit=test_images), 250)
    model = load_foreign(network)
    torch.set_num_threads(1)
    begin = time.perf_counter()
    result = prune(
        model,
        calibration,
        criterion=criterion,
        verify=verify,
        keep_macs=keep,
        rounds=ROUNDS,
        allocation="damage" if label == DAMAGE else "even",
    )
    seconds = time.perf_counter() - begin
    after = evaluate(result.model, test)
    report = result.report
    return {
        "network": network.removesuffix("_cifar10"),
        "target": keep,
        "method": label,
        "macs_kept": round(report.macs[1] / report.macs[0], 4),
        "parameters_kept": round(report.parameters[1] / report.parameters[0], 4),
        "accuracy": after.accuracy,
        "loss": round(after.loss, 4),
        "oracle_images": report.oracle_images,
        "seconds": round(seconds, 1),
    }


def _cell(value: object) -> str:
    if isinstance(value, int) and value > 9999:
        return count_text(value)
    return f"{value}"
