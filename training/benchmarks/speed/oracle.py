"""How fast is the oracle? Candidates x images a second, by engine; and what early stopping saves.

Every group, the distinct choices of 12 arms at 4 ratios, the same batch for all engines, in turns.
`he_resnet20` and `cy_resnet20` on CIFAR-10 images, torchvision's ResNet-18 (random weights) at 64
pixels. Also the share of the arithmetic limit: the multiply-accumulates that must be done
again, over the rate of a large matrix product on this machine.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torchvision
from torch import Tensor, nn

from selector.data.forward import evaluating
from selector.network.costs import Costs
from selector.network.groups import Group
from selector.network.tracing import Groups, find_groups
from selector.oracle.engines import EngineName
from selector.oracle.fx_steps import take_apart
from selector.oracle.oracle import Measured, Oracle
from selector.saliency.registry import arms
from selector.saliency.scoring import lowest, score_signals
from selector.statistics.collect import measure_signals
from selector.tables import text_table
from training.datasets.catalogue import load
from training.reporting.markdown import cell
from training.reporting.result_file import write_result
from training.zoo.third_party import foreign_batches, load_foreign

ARMS = 12
RATIOS = (0.06, 0.12, 0.25, 0.5)
IMAGES = 128
REPEATS = 3
STOP = 3.0
STOP_IMAGES = 512
ENGINES: tuple[EngineName, ...] = ("fast", "masked", "reference")
Batches = list[tuple[Tensor, Tensor]]
Sets = dict[Group, list[tuple[int, ...]]]


@dataclass(frozen=True)
class OracleCase:
    """A network, and images for it."""

    name: str
    build: Callable[[], nn.Module]
    images: Callable[[int], Batches]


def run(repeats: int = REPEATS) -> None:
    """Time the engines, print the tables, write `results/oracle.json`."""
    rows: list[Mapping[str, object]] = []
    summary: dict[str, float] = {}
    for case in CASES:
        row = _speed(case, repeats)
        rows.append(row)
        print("  ".join(f"{key} {cell(value, '.4g')}" for key, value in row.items()), flush=True)
        for other in ("reference", "masked"):
            summary[f"{case.name}_vs_{other}"] = float(str(row[f"vs_{other}"]))
        summary[f"{case.name}_share_of_limit"] = float(str(row["share_of_limit"]))
        write_result("oracle", summary, rows)  # As it comes: the next network takes a while.
    print(text_table(list(rows[0]), [[cell(v, ".4g") for v in row.values()] for row in rows]))
    for case in CASES[:2]:
        stopped = _early_stopping(case)
        print(
            text_table(
                ["early stopping", case.name], [[k, cell(v, ".4g")] for k, v in stopped.items()]
            )
        )
        rows.append({"network": case.name, **stopped})
        summary |= {f"{case.name}_{key}": value for key, value in stopped.items()}
    print(write_result("oracle", summary, rows))


def _foreign(name: str) -> Callable[[int], Batches]:
    def images(count: int) -> Batches:
        return list(foreign_batches(name, load("cifar10", "test", limit=count), IMAGES))

    return images


def _random(count: int) -> Batches:
    count = min(count, 64)  # Enough: one of its passes takes as long as many of the others.
    chance = torch.Generator().manual_seed(0)
    pixels = torch.randn(count, 3, 64, 64, generator=chance)
    labels = torch.randint(1000, (count,), generator=chance)
    return list(zip(pixels.split(64), labels.split(64), strict=True))  # type: ignore[no-untyped-call]


def _resnet18() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.resnet18(weights=None)
    return model


CASES = (
    OracleCase(
        "he_resnet20",
        lambda: load_foreign("he_resnet20_cifar10"),
        _foreign("he_resnet20_cifar10"),
    ),
    OracleCase(
        "cy_resnet20",
        lambda: load_foreign("cy_resnet20_cifar10"),
        _foreign("cy_resnet20_cifar10"),
    ),
    OracleCase("resnet18", _resnet18, _random),
)


def choices(model: nn.Module, batches: Batches, groups: Groups) -> Sets:
    """What 12 arms would remove at 4 ratios, in every group, each distinct set once."""
    signals = measure_signals(model, batches, groups.prunable)
    scores = score_signals(signals, arms()[:ARMS])
    found: Sets = {}
    for name, group in groups.prunable.items():
        counts = [max(1, round(ratio * group.channels)) for ratio in RATIOS]
        sets = [lowest(values, n) for n in counts for values in scores[name].values()]
        found[group] = list(dict.fromkeys(sets))
    return found


def _speed(case: OracleCase, repeats: int) -> dict[str, object]:
    model = case.build().eval()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    batches = case.images(IMAGES)
    groups = find_groups(model, batches[0][0][:2].to(device))
    sets = choices(model, batches, groups)
    count = sum(map(len, sets.values()))
    for engine in ENGINES:  # Warms up, and makes sure that none falls back on the way.
        Oracle(engine=engine).measure(model, batches[:1], {g: some[:1] for g, some in sets.items()})
    turns = [_turn(model, batches, sets, device) for _ in range(repeats)]
    fast = statistics.median(turn["fast"] for turn in turns)
    rate = _matrix_rate(device)
    images = sum(len(x) for x, _ in batches)
    needed = images * _macs_again(model, sets, groups.costs)
    return {
        "network": case.name,
        "groups": len(sets),
        "candidates": count,
        "images": images,
        **{
            f"{engine}_per_second": count
            * images
            / statistics.median(t[str(engine)] for t in turns)
            for engine in ENGINES
        },
        "vs_reference": statistics.median(t["reference"] / t["fast"] for t in turns),
        "vs_masked": statistics.median(t["masked"] / t["fast"] for t in turns),
        "share_of_limit": needed / rate / fast,
    }


def _turn(model: nn.Module, batches: Batches, sets: Sets, device: torch.device) -> dict[str, float]:
    """Seconds of each engine: group by group in turns, so that a busy moment falls on all alike.

    Processor time of the one thread on a CPU, since other processes share it; else wall clock.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds = dict.fromkeys(map(str, ENGINES), 0.0)
    for group, some in sets.items():
        for engine in ENGINES:
            begin = clock()
            Oracle(engine=engine, check=False).measure(model, batches, {group: some})
            seconds[engine] += clock() - begin
    return seconds


