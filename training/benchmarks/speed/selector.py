"""How long the shipped selector takes: to load, and for all decisions of a ResNet-50.

One scoring pass of torchvision's ResNet-50 (untrained; 224 px) over `IMAGES` images, then the
predictions of all its groups at ten ratios. Seconds of the processor in one thread, the least of
several repeats: what other programs on the machine take does not count.
"""

import cProfile
import pstats
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models import resnet50

from selector.data.calibration import Calibration
from selector.data.forward import probe_inputs
from selector.learning.explain import explain
from selector.learning.selector import SaliencySelector
from selector.network.tracing import Groups, find_groups
from selector.records.decision import Decision, GroupView
from selector.records.describe import describe_group, describe_run
from selector.saliency.proposals.knowledge import known_sets, measure_sets, set_proposals
from selector.saliency.scoring import needs_of, score_signals
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import PAIRS
from selector.tables import text_table
from training.reporting.result_file import write_result

RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75)
IMAGES = 32
"""In batches of 16: a user's hundreds take as many times longer, and the predictions do not."""
BATCH = 16
REPEATS = 5
STAGES: Mapping[str, tuple[str, ...]] = {
    "what the metrics would remove": ("candidates",),
    "decisions described": ("describe_all",),
    "boosters": ("predict",),
    "distance to the training decisions": ("distance",),
    "weighing and shortlists": ("_decided",),
}
"""Parts of a prediction -> the functions that do them."""


def run(selector: Path | None = None, repeats: int = REPEATS) -> None:
    """Measure, print the tables, write `results/selector_speed.json`."""
    torch.set_num_threads(1)

    def load() -> SaliencySelector:
        return SaliencySelector.shipped() if selector is None else SaliencySelector.load(selector)

    learnt = load()
    load_seconds = _least(load, repeats)
    model, batches = _set_up()
    groups = find_groups(model, probe_inputs(model, batches))
    begin = time.process_time()
    single = scored(model, batches, groups, learnt.metrics_)
    pass_seconds = time.process_time() - begin
    begin = time.process_time()
    sets = measure_sets(
        model, Calibration(batches), groups.prunable, set_proposals(learnt.set_arms)
    )
    set_seconds = time.process_time() - begin

    def decisions() -> list[Decision]:
        # Of their own, since views and signals keep what is derived of them.
        measured = {
            source: {n: replace(of.signals[source], memo={}) for n, of in sets.items()}
            for source in next(iter(sets.values())).signals
        }
        known = known_sets(measured, set_proposals(learnt.set_arms))
        views = [replace(one.view, sets=known[name]) for name, one in single.items()]
        return [
            Decision(view, max(1, round(ratio * view.channels)))
            for view in views
            for ratio in RATIOS
        ]

    predict_seconds = _least(lambda: learnt.predict_many(decisions()), repeats)
    last = decisions()[-1]
    learnt.predict(last)  # What is explained has been predicted.
    explain_seconds = _least(lambda: explain(learnt, last), repeats)
    rows = _parts(learnt, decisions())
    summary = {
        "load_seconds": load_seconds,
        "predict_seconds": predict_seconds,
        "scoring_pass_seconds": pass_seconds,
        "set_pass_seconds": set_seconds,
        "share_of_scoring_pass": predict_seconds / pass_seconds,
        "scoring_pass_images": float(IMAGES),
        "explain_seconds_a_group": explain_seconds,
        "groups": float(len(single)),
        "decisions": float(len(decisions())),
        "boosters": float(len(learnt.boosters)),
        "trees": float(sum(booster.trees for booster in learnt.boosters)),
    }
    summary = {name: round(value, 4) for name, value in summary.items()}
    print(text_table(["part", "share"], [[str(r["part"]), f"{r['share']:.0%}"] for r in rows]))
    print(text_table(["number", "value"], [[k, f"{v:.4g}"] for k, v in summary.items()]))
    print(write_result("selector_speed", summary, rows))


def scored(
    model: nn.Module,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    groups: Groups,
    metrics: Sequence[str],
) -> dict[str, Decision]:
    """A scoring pass, as `choose` makes it: every group's decision, of one channel."""
    needs = needs_of(metrics) | PAIRS
    signals = measure_signals(model, batches, groups.prunable, needs=needs)
    scores = score_signals(signals, metrics)
    found = {}
    for name, group in groups.prunable.items():
        run = signals[name].run
        assert run is not None
        view = GroupView(
            facts=describe_group(model, group, groups.costs, signals[name]),
            context=describe_run(run, 1.0),
            scores={metric: values.numpy() for metric, values in scores[name].items()},
            pairs=signals[name].pairs,
        )
        found[name] = Decision(view, count=1)
    return found


def _set_up() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    chance = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = resnet50().eval()
    images = torch.randn(IMAGES, 3, 224, 224, generator=chance)
    labels = torch.randint(1000, (IMAGES,), generator=chance)
    return model, list(zip(torch.split(images, BATCH), torch.split(labels, BATCH), strict=True))


def _least(action: Callable[[], object], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        begin = time.process_time()
        action()
        found.append(time.process_time() - begin)
    return min(found)


def _parts(learnt: SaliencySelector, decisions: Sequence[Decision]) -> list[dict[str, object]]:
    """Where the time of a prediction goes: shares of the parts, by the profiler."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(learnt.predict_many, decisions)
    found = pstats.Stats(profile).get_stats_profile().func_profiles
    whole = found["predict_many"].cumtime
    rows: list[dict[str, object]] = [
        {"part": part, "share": sum(found[name].cumtime for name in names) / whole}
        for part, names in STAGES.items()
    ]
    return rows
