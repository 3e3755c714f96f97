"""`compare_methods`: a network pruned in several ways, each judged on the same images."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Unpack

from torch import nn
from tqdm import tqdm

from selector.data.batches import Batches
from selector.data.calibration import Calibration, evaluated
from selector.data.checks import check_model, check_names
from selector.data.exclusive import one_at_a_time
from selector.data.fingerprint import fingerprint_of
from selector.data.kept_rows import KeptRows
from selector.data.loss import Loss
from selector.data.own_forward import Forward
from selector.errors import SelectorError, nearest
from selector.learning.selector import SaliencySelector
from selector.planning.criteria import Verify
from selector.planning.method import AllocationName
from selector.planning.target import Target, Targets
from selector.pruning.method_table import UNPRUNED, MethodComparison, MethodRow
from selector.pruning.prune import prune
from selector.pruning.result import PruneResult


@dataclass(frozen=True)
class PruningMethod:
    """A way to prune that others are compared with."""

    title: str
    criterion: str
    """`single best` stands for the metric that is best over all networks of the records."""
    verify: Verify = 0
    allocation: AllocationName = "even"


SINGLE_BEST = "single best"
METHODS: Mapping[str, PruningMethod] = {
    "l1": PruningMethod("always l1", "l1"),
    "single-best": PruningMethod("single best", SINGLE_BEST),
    "rank-mean": PruningMethod("rank mean", "rank_mean"),
    "reconstruction": PruningMethod("reconstruction", "reconstruction"),
    "even": PruningMethod("selector, even", "selector"),
    "selector": PruningMethod("selector", "selector", 0, "auto"),
    "verify": PruningMethod("selector, verify=3", "selector", 3, "auto"),
    "oracle": PruningMethod("oracle", "oracle"),
}
"""What `compare_methods` knows, by the name that one types."""


def methods_for(target: Target) -> tuple[str, ...]:
    """Names of the methods that can reach a target: a ratio leaves no widths to choose."""
    free = target.measure != "channels"
    return tuple(name for name, how in METHODS.items() if free or how.allocation == "even")


@one_at_a_time
def compare_methods(
    model: nn.Module,
    batches: Batches,
    *,
    methods: Iterable[str] | None = None,
    selector: SaliencySelector | None = None,
    rounds: int | None = None,
    loss: Loss | None = None,
    forward: Forward | None = None,
    test_batches: Batches | None = None,
    checkpoint: str | Path | None = None,
    progress: bool = False,
    **target: Unpack[Targets],
) -> MethodComparison:
    """Prune a network in several ways and judge each on the same images.

    Args:
        model: A trained network; copies are pruned.
        batches: Re-iterable of (inputs, targets) to prune by.
        methods: Names of `METHODS`, in the order of the table; by default all that the target
            allows.
        selector: The shipped one by default.
        rounds: As for `prune`, the same for all.
        loss: Mean loss of a batch; cross-entropy by default.
        forward: Runs the network on a batch, as for `prune`.
        test_batches: Images to judge by; `batches` by default.
        checkpoint: Folder for what is done so far: the same call goes on from it.
        progress: Show progress bars.
        **target: As for `prune`.

    Raises:
        SelectorError: Unusable input, an unknown method, or one that the target does not allow.
    """
    check_model(model)
    wanted = Target.of(target)
    names = methods_for(wanted) if methods is None else check_names("methods", methods)
    for name in names:
        if name not in METHODS:
            raise SelectorError(f"unknown method {name!r}; {nearest(name, list(METHODS))}")
        if name not in methods_for(wanted):
            raise SelectorError(
                f"method {name!r} chooses widths, and a ratio leaves none to choose; leave it out, "
                "or use keep_macs, keep_params or keep_weights"
            )
    asked = selector or SaliencySelector.shipped()
    judged = Calibration(batches if test_batches is None else test_batches, loss)
    fingerprint = fingerprint_of(
        model, [Calibration(batches, loss)], target, rounds, asked.single_best_
    )
    kept = KeptRows(checkpoint, fingerprint)
    before = evaluated(model, judged)
    rows: list[MethodRow] = []
    first: MethodRow | None = None
    for name in tqdm(names, "methods", disable=not progress, leave=False):
        found = kept.load(name)
        if found is None:
            begin = time.perf_counter()
            how = METHODS[name]
            best = how.criterion == SINGLE_BEST
            result = prune(
                model,
                batches,
                criterion=asked.single_best_ if best else how.criterion,
                verify=how.verify,
                allocation=how.allocation,
                selector=asked if how.criterion == "selector" else None,
                rounds=rounds,
                loss=loss,
                test_batches=test_batches,
                checkpoint=None if kept.folder is None else kept.folder / name,
                progress=progress,
                **target,
            )
            title = f"{how.title}: {asked.single_best_}" if best else how.title
            found = [
                asdict(_unpruned(result)),
                asdict(_row(title, result, time.perf_counter() - begin)),
            ]
            kept.save(name, found)
        first = MethodRow(**found[0])
        rows.append(MethodRow(**found[1]))
    share = next(iter(target.values()), wanted.keep)
    title = f"{wanted.name}={share:g}"
    return MethodComparison((*([first] if first else []), *rows), title, before.images)


def _unpruned(result: PruneResult) -> MethodRow:
    report = result.report
    return MethodRow(
        method=UNPRUNED,
        unrepaired_accuracy=None,
        accuracy=report.before.accuracy,
        loss=report.before.loss,
        expected_drop=None,
        macs=report.macs[0],
        parameters=report.parameters[0],
        oracle_images=0,
        seconds=0.0,
    )


def _row(method: str, result: PruneResult, seconds: float) -> MethodRow:
    report = result.report
    return MethodRow(
        method=method,
        unrepaired_accuracy=None if report.unrepaired is None else report.unrepaired.accuracy,
        accuracy=report.after.accuracy,
        loss=report.after.loss,
        expected_drop=None if report.expected is None else report.expected.drop,
        macs=report.macs[1],
        parameters=report.parameters[1],
        oracle_images=report.oracle_images,
        seconds=seconds,
    )