def _macs_again(model: nn.Module, sets: Sets, costs: Costs) -> float:
    """Multiply-accumulates per image that the candidates need beyond one whole pass."""
    total = costs.total("macs")
    with evaluating(model):
        steps = take_apart(model)
    for group, some in sets.items():
        again = {str(node.target) for node in steps.dependents(group.consumers)}
        inputs_changed = {
            str(node.target)
            for node in steps.dependents(group.consumers)
            if any(str(source.target) in again for source in node.all_input_nodes)
        }
        for channels in some:
            for name in again & set(costs.layers):
                first = name in group.consumers and name not in inputs_changed
                share = len(channels) / group.channels if first else 1.0
                total += share * costs.layers[name].macs
    return total


def _matrix_rate(device: torch.device) -> float:
    """Multiply-accumulates a second of a large single-precision matrix product."""
    size = 1024 if device.type == "cpu" else 8192
    one, other = (torch.randn(size, size, device=device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        _ = one @ other
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, size**3 / (time.perf_counter() - begin))
    return best


def _early_stopping(case: OracleCase) -> dict[str, float]:
    """What stopping hopeless candidates saves, and how often another one wins by it."""
    model = case.build().eval()
    batches = case.images(STOP_IMAGES)
    groups = find_groups(model, batches[0][0][:2])
    sets = choices(model, batches[:2], groups)
    # The images behind the scores are not those that judge them.
    judging = batches[2:]
    full = Oracle().measure(model, judging, sets)
    short = Oracle(stop=STOP).measure(model, judging, sets)
    races = wrong = 0
    regret = 0.0
    for group, some in sets.items():
        for size in dict.fromkeys(map(len, some)):
            rivals = [k for k, channels in enumerate(some) if len(channels) == size]
            if len(rivals) < 2:
                continue
            races += 1
            found, best = (_winner(m, group, rivals) for m in (short, full))
            wrong += found != best
            regret += full.changes[group][found].nats - full.changes[group][best].nats
    whole = short.image_forwards + short.image_forwards_saved
    return {
        "stop_standard_errors": STOP,
        "stop_saved_share": short.image_forwards_saved / whole,
        "stop_decisions": races,
        "stop_wrong_share": wrong / races,
        "stop_regret_nats": regret / races,
    }


def _winner(measured: Measured, group: Group, rivals: list[int]) -> int:
    changes = measured.changes[group]
    most = max(changes[k].images for k in rivals)
    return min((k for k in rivals if changes[k].images == most), key=lambda k: changes[k].nats)
