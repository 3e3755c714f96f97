"""How long does it take to spend a budget over many groups?

Chains of 3x3 convolutions, each a group: even shares and allocation by (made-up) damage at half of
the multiply-accumulates, next to one scoring pass over a few images of the same network. Weights
and images are random: they do not change the time.
"""

import time
from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from selector.data.batches import Batches
from selector.learning.damage_curve import LADDER, Curve
from selector.network.costs import count_costs
from selector.network.groups import Group, Slice
from selector.network.tracing import Groups
from selector.planning.allocation import allocate_by_damage, allocate_evenly
from selector.planning.limits import Widths
from selector.planning.stage import Stage
from selector.planning.target import Target
from selector.statistics.collect import measure_signals
from selector.statistics.statistic import FIRST_ORDER, PAIRS
from selector.tables import text_table
from training.reporting.result_file import write_result

SIZES = (10, 100, 1000)
CHANNELS = (16, 48)
"""Least and most channels of a layer."""
IMAGES, PIXELS = 32, 8
KEEP_MACS = 0.5


def run(sizes: tuple[int, ...] = SIZES) -> dict[str, float]:
    """Measure, print the table, write `results/allocation.json`; return its summary.

    Args:
        sizes: Numbers of groups.
    """
    torch.set_num_threads(1)
    rows = [_measured(size) for size in sizes]
    columns = list(rows[0])
    print(text_table(columns, [[f"{value:.4g}" for value in row.values()] for row in rows]))
    summary = {
        f"groups_{row['groups']:.0f}_{name}": round(row[name], 4) for row in rows for name in row
    }
    print(write_result("allocation", summary, rows))
    return summary


def _measured(size: int) -> dict[str, float]:
    chance = np.random.default_rng(0)
    widths = chance.integers(*CHANNELS, size + 1, endpoint=True).tolist()
    model, batches = chain(widths)
    groups = groups_of_chain(model, widths[:-1])
    chosen = Widths.of(groups.prunable, 0.9, 1)
    stage = Stage(groups, chosen, Target.of({"keep_macs": KEEP_MACS}), 1.0, groups.costs)
    curves = {name: _curve(stage.options(name), chance) for name in stage.free}
    scoring = _seconds(
        lambda: measure_signals(model, batches, groups.prunable, needs=FIRST_ORDER | PAIRS)
    )
    by_damage = _seconds(lambda: allocate_by_damage(stage, curves))
    return {
        "groups": float(size),
        "seconds": by_damage,
        "even_seconds": _seconds(lambda: allocate_evenly(stage)),
        "scoring_pass_seconds": scoring,
        "share_of_scoring_pass": by_damage / scoring,
    }


def chain(widths: list[int]) -> tuple[nn.Module, Batches]:
    """A chain of convolutions of these widths, and drawn images."""
    chance = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise([3, *widths])]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = torch.randn(IMAGES, 3, PIXELS, PIXELS, generator=chance)
    return model, [(images, torch.randint(widths[-1], (IMAGES,), generator=chance))]


def groups_of_chain(model: nn.Module, widths: list[int]) -> Groups:
    """The groups of a chain, without the trial of each that finding them would make."""
    costs = count_costs(model, torch.zeros(1, 3, PIXELS, PIXELS))
    found: dict[str, Group] = {}
    for number, width in enumerate(widths):
        channels = tuple(range(width))
        slices = (
            Slice(f"{number}", "out", channels, channels),
            Slice(f"{number + 1}", "in", channels, channels),
        )
        found[f"{number}"] = Group(f"{number}", width, slices, 1.0, 1.0)
    return Groups(found, {}, costs)


def _curve(options: list[int], chance: np.random.Generator) -> Curve:
    """Damage that rises ever faster with the channels that go."""
    steps = sorted({min(options[1:], key=lambda n: abs(n - s * options[-1])) for s in LADDER})
    rates = np.cumsum(chance.uniform(0, 1e-3, len(steps))).tolist()
    curve: Mapping[int, float] = {
        count: count * rate for count, rate in zip(steps, rates, strict=True)
    }
    return {0: 0.0, **curve, options[-1]: options[-1] * (rates[-1] + 1e-3)}


def _seconds(action: Callable[[], object]) -> float:
    begin = time.process_time()
    action()
    return time.process_time() - begin
